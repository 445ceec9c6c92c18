"""R1-Zero in minutes: a base model made on the spot learns to think before it answers.

python -m r1jax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs import common

TASK = "op_chain"
STEPS = 5


def get_config(arg=None):
  del arg
  c = common.run()
  c.stages = ("base", "zero")
  c.cpu_devices = 2
  c.model.preset = "tiny"
  c.model.shape = {
    "depth": 3,
    "width": 96,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 24,
    "ffw": 256,
    "rope_base": 1000.0,
  }
  c.tokenizer.symbols = (
    *("<think>", "</think>", "<answer>", "</answer>"),
    *(f"{op}{operand}" for op in "+-" for operand in range(1, 10)),
    *("*3", "*7", "*9"),
  )
  c.template = common.template("plain")
  c.checkpoint.save_every = 25
  c.log.sample_every = 10

  base = c.base = common.sft()
  base.num_steps = 2400
  base.train_on = "all"
  base.examples = {
    "source": "worked",
    "task": TASK,
    "task_args": {"min_steps": 1, "max_steps": STEPS, "split": "corpus"},
    "size": 100_000,
    "think_share": 0.25,
  }
  base.optim = common.optimizer(3e-3)
  base.optim.schedule = "cosine"
  base.optim.total_steps = base.get_ref("num_steps")
  base.optim.warmup_steps = 30
  base.optim.final_fraction = 0.05
  base.training = {"rows": 8, "microbatches": 1, "row_length": 128, "remat": "none"}

  zero = c.zero = common.grpo()
  zero.init = "base"
  zero.num_steps = 60
  zero.data = common.gym_task(
    TASK, split="train", size=8000, min_steps=STEPS, max_steps=STEPS
  )
  zero.data.task_args.split = "train"
  zero.decontaminate = 18
  zero.rollout.update(
    {
      "prompts": 32,
      "group_size": 16,
      "prompt_length": 32,
      "max_tokens": 48,
      "slots": 256,
    }
  )
  zero.loss.update({"clip_low": 0.2, "clip_high": 0.2})
  zero.optim.learning_rate = 3e-4
  zero.training.update(
    {"rows": 16, "row_length": 128, "minibatches": 2, "remat": "none"}
  )
  zero.eval.update({"every": 10, "max_tokens": 48, "batch": 512, "slots": 256})
  zero.eval.sets.heldout = common.gym_task(
    TASK, split="heldout", size=512, min_steps=STEPS, max_steps=STEPS
  )
  zero.eval.sets.heldout.task_args.split = "heldout"
  return c
