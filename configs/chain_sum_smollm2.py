"""SmolLM2-135M-Instruct on short sums: a cold start in R1's format, then GRPO.

    bash launch/fetch_smollm2.sh
    python -m r1jax.train --config=configs/chain_sum_smollm2.py --workdir=runs/chain_sum

The model answers 17 % of sums of two one-digit numbers at temperature 1 and never
writes the tags unasked, so R1's order is kept: some hundred worked examples first
(stage `cold`), then rewards alone (stage `zero`).
"""

from configs import common

MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}


def get_config(arg=None):
  """`arg` "small": smaller rollouts and fewer steps, for a CPU."""
  common.no_arg(arg, allowed=("small",))
  c = common.run()
  c.stages = ("cold", "zero")
  c.model.path = MODEL
  c.template = common.template(
    "chat", suffix=" Think in <think> tags, then answer in <answer> tags."
  )

  cold = c.cold = common.sft()
  cold.num_steps = 40
  cold.examples = common.worked("chain_sum", size=320, **SUMS)
  cold.optim.learning_rate = 1e-4
  cold.optim.warmup_steps = 4
  cold.training.rows = 2
  cold.training.microbatches = 1
  cold.training.row_length = 512

  zero = c.zero = common.grpo()
  zero.init = "cold"
  zero.num_steps = 100
  zero.data = common.gym_task("chain_sum", name="train", size=4000, **SUMS)
  # Sums of a few numbers share all their other words.
  zero.decontaminate = 20
  zero.rollout.prompts = 32
  zero.rollout.prompt_length = 96
  zero.rollout.max_tokens = 96
  zero.loss.clip_low = zero.loss.clip_high = 0.2
  zero.optim.learning_rate = 3e-6
  zero.training.rows = 4
  zero.training.row_length = 768
  zero.training.minibatches = 2
  zero.eval.every = 10
  zero.eval.max_tokens = 96
  zero.eval.batch = 256
  zero.eval.sets.heldout = common.gym_task(
    "chain_sum", name="heldout", size=256, **SUMS
  )
  if arg == "small":
    cold.num_steps = 24
    cold.training.rows = 1
    zero.num_steps = 12
    zero.rollout.prompts = 8
    zero.rollout.group_size = 8
    zero.training.rows = 1
    zero.training.minibatches = 1
    zero.optim.learning_rate = 1e-5
    zero.eval.every = 6
    zero.eval.sets.heldout.size = 100
  return c
