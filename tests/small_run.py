"""A run of both kinds of stage that ends within seconds, for tests of the command.

    python -m r1jax.train --config=tests/small_run.py --workdir=DIR

It learns nothing. Every kind of event happens more than once: evaluations, saves, a
refresh of the reference; answers have many lengths.
"""

import re

from ml_collections import ConfigDict

from configs import common
from r1jax import metrics


def get_config(arg=None):
  common.no_arg(arg)
  c = common.run()
  c.stages = ("base", "zero")
  c.model.shape = ConfigDict(
    {"depth": 1, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffw": 16}
  )
  c.template = common.template("plain")
  c.checkpoint.save_every = 3
  c.log.sample_every = 2

  base = c.base = common.sft()
  base.num_steps = 40
  base.examples = common.worked(
    "op_chain", size=64, think_share=0.5, min_steps=1, max_steps=2
  )
  base.optim.learning_rate = 3e-2
  base.training.update({"microbatches": 2, "row_length": 32})

  zero = c.zero = common.grpo()
  zero.init = "base"
  zero.num_steps = 5
  zero.data = chains("train", size=16)
  zero.rollout.prompts = 2
  zero.rollout.group_size = 4
  zero.rollout.prompt_length = 20
  zero.rollout.max_tokens = 12
  zero.rollout.slots = 4
  zero.reward.num_workers = 1
  zero.loss.clip_low = zero.loss.clip_high = 0.2
  zero.loss.kl_coef = 0.1
  zero.reference.refresh_every = 2
  zero.optim.learning_rate = 1e-2
  zero.training.update({"rows": 2, "row_length": 48, "minibatches": 2, "remat": "none"})
  zero.eval.every = 2
  zero.eval.max_tokens = 12
  zero.eval.batch = 4
  zero.eval.sets.heldout = chains("heldout", size=4)
  return c


def chains(split, *, size):
  return common.gym_task(
    "op_chain", name=split, size=size, min_steps=1, max_steps=2, split=split
  )


def numbers(workdir):
  """Lines of metrics without what depends on the clock and on this start."""
  own = re.compile("time|compile/count|.*(tokens_per_s|share_of_limit)")
  return [
    {key: value for key, value in line.items() if not own.match(key)}
    for line in metrics.read(workdir)
  ]
