"""A base, answers of it that are kept, and a student that learns them, in seconds.

    python -m r1jax.train --config=tests/small_rejection.py --workdir=DIR

One answer of the base in ten is right by chance.
"""

from configs import common
from tests import learners, small_run


def get_config(arg=None):
  common.no_arg(arg)
  c = small_run.get_config()
  c.stages = ("base", "own", "student")
  c.unlock()
  del c["zero"]
  # All answers at once, so that each is one that ends.
  c.base.examples.think_share = 0.0
  c.own = own()
  c.student = student()
  return c


def own(choice="right"):
  s = common.rejection(choice)
  s.init = "base"
  s.data = small_run.chains("train", size=6)
  s.held_out.test = small_run.chains("heldout", size=4)
  s.rollout.update(
    {"prompts": 2, "group_size": 6, "prompt_length": 24, "max_tokens": 24}
  )
  s.rollout.temperature = 1.0
  s.reward.num_workers = 1
  s.also.general = common.also(learners.answers(size=8), category="other", count=3)
  return s


def student():
  s = common.sft()
  s.num_steps, s.epochs = 50, 4.0
  s.examples = {"source": "stage", "stage": "own"}
  s.optim.learning_rate = 1e-2
  s.training.update({"rows": 2, "microbatches": 2, "row_length": 64})
  return s
