"""Log-probs and entropy of given tokens, the vocabulary in chunks.

Letters: B rows, L tokens in a row, P = L and a rest to whole chunks, D width,
V vocabulary, C tokens in a chunk.

[B, L, V] never exists: the hidden states before masked tokens, and no others, go
through the vocabulary a chunk at a time, and the backward pass does each chunk anew.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.sharding import LOCAL, Partition
from r1jax.training.chunks import Chunks
from r1jax.types import TokenRows

CHUNK = 512
# Raw logits [C, V] -> log-probs [C, V] of the distribution that a sampler draws from.
ShapeLogits = Callable[[jax.Array], jax.Array]


@struct.dataclass
class TokenScores:
  """Per-token float32 [B, L], index l speaking of token l; 0 where the mask is 0.

  Attributes:
    logp_BL: log-prob under softmax(logits / temperature).
    entropy_BL: of that distribution, in nats, without a gradient where none was asked.
    shaped_logp_BL: under the distribution that a sampler with truncation draws from,
      no gradient; equals logp_BL where nothing is truncated.
    further_BL: log-prob by the module that predicts one token further, 0 also on the
      first two tokens of a segment; None where not asked.
    routed, further_routed: where tokens went, see `transformer.Routed`; the second in
      the module that predicts one token further.
  """

  logp_BL: jax.Array
  entropy_BL: jax.Array
  shaped_logp_BL: jax.Array
  further_BL: jax.Array | None = None
  routed: transformer.Routed | None = None
  further_routed: transformer.Routed | None = None


def token_logprobs(
  c: ModelConfig,
  params: dict,
  rows: TokenRows,
  *,
  temperature: float | jax.Array = 1.0,
  shape_logits: ShapeLogits | None = None,
  remat: str = "none",
  chunk: int = CHUNK,
  balance: bool = False,
  further: bool = False,
  entropy_gradient: bool = False,
  partition: Partition = LOCAL,
) -> TokenScores:
  """Scores the masked tokens of packed rows under `params`.

  Args:
    temperature: the one the tokens were drawn at, above 0.
    shape_logits: None where the sampler truncates nothing.
    chunk: tokens that go through the vocabulary at a time, see `Chunks`.
    balance: measure how evenly sequences use the experts, see `transformer.forward`.
    further: score the module that predicts one token further too.
    entropy_gradient: let the entropy have one; the backward pass then does more.
  """
  settings = {
    "segments_BL": rows.segments_BL,
    "parents_BL": rows.parents_BL,
    "balance": balance,
    "remat": remat,
    "partition": partition,
  }
  replayed_ZBLK = None
  if rows.experts_BLZK is not None:
    replayed_ZBLK = jnp.moveaxis(jnp.asarray(rows.experts_BLZK), 2, 0)
  hidden_BLD, _, routed = transformer.forward(
    c,
    params,
    rows.tokens_BL,
    rows.positions_BL,
    replayed_ZBLK=replayed_ZBLK,
    **settings,
  )
  chunks = Chunks(rows.mask_BL, chunk)
  # A tied head is taken as the embeddings lie; transposed it would be copied.
  axes, head = ("vd", params["embed"]) if c.tied_head else ("dv", params["head"])
  tokens_BL, segments_BL = map(jnp.asarray, (rows.tokens_BL, rows.segments_BL))
  through = _vocabulary(axes, chunks, shape_logits, entropy_gradient, partition)

  def score(hidden_BLD, ahead):
    """Scores of each masked token from the state `ahead` tokens before it."""
    found = through(
      chunks.masked_first(jnp.roll(hidden_BLD, ahead, axis=1)),
      head,
      chunks.masked_first(tokens_BL),
      jnp.asarray(temperature, jnp.float32),
      chunks.count,
    )
    return [chunks.in_place(x_BP) for x_BP in found]

  scores = TokenScores(*score(hidden_BLD, 1), routed=routed)
  if not further:
    return scores
  hidden_BLD, further_routed = transformer.predict_further(
    c, params, hidden_BLD, tokens_BL, rows.positions_BL, **settings
  )
  inside_BL = segments_BL == jnp.roll(segments_BL, 2, axis=1)
  inside_BL &= jnp.arange(tokens_BL.shape[1])[None] > 1
  further_BL = jnp.where(inside_BL, score(hidden_BLD, 2)[0], 0.0)
  return scores.replace(further_BL=further_BL, further_routed=further_routed)


def _vocabulary(
  axes: str,
  chunks: Chunks,
  shape_logits: ShapeLogits | None,
  entropy_gradient: bool,
  partition: Partition,
) -> Callable:
  """Chunks of some columns of all rows through the vocabulary.

  It is (hidden_BPD, head, tokens_BP, temperature, num_chunks) -> (log-probs, entropies,
  log-probs under the shaped logits), float32 [B, P], 0 behind the chunks. The first has
  a gradient, of states and head: by the logits it is one at the token less the
  probabilities. The second has one where asked, -p (log p + entropy); the third none.

  Args:
    axes: of the head, "dv" or "vd".
  """
  names = {"d": None, "v": "vocab"}
  head_axes = tuple(names[axis] for axis in axes)

  def product(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)

  def logits_of(hidden_CD, head):
    logits_CV = product(f"cd,{axes}->cv", hidden_CD, head)
    return partition.constrain(logits_CV, ("batch", "vocab"))

  def forward(hidden_BPD, head, tokens_BP, temperature, num_chunks):
    # Gathered over fsdp once, not in every chunk.
    head = partition.constrain(head, head_axes)

    def score(index, scores):
      tokens_C1 = chunks.take(tokens_BP, index)[:, None]
      raw_CV = logits_of(chunks.take(hidden_BPD, index), head)
      logits_CV = raw_CV / temperature
      top_C1 = logits_CV.max(axis=-1, keepdims=True)
      mass_CV = jnp.exp(logits_CV - top_C1)
      total_C1 = mass_CV.sum(axis=-1, keepdims=True)
      mean_C1 = (mass_CV * (logits_CV - top_C1)).sum(-1, keepdims=True) / total_C1
      logits_C1 = jnp.take_along_axis(logits_CV, tokens_C1, axis=-1)
      logp_C1 = shaped_C1 = logits_C1 - top_C1 - jnp.log(total_C1)
      if shape_logits is not None:
        shaped_C1 = jnp.take_along_axis(shape_logits(raw_CV), tokens_C1, axis=-1)
      entropy_C1 = jnp.log(total_C1) - mean_C1
      normaliser_C1 = jnp.log(total_C1) + top_C1
      new = (logp_C1, entropy_C1, shaped_C1, normaliser_C1)
      return tuple(
        chunks.put(x, x_C1, index) for x, x_C1 in zip(scores, new, strict=True)
      )

    empty_BP = jnp.zeros(tokens_BP.shape, jnp.float32)
    empty_BP = partition.constrain(empty_BP, ("batch", None))
    *scores, normaliser_BP = jax.lax.fori_loop(0, num_chunks, score, (empty_BP,) * 4)
    given = (hidden_BPD, head, tokens_BP, temperature, num_chunks)
    return tuple(scores), (*given, normaliser_BP)

  def backward(kept, slopes):
    hidden_BPD, head, tokens_BP, temperature, num_chunks, normaliser_BP = kept

    def add(index, sums):
      hidden_slope_BPD, head_slope = sums
      hidden_CD = chunks.take(hidden_BPD, index)
      logits_CV = logits_of(hidden_CD, head) / temperature
      prob_CV = jnp.exp(logits_CV - chunks.take(normaliser_BP, index)[:, None])
      number_CV = jax.lax.broadcasted_iota(jnp.int32, prob_CV.shape, 1)
      is_token_CV = number_CV == chunks.take(tokens_BP, index)[:, None]
      slope_C1 = chunks.take(slopes[0], index)[:, None] / temperature
      slope_CV = slope_C1 * (is_token_CV - prob_CV)
      if entropy_gradient:
        logp_CV = logits_CV - chunks.take(normaliser_BP, index)[:, None]
        entropy_C1 = -(prob_CV * logp_CV).sum(axis=-1, keepdims=True)
        slope_C1 = chunks.take(slopes[1], index)[:, None] / temperature
        slope_CV -= slope_C1 * prob_CV * (logp_CV + entropy_C1)
      slope_CV = partition.constrain(slope_CV.astype(head.dtype), ("batch", "vocab"))
      slope_CD = product(f"cv,{axes}->cd", slope_CV, head).astype(hidden_CD.dtype)
      slope_CD = partition.constrain(slope_CD, ("batch", None))
      head_slope += product(f"cd,cv->{axes}", hidden_CD, slope_CV)
      return (
        chunks.put(hidden_slope_BPD, slope_CD, index),
        partition.constrain(head_slope, head_axes),
      )

    nothing = (
      partition.constrain(jnp.zeros_like(hidden_BPD), ("batch", None, None)),
      partition.constrain(jnp.zeros(head.shape, jnp.float32), head_axes),
    )
    hidden_slope_BPD, head_slope = jax.lax.fori_loop(0, num_chunks, add, nothing)
    return hidden_slope_BPD, head_slope.astype(head.dtype), None, None, None

  through = jax.custom_vjp(lambda *given: forward(*given)[0])
  through.defvjp(forward, backward)
  return through
