"""DeepSeek-R1's recipe on two CPU cores: every stage of `configs/r1_pipeline.py`.

    python -m r1jax.train --config=configs/r1_pipeline_tiny.py --workdir=runs/r1_tiny

The base is made on the spot, from a text that holds the skills and seldom shows them:
operation chains, mostly answered at once, now and then worked out in a thought whose
words are English or Chinese as it comes; and small talk, in which most answers lack the
name that was to be said, are unfriendly, or tell a secret. What follows is the recipe,
with one difference: points of a rule stand in for the judges of helpfulness and safety,
since no model of this size can be one. The reward models learn from its labels alone,
and reinforcement learning sees the models alone.

Behind it stand three more: reinforcement learning of a small student against its
distillation from the recipe's answers, three times each; self-improvement by majority
vote; and a round of Llama 3's loop. `:small` is all of it within minutes, and shows
nothing.
"""

import types

from ml_collections import ConfigDict

from configs import common
from r1jax.data import chain, small_talk

NUM_OPERATIONS = 5
SEEDS = (1, 2, 3)  # of the students
# Stages that are compared on chains and small talk.
EVALUATED = (
  *("base", "zero", "cold_start", "reasoning", "sft", "all_scenarios"),
  *("self_improved", "averaged"),
)
STUDENT = {"depth": 2, "width": 48, "heads": 2, "kv_heads": 2, "head_dim": 24}


def get_config(arg=None):
  common.no_arg(arg, allowed=("small",))
  c, r = common.run(), types.SimpleNamespace()
  c.cpu_devices = 2
  c.model = common.model(preset="tiny")
  c.tokenizer.symbols = (
    *("<think>", "</think>", "<answer>", "</answer>"),
    *(f"{sign}{operand}" for sign in "+-" for operand in range(1, 10)),
    *("*3", "*7", "*9"),
    # Words are tokens, as most are of a larger vocabulary.
    *(*chain.THEN.values(), *small_talk.THOUGHTS.values(), *small_talk.WORDS),
  )
  c.template = common.template("plain")
  c.checkpoint.keep = 1

  r.base = pretraining(steps=2400)

  # R1-Zero on the base, cold start from its answers, reasoning in one language.
  r.zero = reinforcement("base", steps=24)
  r.cold_answers = answers("zero", chains(1024), least_language=0.75)
  r.cold_start = fine_tuning("cold_answers", init="base")
  r.reasoning = reinforcement("cold_start", steps=16, language=1.0)

  # Rejection sampling, mixed with small talk, good or not: preferences come later; from
  # the base again.
  r.talk_answers = answers("base", talk(512), least=0.0)
  r.reasoning_answers = answers("reasoning", chains(2048), least_language=0.9)
  r.reasoning_answers.also.talk = common.also(stage("talk_answers"), category="talk")
  r.sft = fine_tuning("reasoning_answers", init="base")

  # Reward models, then all scenarios: rules first, preferences in the last part.
  r.helpful_pairs = judged("pairwise", "polite")
  r.helpfulness = scored("helpful_pairs", "pairwise")
  r.safety_labels = judged("pointwise", "secret")
  r.safety = scored("safety_labels", "pointwise")
  r.rules = reinforcement("sft", steps=8, language=1.0)
  r.all_scenarios = reinforcement("rules", steps=20, language=1.0)
  for s in (r.rules, r.all_scenarios):
    s.rollout.temperature = 0.7
  # About as many prompts without a gold as with one.
  r.all_scenarios.data = ConfigDict(
    {"source": "mixture", "of": {"chains": chains(160)}}
  )
  for category, part in (("polite", "helpfulness"), ("secret", "safety")):
    r.all_scenarios.data.of[category] = talk(150, category)
    r.all_scenarios.data.of[category].verifier = "none"
    r.all_scenarios.reward.models[part] = common.scalar_model(part)
    r.all_scenarios.reward.models[part].update({"rows": 16, "row_length": 128})
    r.all_scenarios.reward.categories[category] = ConfigDict(
      {"weights": {part: 1.0, "format": 1.0, "language": 1.0}}
    )

  # What a majority of own answers says, without a gold.
  r.votes = answers("cold_start", chains(512, split="train"), choice="majority")
  r.self_improved = fine_tuning("votes", init="base")

  # Llama 3's round: the best of several by the reward model, pairs, DPO, the mean.
  r.best_talk = answers("sft", talk(256, "polite"), choice="best")
  r.best_sft = fine_tuning("best_talk", init="sft")
  r.best_sft.epochs = 8.0  # of a small set
  r.dpo_pairs = judged("pairwise", "polite")
  r.dpo_pairs.init = "best_sft"
  r.dpo = preferred("dpo_pairs", init="best_sft")
  r.averaged = common.average("best_sft", "dpo")

  stages = vars(r)
  for name in EVALUATED:
    stages[f"at_{name}"] = evaluation(name)
  for seed in SEEDS:
    stages |= students(seed)
  common.add_stages(c, stages)
  if arg == "small":
    shrink(c)
  return c


