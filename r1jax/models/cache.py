"""Keys and values of tokens already seen, in two parts.

Letters: Z depth, Q prompts, S slots, P prompt slots, W own slots, K kv heads, H head
width.

A prompt is prefilled once and read by all of its samples; what a sample writes itself
lies in its own part. Keys are held as [..., H, W] so that a decode step's scores are
plain matrix products over contiguous positions (twice as fast on CPU as [..., W, H]).

Of latent attention the cache holds the latent and, behind it, the rotary key: together
the key of a single kv head. There are no values, since these lie in the latent.
"""

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.models.config import ModelConfig


@struct.dataclass
class PromptCache:
  """Read-only keys and values of Q prompts.

  Attributes:
    k_ZQKHP, v_ZQKPH: keys, and values or None.
    length_Q: int32, valid positions of each prompt.
    index_S: int32, the prompt that each slot continues.
  """

  k_ZQKHP: jax.Array
  v_ZQKPH: jax.Array | None
  length_Q: jax.Array
  index_S: jax.Array


@struct.dataclass
class Cache:
  """Own part of S slots, and the prompt part they share (None while prefilling).

  Attributes:
    k_ZSKHW, v_ZSKWH: keys, and values or None; position w of a slot is its w-th own
      token.
    length_S: int32, own tokens held by each slot. The next token is written there.
  """

  k_ZSKHW: jax.Array
  v_ZSKWH: jax.Array | None
  length_S: jax.Array
  prompt: PromptCache | None = None


def empty(c: ModelConfig, slots: int, capacity: int, dtype=jnp.float32) -> Cache:
  """A cache for `slots` sequences of up to `capacity` tokens."""
  heads, width = c.kv_heads, c.head_dim
  if c.latent is not None:
    heads, width = 1, c.latent.kv_rank + c.latent.rope_dim
  k_ZSKHW = jnp.zeros((c.depth, slots, heads, width, capacity), dtype)
  v_ZSKWH = None
  if c.latent is None:
    v_ZSKWH = jnp.zeros((c.depth, slots, heads, capacity, width), dtype)
  return Cache(k_ZSKHW, v_ZSKWH, length_S=jnp.zeros((slots,), jnp.int32))
