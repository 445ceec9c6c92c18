"""A number for each token: a linear head on the hidden states of any decoder.

Letters: B rows, L tokens in a row, D width.

A model with a head is the tree {"model": its parameters, "head": those of the head},
and a policy's critic, a reward model, an outcome and a process model are all of that
form. The head is float32 whatever the decoder computes in: a score is compared with
others that differ little, and D numbers cost nothing.
"""

import jax
import jax.numpy as jnp

from r1jax.models.config import ModelConfig
from r1jax.sharding import LOCAL, Partition
from r1jax.types import ParamSpec


def head_specs(c: ModelConfig) -> dict:
  """Nested dict of ParamSpec.

  A fresh head is 0, so that it says nothing before it has been taught: a critic's
  first baseline is no noise of the size of rewards, a reward model's first loss is that
  of a coin. The decoder has a gradient from the second update on; one linear layer has
  no symmetry that would have to be broken by a draw.
  """
  return {
    "weight": ParamSpec((c.width,), ("embed",), fill=0.0),
    "bias": ParamSpec((1,), (None,), fill=0.0),
  }


def scalars(
  head: dict, hidden_BLD: jax.Array, partition: Partition = LOCAL
) -> jax.Array:
  """Float32 [B, L] of the states that `transformer.forward` returns."""
  # Gathered, since the states lie whole on their devices.
  weight_D = partition.constrain(head["weight"].astype(jnp.float32), (None,))
  scalar_BL = jnp.einsum(
    "bld,d->bl",
    hidden_BLD.astype(jnp.float32),
    weight_D,
    precision=jax.lax.Precision.HIGHEST,
  )
  scalar_BL += head["bias"].astype(jnp.float32)[0]
  return partition.constrain(scalar_BL, ("batch", None))
