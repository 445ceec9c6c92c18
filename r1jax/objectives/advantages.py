"""Advantages from rewards inside a group.

Letters: Q prompts, G samples per prompt.
"""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import one_of
from r1jax.types import Array

STD_KINDS = ("population", "sample", "none")


def group_advantages(
  reward_QG: Array, *, std: str = "population", eps: float = 0.0
) -> Array:
  """(reward - group mean) / (group std + eps), one number per answer.

  DeepSeekMath (arXiv 2402.03300) section 4.1.2; R1 uses the same. The papers do not say
  which deviation they mean: "population" divides by G, "sample" by G - 1, and "none"
  leaves the centred reward as Dr. GRPO (arXiv 2503.20783) does.

  A group whose rewards are all equal has advantage exactly 0. This is decided by
  comparing the rewards: in float32 the mean of equal numbers can miss them by a
  rounding error, which a division by the deviation would blow up to size 1.

  Args:
    reward_QG: rewards in points; numpy in, numpy out, and the same for jax.
    eps: added to the deviation. 0 is safe, and keeps advantages the same when rewards
      are scaled and shifted.
  """
  one_of(std, STD_KINDS, key="config.advantage.std")
  xp = jnp if isinstance(reward_QG, jax.Array) else np
  group_size = reward_QG.shape[1]
  equal_Q1 = reward_QG.max(1, keepdims=True) == reward_QG.min(1, keepdims=True)
  centred_QG = reward_QG - reward_QG.mean(1, keepdims=True)
  if std == "none":
    return xp.where(equal_Q1, 0.0, centred_QG)
  freedom = group_size if std == "population" else max(group_size - 1, 1)
  deviation_Q1 = xp.sqrt((centred_QG**2).sum(1, keepdims=True) / freedom)
  scale_Q1 = xp.where(equal_Q1, 1.0, deviation_Q1 + eps)
  return xp.where(equal_Q1, 0.0, centred_QG / scale_Q1)
