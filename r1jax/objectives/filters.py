"""Which groups are trained on, and which problems are asked.

Letters: Q prompts, G samples per prompt, N problems. numpy, on the host.
"""

import numpy as np


def everything(correct_QG: np.ndarray) -> np.ndarray:
  """All groups."""
  return np.ones(len(correct_QG), bool)


def mixed(correct_QG: np.ndarray) -> np.ndarray:
  """Groups with a right answer and a wrong one: 0 < correct < G.

  DAPO (arXiv 2503.14476) section 3.2, dynamic sampling: the others have no advantage
  and would thin the batch out. They cost their answers all the same. Groups of problems
  without a gold answer stay, for other rewards tell their answers apart.

  Args:
    correct_QG: 1 where the answer is right, NaN where there is no gold.
  """
  right_QG = np.asarray(correct_QG) > 0
  has_both_Q = right_QG.any(axis=1) & ~right_QG.all(axis=1)
  return has_both_Q | np.isnan(correct_QG).all(axis=1)


FILTERS = {"none": everything, "mixed": mixed}


def running_rate(
  rate_N: np.ndarray,
  problem_Q: np.ndarray,
  correct_QG: np.ndarray,
  *,
  decay: float,
) -> np.ndarray:
  """Share of right answers to each problem, as a mean in which the past fades.

  Args:
    rate_N: the shares before, NaN for a problem that was never asked, or that has no
      gold answer.
    problem_Q: the number of each group's problem; one asked twice counts twice.
    decay: weight of the share before, in [0, 1); the first share counts whole.
  """
  rate_N = np.array(rate_N, np.float64)
  for problem, share in zip(problem_Q, np.mean(correct_QG, axis=1), strict=True):
    before = rate_N[problem]
    rate_N[problem] = (
      share if np.isnan(before) else before + (1 - decay) * (share - before)
    )
  return rate_N


def curriculum_weights(rate_N: np.ndarray, *, floor: float) -> np.ndarray:
  """Probability of asking each problem: p (1 - p), the variance of its reward.

  A group's gradient is largest where half of its answers are right and none where all
  or no answers are (Bae et al., arXiv 2504.03380). A problem of which that is not
  known counts as half right.

  Args:
    rate_N: shares of right answers, NaN for a problem that was never asked, or that
      has no gold answer.
    floor: the least weight before they are made to add up to 1, in (0, 0.25]; above 0
      so that a problem now solved, or not yet, is asked again some day.
  """
  rate_N = np.where(np.isnan(rate_N), 0.5, rate_N)
  weight_N = np.maximum(rate_N * (1 - rate_N), floor)
  return weight_N / weight_N.sum()
