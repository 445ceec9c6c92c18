"""Keys and values of tokens already seen, in two parts.

Letters: Q prompts, G samples of a prompt, B = Q * G rows, S slots, P prompt slots, W
own columns, K kv heads, H head width.

A prompt is prefilled once and read by all of its samples; what a slot writes itself
lies in its own part. Every layer has arrays of its own, and the own part is several
arrays behind one another, since a slice of an array would be copied in every step.

Own columns are a ring: all slots write to the same column, one further each step, and a
slot's tokens are the last `length_S` columns. So a write is one contiguous store, and a
slot that starts over needs no room but what the ring has.

Keys are held as [..., H, W] so that a decode step's scores are plain matrix products
over contiguous positions (twice as fast on CPU as [..., W, H]). Of latent attention the
cache holds the latent and, behind it, the rotary key: together the key of a single kv
head. There are no values, since these lie in the latent.

An int8 cache has a float32 scale for every column of a slot's head, one of its key and
one of its value.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from r1jax import trees
from r1jax.models.config import ModelConfig
from r1jax.models.quantized import Held, Quantized
from r1jax.sharding import LOCAL, Partition

BLOCK = 128  # columns that the kernel for GPUs reads at a time


@struct.dataclass
class PromptCache:
  """Read-only keys and values of Q prompts.

  Attributes:
    keys, values: of each layer [Q, K, H, P] and [Q, K, P, H], or None for values.
    length_Q: int32, valid positions of each prompt.
    row_S: int32, the row that each slot works on: sample `row % samples` of prompt
      `row // samples`; B where it has none.
    samples: G.
    queues: equal parts of the slots, each of which works on its part of the rows.
  """

  keys: tuple[Held, ...]
  values: tuple[Held | None, ...]
  length_Q: jax.Array
  row_S: jax.Array
  samples: int = struct.field(pytree_node=False)
  queues: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class Cache:
  """Own part of S slots, and the prompt part they share (None while prefilling).

  Attributes:
    keys, values: of each layer, arrays [S, K, H, W_i] and [S, K, W_i, H] whose columns
      follow one another; no values where they lie in the keys.
    length_S: int32, own tokens held by each slot.
    column: int32, where the next token is written, of all slots or [S].
    filled_at_once: there is nothing in it, and the next tokens will be all it has.
  """

  keys: tuple[tuple[Held, ...], ...]
  values: tuple[tuple[Held, ...], ...]
  length_S: jax.Array
  column: jax.Array
  prompt: PromptCache | None = None
  filled_at_once: bool = struct.field(pytree_node=False, default=False)

  @property
  def windows(self) -> tuple[int, ...]:
    """How many columns lie up to the end of each array of a layer."""
    return tuple(itertools.accumulate(k_SKHW.shape[-1] for k_SKHW in self.keys[0]))

  @property
  def num_columns(self) -> int:
    """W, of all arrays of a layer together."""
    return self.windows[-1]


def whole_blocks(columns: int) -> int:
  """At least so many columns."""
  return -(-columns // BLOCK) * BLOCK


def token_bytes(c: ModelConfig, dtype) -> int:
  """Of a token's keys and values in all layers, and their scales."""
  one = jax.eval_shape(functools.partial(empty, c, 1, 1, dtype))
  return trees.num_bytes((one.keys, one.values))


def empty(
  c: ModelConfig,
  slots: int,
  capacity: int,
  dtype=jnp.float32,
  *,
  windows: Sequence[int] | None = None,
  further: bool = False,
  partition: Partition = LOCAL,
) -> Cache:
  """A cache for `slots` sequences of up to `capacity` tokens.

  Args:
    dtype: int8 gets scales beside it.
    windows: increasing, up to the capacity: how many columns may be attended to alone.
    further: the module that predicts one token further is one more layer, the last.
    partition: splits slots like a batch, and heads, where their number divides.
  """
  heads, width = c.kv_heads, c.head_dim
  if c.latent is not None:
    heads, width = 1, c.latent.kv_rank + c.latent.rope_dim
  ends = [capacity] if windows is None else list(windows)
  sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]

  def array(columns: int, axis: int) -> Held:
    shape = [slots, heads, columns, columns]
    shape[axis] = width
    made: Held = jnp.zeros(shape, dtype)
    if made.dtype == jnp.int8:
      shape[axis] = 1
      made = Quantized(made, jnp.ones(shape, jnp.float32))
    return jax.tree.map(
      lambda leaf: partition.constrain_fitting(leaf, ("batch", "kv_heads", None, None)),
      made,
    )

  depth = c.depth + further
  keys = tuple(tuple(array(size, -2) for size in sizes) for _ in range(depth))
  values = ((),) * depth
  if c.latent is None:
    values = tuple(tuple(array(size, -1) for size in sizes) for _ in range(depth))
  return Cache(keys, values, jnp.zeros((slots,), jnp.int32), jnp.asarray(0, jnp.int32))
