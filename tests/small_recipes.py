"""`small_run.py` by a named recipe, in sizes that fit it.

python -m r1jax.train --config=tests/small_recipes.py:ppo --workdir=DIR
"""

from configs import common
from tests import small_run


def get_config(arg="grpo_r1"):
  c = small_run.get_config()
  zero = c.zero
  zero.num_steps = 3
  zero.update(common.recipe(arg))
  if zero.loss.length_constant is not None:
    zero.loss.length_constant = float(zero.rollout.max_tokens)
  if zero.shaping.overlong_buffer:
    zero.shaping.overlong_buffer = 4
  zero.filter.max_rounds = 2
  return c
