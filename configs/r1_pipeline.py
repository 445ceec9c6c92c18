"""DeepSeek-R1's recipe from base model to students, with the published numbers.

    python -m r1jax.train --config=configs/r1_pipeline.py --workdir=runs/r1

Numbers are those of the report and its supplement (arXiv 2501.12948 v2); what is not
published is marked "ours". DeepSeek's prompts are not published either: `DATA` holds
files of your own, a line `{"prompt": ..., "answer": ...}` each, and `models/` the base
models as Hugging Face folders. All stages of 671B want a pod; `--config.stages` takes
some of them, and `configs/r1_pipeline_tiny.py` is the same program for two CPU cores.

`:NAME` puts another base in the place of DeepSeek-V3: a folder in `models/`, as
`:Qwen2.5-32B` for the report's comparison of R1-Zero on a smaller model.
"""

import types

from ml_collections import ConfigDict

from configs import common

DATA = "data"
BASE = "DeepSeek-V3-Base"
JUDGE, JUDGE_MODEL = "http://localhost:8000/v1", "deepseek-ai/DeepSeek-V3"
UPDATES = 16  # of a rollout of 8,192 answers, 512 to an update
LONGEST = 32_768
# Categories of the prompts of reinforcement learning (R1: 26K, 17K + 8K, 22K and 15K),
# and who judges them.
REASONING = {"math": "math", "code": "code", "stem": "choice", "logic": "exact"}
# Of the others (R1: 66K and 12K) the models that judge them.
GENERAL = {"helpful": "helpfulness", "harmless": "safety"}
# Student: base and first learning rate.
STUDENTS = {
  "qwen_1_5b": ("Qwen2.5-Math-1.5B", 1e-4),
  "qwen_7b": ("Qwen2.5-Math-7B", 8e-5),
  "qwen_14b": ("Qwen2.5-14B", 7e-5),
  "qwen_32b": ("Qwen2.5-32B", 6e-5),
  "llama_8b": ("Llama-3.1-8B", 5e-5),
  "llama_70b": ("Llama-3.3-70B-Instruct", 2e-5),
}


