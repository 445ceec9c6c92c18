"""Supervised training: next-token cross-entropy, in nats.

Letters: B rows, L tokens in a row.
"""

import jax

from r1jax.objectives import reduce


def cross_entropy(
  logp_BL: jax.Array, mask_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(sum of -logp over trained tokens, number of them).

  Args:
    logp_BL: log-prob of each token given those before it in its sequence.
    mask_BL: 1 on tokens trained on; elsewhere the log-prob may be anything.
  """
  weight_BL, count = reduce.token_weights(mask_BL, mask_BL, reduction="token_mean")
  return reduce.weighted_sum(-logp_BL, weight_BL), count
