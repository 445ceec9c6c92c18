"""How much is cached."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from r1jax.models import cache as caches
from r1jax.models.config import Latent
from tests import tiny

LATENT = Latent(q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)
V3 = tiny.config(depth=61, heads=128, kv_heads=128, head_dim=192, latent=LATENT)
KEYS_AND_VALUES = tiny.config(depth=61, heads=128, kv_heads=128, head_dim=160)


def numbers(c, slots, capacity):
  """Held by the cache's arrays, without making them."""
  empty = functools.partial(caches.empty, c, slots, capacity, jnp.bfloat16)
  cache = jax.eval_shape(empty)
  held = jax.tree.leaves((cache.keys, cache.values))
  return sum(math.prod(leaf.shape) for leaf in held)


@pytest.mark.parametrize(("slots", "capacity"), [(1, 1), (3, 7)])
def test_latent_attention_caches_the_latent_alone(slots, capacity):
  """DeepSeek-V3: 576 numbers per token and layer, 71 times fewer than without."""
  got = numbers(V3, slots, capacity)
  assert got == 576 * 61 * slots * capacity
  full = numbers(KEYS_AND_VALUES, slots, capacity)
  assert full == 40_960 * 61 * slots * capacity
  assert full / got == pytest.approx(71.11, abs=0.01)