def students(seed):
  """A smaller base, what reinforcement learning makes of it, and what the recipe's
  answers do; the two are evaluated on the same problems."""
  base, zero, distilled = (f"{name}_{seed}" for name in ("base", "zero", "distilled"))
  made = {
    f"student_{base}": pretraining(steps=2400, seed=seed),
    f"student_{zero}": reinforcement(f"student_{base}", steps=24),
    f"student_{distilled}": fine_tuning("reasoning_answers", init=f"student_{base}"),
  }
  made[f"student_{distilled}"].update({"epochs": 3.0, "num_steps": 600})
  made |= {f"at_{name}": evaluation(name) for name in list(made)}
  for s in made.values():
    s.model = common.model(preset="tiny")
    s.model.shape.update(STUDENT)
  return made


def chains(size, split="train"):
  """Chains of one split; none of them is in another, or in the corpus."""
  return common.gym_task(
    chain.NAME,
    name=split,
    size=size,
    min_steps=NUM_OPERATIONS,
    max_steps=NUM_OPERATIONS,
    split=split,
  )


def talk(size, *kinds, split="train"):
  kinds = kinds or small_talk.KINDS
  return common.gym_task(
    small_talk.NAME, name=split, size=size, kinds=kinds, split=split
  )


def stage(name):
  """The examples that a stage has made."""
  return ConfigDict({"source": "stage", "stage": name})


def pretraining(*, steps, seed=0):
  """On as many examples as the steps read, about."""
  s = common.sft()
  s.num_steps = steps
  s.train_on = "all"
  # Shorter chains too: from them the single operations are learned.
  corpus = common.worked(
    chain.NAME,
    size=40 * steps,
    think_share=0.25,
    min_steps=1,
    max_steps=NUM_OPERATIONS,
    split="corpus",
  )
  corpus.languages = ("en", "zh")
  sayings = common.worked(
    small_talk.NAME,
    size=10 * steps,
    think_share=0.5,
    kinds=small_talk.KINDS,
    split="corpus",
  )
  corpus.seed = sayings.seed = seed
  s.examples = ConfigDict(
    {"source": "mixture", "of": {"chains": corpus, "talk": sayings}}
  )
  s.optim.learning_rate = 3e-3
  s.optim.warmup_steps = 30
  s.optim.final_fraction = 0.05
  s.training.row_length = 128
  return s


def drawing(s, *, prompts, max_tokens=64):
  """What all stages that draw have in common."""
  s.rollout.update({"prompt_length": 32, "prompts": prompts, "max_tokens": max_tokens})
  s.rollout.slots = 256
  return s


def evaluated(s):
  s.eval.update({"max_tokens": 64, "slots": 256})
  s.eval.sets.chains = chains(256, split="heldout")
  for kind in small_talk.KINDS:
    s.eval.sets[kind] = talk(64, kind, split="heldout")
  if "language" not in s.reward.weights:
    s.reward.weights.language = 0.0  # which is logged
  return s


def reinforcement(init, *, steps, language=0.0):
  s = evaluated(drawing(common.grpo(), prompts=32))
  s.init = init
  s.num_steps = steps
  s.data = chains(4000)
  # A chain in words; any ten of them are shared by chance.
  s.decontaminate = 3 * NUM_OPERATIONS + 3
  s.reward.weights.language = language
  s.loss.clip_low = s.loss.clip_high = 0.2
  s.optim.learning_rate = 2e-4
  s.training.update({"rows": 16, "row_length": 128, "minibatches": 2, "remat": "none"})
  s.eval.every = 8
  return s


