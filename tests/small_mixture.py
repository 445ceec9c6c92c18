"""`small_run.py` with experts and a module that predicts one token further."""

from tests import small_run


def get_config():
  c = small_run.get_config()
  c.model.shape.experts = {
    "count": 4,
    "per_token": 2,
    "ffw": 16,
    "scores": "sigmoid",
    "bias": True,
  }
  c.model.shape.mtp_depth = 1
  c.base.num_steps = 3
  c.base.training.mtp_coef = 0.3
  c.base.moe.balance_coef = c.zero.moe.balance_coef = 1e-2
  c.base.moe.bias_rate = 1e-3
  c.zero.num_steps = 2
  c.zero.moe.replay = True
  return c
