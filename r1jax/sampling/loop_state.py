"""What a rollout is compiled for, what it is given, and what its loop changes.

Letters: Q prompts, G samples, B = Q * G rows to make, S slots that make them, P prompt
slots, T completion slots, V vocabulary, Z layers with experts, K experts of a token, J
drafted tokens, L = 1 + J tokens fed to a slot in a step, U queues of N rows.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.errors import one_of
from r1jax.models import cache as caches
from r1jax.models import quantized
from r1jax.sampling import drafts, logits
from r1jax.sharding import Partition
from r1jax.types import Rollout

IDLE = -1  # the row of a slot that has nothing left to do
# What is counted of a rollout, see `types.Rollout`.
COUNTS = (
  "prefill_tokens",
  *("decode_tokens", "steps", "slot_steps", "idle_slot_steps"),
  *("drafted_tokens", "accepted_tokens"),
)
_SMALLEST_WINDOW = 32
_MOST_WINDOWS = 6


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a rollout is compiled for.

  Attributes:
    samples, max_tokens: G and T.
    slots: S; None means one per row. Fewer refill as rows end.
    windows: numbers of columns that are attended to alone, up to T; None means
      `windows_of(T)`. Each compiles a step of its own.
    record_experts: the experts that tokens went through are part of the result.
    plain_logp: so are log-probs under softmax(logits).
    penalises: some row may have a repetition penalty.
    draft: what drafts tokens, one of `drafts.KINDS`, or "".
    draft_tokens: J.
    cache: what caches are held in, one of `quantized.CACHES`; "" is the weights' dtype.
  """

  samples: int
  max_tokens: int
  slots: int | None = None
  windows: tuple[int, ...] | None = None
  record_experts: bool = False
  plain_logp: bool = False
  penalises: bool = False
  draft: str = ""
  draft_tokens: int = 0
  cache: str = ""

  def __post_init__(self):
    one_of(self.cache, quantized.CACHES, key="config.rollout.cache")
    drafts.check(self.draft, self.draft_tokens, penalises=self.penalises)


@struct.dataclass
class Prompts:
  """Prompts of a rollout.

  Attributes:
    tokens_QP: int32, right-padded; at least one token each.
    length_Q: int32.
    problem_Q: int32 number of the problem (`prng.number_of(problem.id)`), keys draws.
  """

  tokens_QP: jax.Array
  length_Q: jax.Array
  problem_Q: jax.Array


@struct.dataclass
class Begun:
  """Rows that an earlier rollout left, to go on with as if it had not ended.

  Rows that have not begun have length 0. At most S rows are between their first and
  last token.

  Attributes:
    tokens_BT, logp_BT, plain_logp_BT, length_B, stopped_B: as of `types.Rollout`.
    done_B: bool, rows that are complete.
    key_BX: uint32, key data that the draws of rows of an earlier rollout derive from.
    has_key_B: bool, rows of an earlier rollout.
  """

  tokens_BT: jax.Array
  logp_BT: jax.Array
  plain_logp_BT: jax.Array | None
  length_B: jax.Array
  stopped_B: jax.Array
  done_B: jax.Array
  key_BX: jax.Array
  has_key_B: jax.Array


@struct.dataclass
class DecodeState:
  """Everything that the loop changes.

  Attributes:
    cache: shared prompts and what each slot wrote itself.
    token_S: the token that each slot feeds next.
    draft_SJ: tokens that are believed to follow it.
    row_S: the row that each slot works on, IDLE when the queue is empty.
    queue_UN, queued_U, next_U: rows to do, how many, and how many of them are taken;
      slots and rows are split evenly among queues, in order.
    prompts: what is asked.
    row_keys_B: what a row's draws derive from.
    stop_state_S: what each slot's text may be the beginning of, see `stops`.
    seen_QV, seen_SV: tokens that penalties concern, or None.
    columns: columns of the ring ever written to.
    done_B: rows that are complete.
    counts: int32 scalars, see `types.Rollout`.
    experts_BTZK: where the tokens fed went, or None where that is not recorded.
  """

  cache: caches.Cache
  token_S: jax.Array
  draft_SJ: jax.Array
  row_S: jax.Array
  queue_UN: jax.Array
  queued_U: jax.Array
  next_U: jax.Array
  prompts: Prompts
  row_keys_B: jax.Array
  stop_state_S: jax.Array
  seen_QV: jax.Array | None
  seen_SV: jax.Array | None
  columns: jax.Array
  tokens_BT: jax.Array
  logp_BT: jax.Array
  plain_logp_BT: jax.Array | None
  length_B: jax.Array
  stopped_B: jax.Array
  done_B: jax.Array
  counts: dict[str, jax.Array]
  experts_BTZK: jax.Array | None


def windows_of(max_tokens: int) -> tuple[int, ...]:
  """Attention windows: a step pays for the smallest that holds the columns in use.

  Each is at least half of the next one; few, since each compiles a step of its own.
  """
  most = _MOST_WINDOWS - 1
  ratio = min(max(max_tokens / _SMALLEST_WINDOW, 1) ** (1 / most), 2)
  parts = {round(max_tokens / ratio**i / _SMALLEST_WINDOW) for i in range(1, most + 1)}
  ends = [part * _SMALLEST_WINDOW for part in sorted(parts) if part]
  return (*[end for end in ends if end < max_tokens], max_tokens)


def rollout_of(
  state: DecodeState,
  weights_checksum: jax.Array,
  prompt_experts_QPZK: jax.Array | None = None,
) -> Rollout:
  """What a state holds, in the middle or at its end."""
  return Rollout(
    tokens_BT=state.tokens_BT,
    logp_BT=state.logp_BT,
    plain_logp_BT=state.plain_logp_BT,
    length_B=state.length_B,
    stopped_B=state.stopped_B,
    done_B=state.done_B,
    key_BX=jax.random.key_data(state.row_keys_B),
    counts=state.counts,
    weights_checksum=weights_checksum,
    prompt_experts_QPZK=prompt_experts_QPZK,
    experts_BTZK=state.experts_BTZK,
    num_prompts=len(state.prompts.length_Q),
  )


def state_shardings(state: DecodeState, partition: Partition) -> DecodeState:
  """Where a state lies: caches with their slots and heads, all else everywhere.

  Args:
    state: its shapes.
  """

  def of_leaf(leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
    if leaf.ndim < 4:
      return partition.sharding()
    return partition.fitting(leaf.shape, ("batch", "kv_heads", None, None))

  everywhere = jax.tree.map(lambda _: partition.sharding(), state)
  return everywhere.replace(cache=jax.tree.map(of_leaf, state.cache))


def placed(s: DecodeState, plan: Plan) -> DecodeState:
  """With the cache told which row each slot works on, and where it writes next."""
  row_S = jnp.where(s.row_S == IDLE, s.length_B.size, s.row_S)
  cache = s.cache.replace(prompt=s.cache.prompt.replace(row_S=row_S))
  if plan.draft_tokens:
    cache = cache.replace(column=cache.length_S)
  return s.replace(cache=cache)


def of_rows(controls: logits.Controls, row_S: jax.Array) -> logits.Controls:
  """Those of each slot."""
  return jax.tree.map(lambda leaf: leaf[jnp.maximum(row_S, 0)], controls)


def last_tokens(prompts: Prompts) -> jax.Array:
  """The last token of each prompt, int32 [Q]."""
  last_Q1 = prompts.length_Q[:, None] - 1
  return jnp.take_along_axis(prompts.tokens_QP, last_Q1, axis=1)[:, 0]