def answers(init, data, *, choice="right", least=1.0, least_language=0.0):
  s = drawing(common.rejection(choice), prompts=64)
  s.init = init
  s.data = data
  s.held_out.chains = chains(256, split="heldout")
  s.decontaminate = 3 * NUM_OPERATIONS + 3
  s.rollout.group_size = 4
  s.rollout.temperature = 1.0
  s.formats.names = ()
  if choice == "right":
    s.choose.least = least
    s.keep.least = ConfigDict({"format": 1.0})
    if least_language:
      s.reward.weights.language = 1.0
      s.keep.least.language = least_language
  if choice == "best":
    s.choose.part = "helpfulness"
    s.reward.models.helpfulness = common.scalar_model("helpfulness")
    s.reward.models.helpfulness.update({"rows": 16, "row_length": 128})
    s.reward.weights = ConfigDict({"helpfulness": 1.0})
  return s


def fine_tuning(name, *, init):
  """Two epochs, cosine to a tenth of the first learning rate, as the full recipe."""
  s = common.sft()
  s.init = init
  s.examples = stage(name)
  s.epochs = 2.0
  s.num_steps = 400
  s.optim.learning_rate = 1e-3
  s.training.row_length = 128
  return s


def judged(labels, kind):
  s = drawing(common.pairs(labels), prompts=64)
  s.init = "sft"
  s.data = talk(400, kind)
  s.judge.kind = "reward"
  s.judge.judgements = 1
  s.reward.weights = ConfigDict({"accuracy": 1.0})
  # There are few requests, so that each is asked often.
  s.rollout.group_size = 16
  s.rollout.temperature = 1.0
  s.choose.per_problem = 4
  if labels == "pairwise":
    s.choose.update({"kind": "best_worst", "min_gap": 0.25})
  else:
    s.choose.threshold = 1.0
  return s


def scored(name, objective):
  s = common.reward_model()
  s.init = "sft"
  s.objective = objective
  s.reads = "answer" if objective == "pairwise" else "all"
  s.data.stage = name
  s.num_steps = 40
  s.optim.learning_rate = 5e-4
  s.training.update({"batch": 16, "rows": 8, "row_length": 128, "remat": "none"})
  return s


def preferred(name, *, init):
  """DPO with a fifth of the chosen answer's loss, as Llama 3."""
  s = common.preference()
  s.init = init
  s.data.stage = name
  s.loss.update({"kind": "rpo", "nll_coef": 0.2})
  s.num_steps = 40
  s.optim.learning_rate = 1e-4
  s.training.update({"row_length": 128})
  return s


def evaluation(init):
  s = evaluated(common.evaluation())
  s.init = init
  s.rollout.prompt_length = 32
  return s


def shrink(c):
  """Everything a few times, by a model that has learnt little."""
  shape = {"depth": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffw": 32}
  c.model.shape.update(shape)
  for name in c.stages:
    s = c[name]
    if "model" in s:
      s.model.shape.update(shape | {"width": 16})
    if s.kind == "sft":
      is_base = s.examples.source == "mixture"
      s.num_steps = 300 if is_base else 5
      for one in s.examples.get("of", {}).values():
        one.size //= 8
      s.optim.learning_rate = 1e-2
    if s.kind == "grpo":
      s.num_steps, s.eval.every = 2, 1
      s.rollout.update({"prompts": 4, "group_size": 4})
    if s.kind in ("reward_model", "preference"):
      s.num_steps = 2
      s.training.rows = 2
      if "batch" in s.training:
        s.training.batch = 2
    if s.kind in ("rejection", "pairs"):
      s.data.size = 64
    if s.kind == "pairs":
      s.reward.weights.language = 1.0
      s.judge.reads = "all"
      if s.labels == "pairwise":
        s.choose.min_gap = 0.0
    if s.kind == "rejection":  # whatever it says
      s.keep.least = ConfigDict()
      if s.choose.kind == "right":
        s.choose.least = 0.0
    if "sets" in s.get("eval", {}):
      for one in s.eval.sets.values():
        one.size = 16
