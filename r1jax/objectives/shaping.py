"""Points for the length of an answer, added to its reward before advantages are taken.

Letters: Q prompts, G samples per prompt. numpy, on the host.
"""

import numpy as np

from r1jax.errors import InputError


def soft_overlong(length_QG: np.ndarray, *, max_tokens: int, buffer: int) -> np.ndarray:
  """0 up to max_tokens - buffer, then down in a line to -1 at max_tokens, -1 beyond.

  DAPO (arXiv 2503.14476) section 3.4, beside rewards of +1 and -1.

  Args:
    length_QG: tokens of each answer.
    buffer: tokens before `max_tokens` over which the penalty grows.
  """
  if not 0 < buffer <= max_tokens:
    raise InputError(
      f"config.shaping.overlong_buffer={buffer} must be above 0 and at most "
      f"config.rollout.max_tokens={max_tokens}"
    )
  return np.clip((max_tokens - buffer - np.asarray(length_QG)) / buffer, -1.0, 0.0)


def cosine_length(
  correct_QG: np.ndarray,
  length_QG: np.ndarray,
  *,
  max_tokens: int,
  correct: tuple[float, float],
  wrong: tuple[float, float],
  exceeded: float,
) -> np.ndarray:
  """Points that go with the length along half a cosine, apart for right and wrong.

  Yeo et al. (arXiv 2502.03373): `correct` falls, so that of right answers
  the short are better, and `wrong` rises, so that a hard problem is thought about.

  Args:
    correct_QG: 1 where the answer is right.
    correct, wrong: points of an answer of no length, and of one of `max_tokens`.
    exceeded: points of an answer of `max_tokens` or more.
  """
  right_QG = np.asarray(correct_QG) > 0
  share_QG = 0.5 * (1 + np.cos(np.pi * np.asarray(length_QG) / max_tokens))
  first_QG = np.where(right_QG, correct[0], wrong[0])
  last_QG = np.where(right_QG, correct[1], wrong[1])
  points_QG = last_QG + (first_QG - last_QG) * share_QG
  return np.where(np.asarray(length_QG) >= max_tokens, exceeded, points_QG)


def shortest_correct(
  correct_QG: np.ndarray, length_QG: np.ndarray, *, bonus: float
) -> np.ndarray:
  """`bonus` points for the shortest right answer of each group; ties share it whole."""
  right_QG = np.asarray(correct_QG) > 0
  among_QG = np.where(right_QG, length_QG, np.inf)
  is_shortest_QG = right_QG & (among_QG == among_QG.min(axis=1, keepdims=True))
  return np.where(is_shortest_QG, bonus, 0.0)


def outcome_gate(correct_QG: np.ndarray, points_QG: np.ndarray) -> np.ndarray:
  """`points_QG` where the answer is right, else 0: no shape pays for a wrong one."""
  return np.where(np.asarray(correct_QG) > 0, points_QG, 0.0)