def get_config(arg=None):
  c, r = common.run(), types.SimpleNamespace()
  base = arg or BASE
  c.model = common.model(f"models/{base}")
  c.mesh.update({"data": 1, "fsdp": -1})
  # Zero is asked with the report's text, what is fine-tuned by the chat template.
  c.template = common.template("chat")

  # R1-Zero: 10,400 updates; longer answers from update 8,200 on.
  if base == BASE:
    first, all_ = 8_200 // UPDATES, 10_400 // UPDATES
    r.zero = zero("", rollouts=first, max_tokens=LONGEST)
    r.zero_long = zero("zero", rollouts=all_ - first, max_tokens=65_536)
  else:
    # R1-Zero-Qwen-32B: one length, and "over 10,000" updates.
    r.zero = zero("", rollouts=10_000 // UPDATES, max_tokens=LONGEST)
    r.zero.optim.learning_rate = 2e-6

  # Cold start: thousands of Zero's answers, right and readable.
  r.cold_answers = answers(list(vars(r))[-1], samples=4)  # ours
  r.cold_answers.template = common.template("r1_zero")
  r.cold_answers.reward.format.kind = "r1_zero"
  # DeepSeek-V3 rewrote thoughts and summaries, here behind an address.
  r.cold_answers.rewrite.endpoint.update({"url": JUDGE, "model": JUDGE_MODEL})
  r.cold_start = fine_tuning("cold_answers")

  # Reasoning: Zero's settings, and the share of words in the target language.
  r.reasoning = reinforcement("cold_start", rollouts=650)  # ours: as long as Zero

  # Rejection sampling: what is right, mixed with data of other kinds; from the base
  # again.
  r.reasoning_answers = answers("reasoning", samples=4)  # ours: "several"
  r.reasoning_answers.also.general = common.also(
    ConfigDict({"source": "jsonl", "path": f"{DATA}/general_answers.jsonl"}),
    category="general",
  )
  r.reasoning_answers.shares = ConfigDict(common.R1_SAMPLES)
  r.sft = fine_tuning("reasoning_answers")

  # Reward models: 66,000 pairs, and 106,000 answers that are safe or not.
  r.helpful_pairs = judged("pairwise", prompts("helpful"))
  r.helpfulness = scored("helpful_pairs", examples=66_000)
  r.safety_labels = judged("pointwise", prompts("harmless"))
  r.safety = scored("safety_labels", examples=106_000)
  r.safety.update({"objective": "pointwise", "reads": "all"})

  # All scenarios: 1,700 updates at temperature 0.7, preferences in the last 400.
  r.rules = reinforcement("sft", rollouts=1_300 // UPDATES)
  r.all_scenarios = reinforcement("rules", rollouts=400 // UPDATES)
  for s in (r.rules, r.all_scenarios):
    s.rollout.temperature = 0.7
  for category, part in GENERAL.items():
    r.all_scenarios.data.of[category] = prompts(category)
    r.all_scenarios.reward.models[part] = common.scalar_model(part)
    r.all_scenarios.reward.categories[category] = ConfigDict(
      {"weights": {part: 1.0, "format": 1.0, "language": 1.0}}
    )

  for name, (path, learning_rate) in STUDENTS.items():
    student = fine_tuning("reasoning_answers")
    student.model = common.model(f"models/{path}")
    student.optim.learning_rate = learning_rate
    student.training.microbatches = 8  # of 8 rows; R1: batch 64
    setattr(r, name, student)
  common.add_stages(c, vars(r))
  return c


def zero(init, *, rollouts, max_tokens):
  s = common.grpo()
  s.init = init
  s.num_steps = rollouts
  s.template = common.template("r1_zero")
  s.data = reasoning_prompts()
  lengthen(s, max_tokens)
  evaluated(s)
  return s


def reinforcement(init, *, rollouts):
  s = zero(init, rollouts=rollouts, max_tokens=LONGEST)
  del s["template"]
  s.reward.format.kind = "think"
  s.reward.weights.language = 1.0
  return s


def lengthen(s, max_tokens):
  """Room for answers of some length, in drawing and in rows."""
  s.rollout.max_tokens = s.eval.max_tokens = max_tokens
  s.training.row_length = s.rollout.prompt_length + max_tokens


def evaluated(s):
  """R1's protocol, with fewer samples than the report's 64 and 16."""
  s.eval.update({"samples": 4, "temperature": 0.6, "top_p": 0.95})
  s.eval.sets = held_out()


def held_out():
  names = ("aime24", "math500")
  return ConfigDict({n: {"source": n, "dir": f"{DATA}/{n}"} for n in names})


def prompts(category, verifier="none"):
  return ConfigDict(
    {"source": "jsonl", "path": f"{DATA}/{category}.jsonl", "verifier": verifier}
  )


def reasoning_prompts():
  of = {name: prompts(name, verifier) for name, verifier in REASONING.items()}
  return ConfigDict({"source": "mixture", "of": of})


def answers(init, *, samples):
  """Right answers without what is hard to read; the bounds are ours."""
  s = common.rejection("right")
  s.init = init
  s.data = reasoning_prompts()
  s.held_out = held_out()
  s.rollout.group_size = samples
  s.rollout.temperature = 1.0
  s.reward.format.kind = "think"
  s.reward.weights.language = 1.0
  s.keep.update(
    {
      "least": {"format": 1.0, "language": 0.9, "repetition": -0.1},
      "paragraph_words": 500,
      "code_blocks": 0,
    }
  )
  return s


def fine_tuning(stage):
  """Two epochs, cosine from 5e-5 to 5e-6, 128 rows of 32,768 tokens, from the base."""
  s = common.sft()
  s.examples = ConfigDict({"source": "stage", "stage": stage})
  s.epochs = 2.0
  s.num_steps = 20_000
  s.training.update(
    {"rows": 8, "microbatches": 16, "row_length": LONGEST, "remat": "full"}
  )
  return s


def judged(labels, data):
  """Answers of the fine-tuned model, judged by a server of DeepSeek-V3."""
  s = common.pairs(labels)
  s.init = "sft"
  s.data = data
  s.reward.format.kind = "think"
  s.reward.weights = ConfigDict({"format": 1.0})  # there is no gold
  s.reward.judge.update({"url": JUDGE, "model": JUDGE_MODEL})
  return s


def scored(stage, *, examples):
  """One epoch of batches of 256, from the fine-tuned model.

  R1's had the architecture of R1 with a scalar head; from which weights is not said.
  """
  s = common.reward_model()
  s.init = "sft"
  s.data.stage = stage
  s.num_steps = -(-examples // s.training.batch)
  s.reads = "answer"  # the summary alone
  return s
