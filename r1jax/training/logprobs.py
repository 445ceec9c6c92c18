"""Log-probs and entropy of given tokens, the vocabulary in chunks.

Letters: B rows, L tokens, D width, V vocabulary, C tokens in a chunk.

[B, L, V] never exists: hidden states go through the vocabulary a chunk of tokens at a
time, and the backward pass recomputes each chunk.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.sharding import LOCAL, Partition
from r1jax.types import TokenRows

CHUNK = 512


@struct.dataclass
class TokenScores:
  """Per-token float32 [B, L], index l speaking of token l; 0 where the mask is 0.

  Attributes:
    logp_BL: log-prob under softmax(logits / temperature).
    entropy_BL: of that distribution, in nats, no gradient.
    shaped_logp_BL: under the distribution that a sampler with truncation draws from,
      no gradient; equals logp_BL where nothing is truncated.
    further_BL: log-prob by the module that predicts one token further, 0 also on the
      first two tokens of a sequence; None where not asked.
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
  shape_logits: Callable[[jax.Array], jax.Array] | None = None,
  remat: str = "none",
  chunk: int = CHUNK,
  balance: bool = False,
  further: bool = False,
  partition: Partition = LOCAL,
) -> TokenScores:
  """Scores the masked tokens of packed rows under `params`.

  Args:
    temperature: the one the tokens were drawn at, above 0.
    shape_logits: raw logits [C, V] -> log-probs [C, V] of the sampler's distribution.
    chunk: tokens of all rows together that go through the vocabulary at a time; one a
      row at least.
    balance: measure how evenly sequences use the experts, see `transformer.forward`.
    further: score the module that predicts one token further too.
  """
  settings = {
    "segments_BL": rows.segments_BL,
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
  # Token l is predicted from the state at l - 1. A chunk is some columns of every row,
  # so that a mesh splits the vocabulary's work like it splits the rows; the head is
  # gathered over fsdp once, not in every chunk.
  num_rows, length = rows.tokens_BL.shape
  columns = min(max(chunk // num_rows, 1), length)
  padding = -length % columns
  head_DV = partition.constrain(transformer.head_matrix(params), (None, "vocab"))

  def pieces(x_BL):
    """[B, L, ...] -> [chunks, B * columns, ...]."""
    inner = x_BL.shape[2:]
    padded = jnp.pad(x_BL, ((0, 0), (0, padding), *[(0, 0)] * len(inner)))
    split = padded.reshape(num_rows, -1, columns, *inner)
    return jnp.moveaxis(split, 1, 0).reshape(-1, num_rows * columns, *inner)

  @jax.checkpoint
  def score(hidden_CD, tokens_C):
    logits_CV = jnp.einsum(
      "cd,dv->cv", hidden_CD, head_DV, preferred_element_type=jnp.float32
    )
    logits_CV = partition.constrain(logits_CV, ("batch", "vocab"))
    logp_CV = jax.nn.log_softmax(logits_CV / temperature, axis=-1)
    logp_C = jnp.take_along_axis(logp_CV, tokens_C[:, None], axis=-1)[:, 0]
    frozen_CV = jax.lax.stop_gradient(logp_CV)
    entropy_C = -jnp.sum(jnp.exp(frozen_CV) * frozen_CV, axis=-1)
    shaped_C = jax.lax.stop_gradient(logp_C)
    if shape_logits is not None:
      shaped_CV = shape_logits(jax.lax.stop_gradient(logits_CV))
      shaped_C = jnp.take_along_axis(shaped_CV, tokens_C[:, None], axis=-1)[:, 0]
    return logp_C, entropy_C, shaped_C

  def chunk_of(carry, piece):
    return carry, score(*piece)

  tokens_BL = jnp.asarray(rows.tokens_BL)

  def scan(hidden_BLD, ahead):
    """Scores of each token from the state `ahead` tokens before it."""
    before_BLD = jnp.roll(hidden_BLD, ahead, axis=1)
    return jax.lax.scan(chunk_of, None, (pieces(before_BLD), pieces(tokens_BL)))[1]

  trained_BL = jnp.asarray(rows.mask_BL) > 0

  def whole(out):
    """[chunks, B * columns] -> [B, L], 0 where the mask is."""
    split = jnp.moveaxis(out.reshape(-1, num_rows, columns), 0, 1)
    return jnp.where(trained_BL, split.reshape(num_rows, -1)[:, :length], 0.0)

  scores = TokenScores(*map(whole, scan(hidden_BLD, 1)), routed=routed)
  if not further:
    return scores
  hidden_BLD, further_routed = transformer.predict_further(
    c, params, hidden_BLD, tokens_BL, rows.positions_BL, **settings
  )
  further_BL = jnp.where(
    jnp.asarray(rows.positions_BL) > 1, whole(scan(hidden_BLD, 2)[0]), 0.0
  )
  return scores.replace(further_BL=further_BL, further_routed=further_routed)
