"""Losses and uses of models that give a text, or a step of it, one number.

Letters: P pairs, N texts or steps, K steps of one solution.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def pairwise(
  chosen_P: jax.Array, rejected_P: jax.Array, margin_P: jax.Array | float = 0.0
) -> jax.Array:
  """-log sigmoid(chosen - rejected - margin) of each pair: Bradley-Terry.

  Ouyang et al. (arXiv 2203.02155) Eq. 1; the margin is Llama 2's (arXiv 2307.09288
  section 3.2.2), larger for pairs that differ more, and 0 in Llama 3 and R1.

  Args:
    chosen_P, rejected_P: scores of the two texts of a pair.
  """
  return -jax.nn.log_sigmoid(chosen_P - rejected_P - margin_P)


def pointwise(score_N: jax.Array, label_N: jax.Array) -> jax.Array:
  """Binary cross-entropy of sigmoid(score), for each text or step.

  R1's safety model reads whole answers (arXiv 2501.12948, supplement), Math-Shepherd's
  process model the end of each step (arXiv 2312.08935 section 3.2; Departs: the paper
  prints the sum without its minus).

  Args:
    label_N: 1 safe or right, 0 not, or a share between them.
  """
  return -(
    label_N * jax.nn.log_sigmoid(score_N)
    + (1 - label_N) * jax.nn.log_sigmoid(-jnp.asarray(score_N))
  )


def minimum(prob_K: np.ndarray) -> float:
  """A solution is as good as its worst step: Math-Shepherd (arXiv 2312.08935)."""
  return float(np.min(prob_K))


def product(prob_K: np.ndarray) -> float:
  """The chance that all steps are right: PRM800K (arXiv 2305.20050)."""
  return float(np.prod(prob_K))


AGGREGATIONS: dict[str, Callable[[np.ndarray], float]] = {
  "min": minimum,
  "product": product,
}


def hard_labels(hits_K: np.ndarray) -> np.ndarray:
  """1 for steps from which any rollout reached the answer: Math-Shepherd Eq. 3.

  Args:
    hits_K: how many of a step's rollouts did.
  """
  return (np.asarray(hits_K) > 0).astype(np.float32)


def soft_labels(hits_K: np.ndarray, num_rollouts: int) -> np.ndarray:
  """The share of rollouts that reached the answer: Math-Shepherd Eq. 4."""
  return np.asarray(hits_K, np.float32) / num_rollouts


def vote(answers: Sequence[str], scores: Sequence[float]) -> str:
  """The answer whose solutions have the largest sum of scores, the first of equals."""
  totals: dict[str, float] = {}
  for answer, score in zip(answers, scores, strict=True):
    totals[answer] = totals.get(answer, 0.0) + score
  return max(totals, key=totals.__getitem__)
