"""Records that cross a border between packages.

Letters: Q prompts, G samples per prompt, B rows, P prompt slots, T completion slots,
L tokens in a row, V vocabulary, Z layers with experts, E experts, K experts of a token.

Prompts and completions are right-padded: a prompt is a cache part of its own, so
nothing needs the two to meet in one row. Masks are 1 on tokens that may be trained on.
They come from lengths, never from token values, so pad and end-of-text may share an id.
`[..., l]` of a per-token quantity speaks of token l itself: its log-prob given the
tokens before it, its mask, its advantage.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Problem:
  """One thing to solve.

  Attributes:
    id: unique and stable; random draws and samples are keyed by it.
    prompt: the question as text, before any template.
    answer: the gold answer as text, in the form the verifier reads.
    verifier: name of the function in `rewards` that judges accuracy.
    meta: JSON-like extras that the verifier or the report may read.
    messages: a conversation, for chat templates; empty means [user: prompt].
  """

  id: str
  prompt: str
  answer: str
  verifier: str
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  messages: tuple[Mapping[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """One array to be.

  Attributes:
    shape: global shape.
    axes: logical name of each axis ("embed", "heads", ...), see `sharding.py`.
    fan_in: drawn from a truncated normal of variance 1 / fan_in; 0 means constant.
    fill: the constant where fan_in is 0.
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  fan_in: int = 0
  fill: float = 1.0


@struct.dataclass
class TokenRows:
  """Packed rows: several sequences lie one behind another in a row of L tokens.

  A prompt may lie there once, with several of its completions behind it: it is then a
  segment of all its tokens but the last, and the segment of each completion begins with
  a copy of that one. Anywhere the state at l - 1 predicts a masked token l.

  Attributes:
    tokens_BL: int32 ids.
    positions_BL: int32, in the sequence: from 0, or on from a shared prompt.
    segments_BL: int32, 0 is padding, 1.. number the segments of a row.
    mask_BL: float32, 1 on tokens that may be trained on (never a segment's first).
    length_BL: float32, the number of masked tokens of the segment a token is in.
    experts_BLZK: int32, the experts that each token goes through (-1: those with the
      best scores), or None, which is -1 everywhere.
    parents_BL: int32, the segment that a token's own continues, which lies before it in
      the row; its own where there is none. None is that everywhere.
  """

  tokens_BL: Array
  positions_BL: Array
  segments_BL: Array
  mask_BL: Array
  length_BL: Array
  experts_BLZK: Array | None = None
  parents_BL: Array | None = None


@struct.dataclass
class Rollout:
  """What the sampler made: row b is sample b % G of prompt b // G.

  Attributes:
    tokens_BT: int32 ids drawn, garbage at and after `length_B`.
    logp_BT: float32 log-probs under the distribution drawn from (after temperature and
      truncation), 0 at and after `length_B`.
    length_B: int32, drawn tokens including the stop token.
    stopped_B: bool, True where a stop token ended the row, False where the limit did.
    done_B: bool, False where the rollout ended before the row did.
    key_BX: uint32, key data that the draws of each row derive from.
    counts: int32 scalars: prefill_tokens, decode_tokens, steps, slot_steps,
      idle_slot_steps, drafted_tokens, and accepted_tokens, which are those drafted that
      were drawn too.
    weights_checksum: uint32 scalar of the weights that drew (see `trees.checksum`).
    plain_logp_BT: as `logp_BT`, under softmax(logits); None where not asked for.
    prompt_experts_QPZK: int32, experts that the tokens of each prompt but its last went
      through; None where they were not recorded.
    experts_BTZK: the same, of the prompt's last token and all drawn ones but the last.
    num_prompts: Q.
  """

  tokens_BT: Array
  logp_BT: Array
  length_B: Array
  stopped_B: Array
  done_B: Array
  key_BX: Array
  counts: dict[str, Array]
  weights_checksum: Array
  plain_logp_BT: Array | None = None
  prompt_experts_QPZK: Array | None = None
  experts_BTZK: Array | None = None
  num_prompts: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class Experience:
  """Everything an update may see, token by token on packed rows (all float32).

  `logp_old_BL`, `logp_ref_BL` and `importance_BL` are None until scored; the last two
  stay None where no reference, and no truncated importance sampling, is used.
  """

  rows: TokenRows
  advantage_BL: Array
  logp_behaviour_BL: Array
  logp_old_BL: Array | None = None
  logp_ref_BL: Array | None = None
  importance_BL: Array | None = None


@struct.dataclass
class TrainState:
  """What a training step changes: updates done, parameters, optimizer state."""

  step: Array
  params: Any
  opt_state: Any


@struct.dataclass
class Mean:
  """A sum and a count that travel apart, so that merging them stays exact."""

  total: Array
  count: Array

  def merge(self, other: "Mean") -> "Mean":
    return Mean(self.total + other.total, self.count + other.count)

  def value(self) -> Array:
    """Total over count; 0 for an empty mean."""
    return self.total / _numpy_of(self.count).maximum(self.count, 1)


@struct.dataclass
class Max:
  """The largest of numbers that are 0 or more."""

  top: Array

  def merge(self, other: "Max") -> "Max":
    return Max(_numpy_of(self.top).maximum(self.top, other.top))

  def value(self) -> Array:
    return self.top


@struct.dataclass
class Load:
  """Tokens that went to each expert of each layer; its value is how uneven that is."""

  tokens_ZE: Array

  def merge(self, other: "Load") -> "Load":
    return Load(self.tokens_ZE + other.tokens_ZE)

  def value(self) -> Array:
    """The largest load of a layer over its mean, the mean over layers."""
    numpy = _numpy_of(self.tokens_ZE)
    mean_Z = numpy.maximum(self.tokens_ZE.mean(axis=-1), 1e-9)
    return (self.tokens_ZE.max(axis=-1) / mean_Z).mean()


Statistic = Mean | Max | Load


def _numpy_of(array: Array) -> Any:
  """numpy for what is on the host already, where jax would compile a program."""
  return jax.numpy if isinstance(array, jax.Array) else np
