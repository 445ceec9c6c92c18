"""How good scores and probabilities are, beside the truth.

Letters: P pairs, N answers or steps.
"""

import numpy as np


def pair_accuracy(chosen_P: np.ndarray, rejected_P: np.ndarray) -> float:
  """Share of pairs whose chosen answer has the higher score; equal ones count half."""
  gap_P = np.asarray(chosen_P, np.float64) - np.asarray(rejected_P, np.float64)
  return float(np.mean(0.5 * (np.sign(gap_P) + 1)))


def auc(score_N: np.ndarray, is_right_N: np.ndarray) -> float:
  """Chance that a right answer has a higher score than a wrong one; ties count half.

  The area under the ROC curve, by ranks (Mann and Whitney 1947). NaN where all are
  right, or none.
  """
  score_N, is_right_N = np.asarray(score_N), np.asarray(is_right_N, bool)
  num_right = int(is_right_N.sum())
  num_wrong = len(is_right_N) - num_right
  if not num_right or not num_wrong:
    return float("nan")
  _, place_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
  # The mean rank, from 1, of those with one score.
  rank = np.cumsum(count) - (count - 1) / 2
  wins = rank[place_N][is_right_N].sum() - num_right * (num_right + 1) / 2
  return float(wins / (num_right * num_wrong))


def brier(prob_N: np.ndarray, label_N: np.ndarray) -> float:
  """Mean squared distance of probabilities from labels; 0.25 is that of saying 0.5."""
  return float(np.mean(np.square(np.subtract(prob_N, label_N, dtype=np.float64))))
