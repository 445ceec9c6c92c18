"""SmolLM2-135M-Instruct on GSM8K by GRPO, with R1-Zero's prompt and rewards.

    bash launch/fetch_smollm2.sh
    python -m r1jax.train --config=configs/gsm8k_smollm2.py --workdir=runs/gsm8k

Problems come through TFDS, downloaded where the network allows;
`--config.data.dir=DIR` reads the published train.jsonl and test.jsonl instead.
"""

from ml_collections import ConfigDict, config_dict

from configs import common

MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"


def get_config(arg=None):
  """`arg` "two_steps": two steps of 2 problems, to see it run on a CPU."""
  common.no_arg(arg, allowed=("two_steps",))
  c = common.run()
  c.stages = ("zero",)
  c.model.path = MODEL
  c.template = common.template("r1_zero")
  c.data = ConfigDict(
    {
      "source": "gsm8k",
      "split": "train",
      "dir": config_dict.placeholder(str),
      "data_dir": config_dict.placeholder(str),  # where TFDS keeps prepared sets
      "on_bad_line": "error",
      "limit": config_dict.placeholder(int),
    }
  )
  held_out = c.data.copy_and_resolve_references()
  held_out.split = "test"
  held_out.dir = c.data.get_oneway_ref("dir")
  held_out.data_dir = c.data.get_oneway_ref("data_dir")

  zero = c.zero = common.grpo()
  zero.num_steps = 200
  zero.rollout.prompts = 32
  zero.rollout.prompt_length = 384
  zero.rollout.max_tokens = 512
  zero.loss.clip_low = zero.loss.clip_high = 0.2
  zero.training.rows = 4
  zero.training.row_length = 2048
  zero.training.minibatches = 2
  zero.eval.every = 20
  zero.eval.max_tokens = 512
  zero.eval.batch = 256
  zero.eval.slots = 128
  zero.eval.sets.gsm8k_test = held_out
  if arg == "two_steps":
    zero.num_steps = 2
    zero.rollout.prompts = 2
    zero.rollout.group_size = 4
    zero.rollout.max_tokens = 64
    zero.training.rows = 1
    zero.training.row_length = 512
    zero.training.minibatches = 1
    zero.eval.max_tokens = 64
    zero.eval.batch = zero.eval.slots = 4
    held_out.limit = 4
  return c
