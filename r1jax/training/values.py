"""Values and scores of given tokens, by a decoder with a scalar head.

Letters: B rows, L tokens in a row, D width.

The vocabulary has no part in it: hidden states go through a head of D numbers, and what
exists is [B, L].
"""

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.models import heads, transformer
from r1jax.models.config import ModelConfig
from r1jax.sharding import LOCAL, Partition
from r1jax.types import TokenRows


@struct.dataclass
class TokenValues:
  """Per-token float32 [B, L], 0 where the mask is 0.

  Attributes:
    values_BL: of the state that predicts token l, which has read the tokens before it:
      what a critic says before l is drawn.
    scores_BL: of the state that has read token l too: what a reward model says of a
      text, or of a step, that ends with it.
    routed: where tokens went, see `transformer.Routed`.
  """

  values_BL: jax.Array
  scores_BL: jax.Array
  routed: transformer.Routed | None = None


def token_values(
  c: ModelConfig,
  params: dict,
  rows: TokenRows,
  *,
  remat: str = "none",
  balance: bool = False,
  partition: Partition = LOCAL,
) -> TokenValues:
  """Values and scores at the masked tokens of packed rows.

  Args:
    params: {"model": parameters, "head": see `heads.head_specs`}.
    remat, balance: see `transformer.forward`.
  """
  replayed_ZBLK = None
  if rows.experts_BLZK is not None:
    replayed_ZBLK = jnp.moveaxis(jnp.asarray(rows.experts_BLZK), 2, 0)
  hidden_BLD, _, routed = transformer.forward(
    c,
    params["model"],
    rows.tokens_BL,
    rows.positions_BL,
    segments_BL=rows.segments_BL,
    parents_BL=rows.parents_BL,
    replayed_ZBLK=replayed_ZBLK,
    balance=balance,
    remat=remat,
    partition=partition,
  )
  read_BL = heads.scalars(params["head"], hidden_BLD, partition)
  inside_BL = jnp.asarray(rows.mask_BL) > 0
  # Before a masked token lies the state that predicts it, see `TokenRows`.
  values_BL, scores_BL = (
    jnp.where(inside_BL, x_BL, 0.0) for x_BL in (jnp.roll(read_BL, 1, axis=1), read_BL)
  )
  return TokenValues(values_BL, scores_BL, routed)
