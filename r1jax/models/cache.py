"""Keys and values of tokens already seen, in two parts.

Letters: Z depth, Q prompts, S slots, P prompt slots, W own slots, K kv heads, H head
width.

A prompt is prefilled once and read by all of its samples; what a sample writes itself
lies in its own part. Keys are held as [..., H, W] so that a decode step's scores are
plain matrix products over contiguous positions (twice as fast on CPU as [..., W, H]).
"""

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.models.config import ModelConfig


@struct.dataclass
class PromptCache:
  """Read-only keys and values of Q prompts.

  Attributes:
    k_ZQKHP, v_ZQKPH: keys and values.
    length_Q: int32, valid positions of each prompt.
    index_S: int32, the prompt that each slot continues.
  """

  k_ZQKHP: jax.Array
  v_ZQKPH: jax.Array
  length_Q: jax.Array
  index_S: jax.Array


@struct.dataclass
class Cache:
  """Own part of S slots, and the prompt part they share (None while prefilling).

  Attributes:
    k_ZSKHW, v_ZSKWH: keys and values; position w of a slot is its w-th own token.
    length_S: int32, own tokens held by each slot. The next token is written there.
  """

  k_ZSKHW: jax.Array
  v_ZSKWH: jax.Array
  length_S: jax.Array
  prompt: PromptCache | None = None


def empty(c: ModelConfig, slots: int, capacity: int, dtype=jnp.float32) -> Cache:
  """A cache for `slots` sequences of up to `capacity` tokens."""
  return Cache(
    k_ZSKHW=jnp.zeros((c.depth, slots, c.kv_heads, c.head_dim, capacity), dtype),
    v_ZSKWH=jnp.zeros((c.depth, slots, c.kv_heads, capacity, c.head_dim), dtype),
    length_S=jnp.zeros((slots,), jnp.int32),
  )
