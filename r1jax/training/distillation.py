"""How far a student's distributions are from a teacher's, the vocabulary in chunks.

Letters: B rows, L tokens in a row, P = L and a rest to whole chunks, D width of a
model, V vocabulary, C tokens in a chunk.

[B, L, V] never exists: as in `logprobs`, the two models' states before masked tokens,
and no others, go through their heads a chunk at a time, and the backward pass does each
chunk anew. The student alone has a gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.sharding import LOCAL, Partition
from r1jax.training.chunks import Chunks
from r1jax.training.logprobs import CHUNK
from r1jax.types import TokenRows

# Log-probs [C, V] of student and teacher -> divergences [C].
Divergence = Callable[[jax.Array, jax.Array], jax.Array]


@struct.dataclass
class Divergences:
  """Of the distributions that each token is drawn from.

  Attributes:
    divergence_BL: float32, 0 where the mask is 0.
    routed, further_routed: as of `TokenScores`, of the student; the second is None.
  """

  divergence_BL: jax.Array
  routed: transformer.Routed | None
  further_routed: None = None


def token_divergences(
  c: ModelConfig,
  params: dict,
  teacher: ModelConfig,
  teacher_params: dict,
  rows: TokenRows,
  *,
  divergence: Divergence,
  temperature: float = 1.0,
  remat: str = "none",
  chunk: int = CHUNK,
  balance: bool = False,
  partition: Partition = LOCAL,
) -> Divergences:
  """Of masked tokens of packed rows, under `params` and under a teacher's.

  Where one head has more rows than the other, which are padding if the two share a
  tokenizer, they are left out of both distributions.

  Args:
    divergence: differentiated by its first argument.
    temperature: of both distributions.
    chunk, balance: see `token_logprobs`.
  """
  settings = {
    "segments_BL": rows.segments_BL,
    "parents_BL": rows.parents_BL,
    "partition": partition,
  }
  place = (rows.tokens_BL, rows.positions_BL)
  hidden_BLD, _, routed = transformer.forward(
    c, params, *place, remat=remat, balance=balance, **settings
  )
  other_BLD, _, _ = transformer.forward(teacher, teacher_params, *place, **settings)
  chunks = Chunks(rows.mask_BL, chunk)

  def before(x_BLD):
    return chunks.masked_first(jnp.roll(x_BLD, 1, axis=1))

  through = _heads(
    (_head(c, params)[0], _head(teacher, teacher_params)[0]),
    min(c.vocab, teacher.vocab),
    chunks,
    divergence,
    temperature,
    partition,
  )
  found_BP = through(
    before(hidden_BLD),
    _head(c, params)[1],
    before(other_BLD),
    _head(teacher, teacher_params)[1],
    chunks.count,
  )
  return Divergences(chunks.in_place(found_BP), routed)


def _head(c: ModelConfig, params: dict) -> tuple[str, jax.Array]:
  """(its axes, the head)."""
  return ("vd", params["embed"]) if c.tied_head else ("dv", params["head"])


def _heads(
  axes: tuple[str, str],
  vocab: int,
  chunks: Chunks,
  divergence: Divergence,
  temperature: float,
  partition: Partition,
) -> Callable:
  """Chunks of some columns of all rows through both heads.

  It is (hidden_BPD, head, other_BPD, other_head, num_chunks) -> float32 [B, P], 0
  behind the chunks, with a gradient of the first two.

  Args:
    axes: "dv" or "vd", of the student's head and of the teacher's.
    vocab: entries of both that are compared.
  """
  names = {"d": None, "v": "vocab"}
  head_axes, other_axes = (tuple(names[axis] for axis in one) for one in axes)

  def logp(hidden_CD, head, its_axes):
    logits_CV = jnp.einsum(
      f"cd,{its_axes}->cv", hidden_CD, head, preferred_element_type=jnp.float32
    )
    logits_CV = partition.constrain(logits_CV, ("batch", "vocab"))
    return jax.nn.log_softmax(logits_CV[:, :vocab] / temperature)

  def of_chunk(hidden_CD, head, other_CD, other_head):
    return divergence(
      logp(hidden_CD, head, axes[0]), logp(other_CD, other_head, axes[1])
    )

  def forward(hidden_BPD, head, other_BPD, other_head, num_chunks):
    # Gathered over fsdp once, not in every chunk.
    head = partition.constrain(head, head_axes)
    other_head = partition.constrain(other_head, other_axes)

    def add(index, found_BP):
      hidden_CD, other_CD = (
        chunks.take(hidden_BPD, index),
        chunks.take(other_BPD, index),
      )
      return chunks.put(
        found_BP, of_chunk(hidden_CD, head, other_CD, other_head), index
      )

    empty_BP = jnp.zeros(hidden_BPD.shape[:2], jnp.float32)
    empty_BP = partition.constrain(empty_BP, ("batch", None))
    found_BP = jax.lax.fori_loop(0, num_chunks, add, empty_BP)
    return found_BP, (hidden_BPD, head, other_BPD, other_head, num_chunks)

  def backward(kept, slope_BP):
    hidden_BPD, head, other_BPD, other_head, num_chunks = kept

    def add(index, sums):
      hidden_slope_BPD, head_slope = sums
      other_CD = chunks.take(other_BPD, index)
      _, pull = jax.vjp(
        lambda hidden_CD, head: of_chunk(hidden_CD, head, other_CD, other_head),
        chunks.take(hidden_BPD, index),
        head,
      )
      slope_CD, more = pull(chunks.take(slope_BP, index))
      slope_CD = partition.constrain(slope_CD, ("batch", None))
      head_slope += partition.constrain(more, head_axes)
      return chunks.put(hidden_slope_BPD, slope_CD, index), head_slope

    nothing = (
      partition.constrain(jnp.zeros_like(hidden_BPD), ("batch", None, None)),
      partition.constrain(jnp.zeros(head.shape, jnp.float32), head_axes),
    )
    hidden_slope_BPD, head_slope = jax.lax.fori_loop(0, num_chunks, add, nothing)
    return hidden_slope_BPD, head_slope.astype(head.dtype), None, None, None

  through = jax.custom_vjp(lambda *given: forward(*given)[0])
  through.defvjp(forward, backward)
  return through
