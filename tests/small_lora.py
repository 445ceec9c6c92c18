"""`small_run.py` with adapters: one of fresh weights, one on top, and all weights.

The last stage has a learning rate of 0, so that it keeps what it was given.
"""

from configs import common
from tests import small_run


def get_config():
  c = small_run.get_config()
  c.stages = ("base", "zero", "after")
  c.base.num_steps = 60
  c.base.lora.rank = 4
  c.zero.num_steps = 4
  c.zero.lora.rank = 2
  c.zero.lora.alpha = 4.0
  c.zero.lora.paths = (".*/attn/[qo]", ".*/down")
  c.after = common.sft()
  c.after.update(c.base.to_dict())
  c.after.init = "zero"
  c.after.num_steps = 1
  c.after.lora.rank = 0
  c.after.optim.learning_rate = 0.0
  return c
