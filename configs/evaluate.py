"""R1's protocol of evaluation: several answers to each problem, at temperature 0.6.

    python -m r1jax.evaluate --checkpoint=RUN --out=DIR
    python -m r1jax.evaluate --model=PATH --set=math500 --set=gsm8k,split=test --out=DIR
    python -m r1jax.evaluate --model=PATH --config=configs/evaluate.py:r1 --out=DIR

The report (arXiv 2501.12948): temperature 0.6, top-p 0.95, 32,768 new tokens, 64
answers on AIME and GPQA, 16 on MATH; pass@1 is their mean, cons@64 their majority.
`:r1` asks these sets, from --config.eval.sets.NAME.dir, or downloaded where they have
an open address.
"""

from ml_collections import ConfigDict, config_dict

from configs import common


def get_config(arg=None):
  common.no_arg(arg, allowed=("r1",))
  c = common.evaluation()
  del c.kind, c.init
  c.seed = 0
  # What is None is as the checkpoint was trained with; without one, see
  # r1jax/evaluate/settings.py.
  c.template = ConfigDict(
    {
      "template": config_dict.placeholder(str),
      "suffix": config_dict.placeholder(str),
      "system": config_dict.placeholder(str),
    }
  )
  c.reward.format = ConfigDict(
    {"kind": config_dict.placeholder(str), "strict": config_dict.placeholder(bool)}
  )
  c.reward.language = config_dict.placeholder(str)
  # Parts that are shown beside accuracy and format.
  c.reward.weights = ConfigDict({"language": 1.0, "repetition": 1.0})
  c.rollout = ConfigDict({"prompt_length": config_dict.placeholder(int)})
  own = dict(c.eval)
  own |= {
    # Name -> settings as of `data` of a stage, and `samples` where they differ; none
    # are those that the checkpoint was evaluated on in training.
    "sets": ConfigDict(),
    "max_tokens": config_dict.placeholder(int),
    "stop_strings": config_dict.placeholder(tuple),
    "samples": 16,
    "temperature": 0.6,
    "top_p": 0.95,
    "batch": 32,  # problems answered at a time, which are kept when it is stopped
    "slots": 128,  # answers decoded at a time; 0 is all
  }
  c.eval = ConfigDict(own)
  # One more answer to each problem, at temperature 0. R1 does without: greedy answers
  # of long thoughts repeat themselves.
  c.greedy = False
  # Of --reward_model: what it reads at a time, and how scores of steps become one.
  c.reward_model = ConfigDict({"rows": 8, "aggregation": "min"})
  if arg == "r1":
    for name, samples in (("aime24", 64), ("gpqa", 64), ("math500", 16)):
      folder = config_dict.placeholder(str)
      c.eval.sets[name] = ConfigDict(
        {"source": name, "dir": folder, "samples": samples}
      )
  return c
