"""95 % intervals for accuracies, and for means of a few values."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(successes: float, n: float) -> tuple[float, float]:
  """(low, high) of the success rate, given independent trials.

  Wilson (1927), doi:10.1080/01621459.1927.10502953. Stays inside [0, 1] and has a width
  even where all trials agree. No trials: (0, 1).
  """
  if n == 0:
    return 0.0, 1.0
  if not 0 <= successes <= n:
    raise ValueError(f"{successes} successes of {n} trials")
  rate, spread = successes / n, Z95**2 / n
  centre = rate + spread / 2
  half = Z95 * math.sqrt(rate * (1 - rate) / n + spread / (4 * n))
  low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
  # Rounding must not put the rate outside.
  return min(max(low, 0.0), rate), max(min(high, 1.0), rate)


def clustered_interval(
  accuracy_Q: Sequence[float], *, samples_per_problem: int = 1
) -> tuple[float, float]:
  """(low, high) of the mean accuracy over problems sampled several times each.

  Samples of one problem resemble each other, so they are worth fewer than as many
  independent trials: the number that would give the variance seen between problems
  (Kish's effective sample size), which lies between the number of problems and that of
  samples. `wilson` is then used with it; one sample a problem is exactly `wilson`.

  Args:
    accuracy_Q: mean accuracy of each problem, in [0, 1].
    samples_per_problem: how many samples each mean is over.
  """
  num_problems = len(accuracy_Q)
  if num_problems == 0:
    return 0.0, 1.0
  mean = math.fsum(accuracy_Q) / num_problems
  variance = math.fsum((x - mean) ** 2 for x in accuracy_Q) / num_problems
  trials = num_problems
  if 0 < mean < 1:
    most = num_problems * samples_per_problem
    alike = mean * (1 - mean)
    trials = (
      most
      if variance * most <= alike * num_problems
      else (num_problems * alike / variance)
    )
  return wilson(mean * trials, trials)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
  """(low, high) of the mean of independent values, by Student's t.

  Right for normal values, however few; two at least.
  """
  n = len(values)
  if n < 2:
    raise ValueError(f"{n} values; an interval needs two or more")
  mean = math.fsum(values) / n
  variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
  half = t95(n - 1) * math.sqrt(variance / n)
  return mean - half, mean + half


def t95(df: int) -> float:
  """The 97.5 % point of Student's t with a whole number of degrees of freedom."""
  low, high = 0.0, 13.0  # df=1: 12.7
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (low, middle) if _t_within(middle, df) > 0.95 else (middle, high)
  return high


def _t_within(t: float, df: int) -> float:
  """P(|T| <= t); Abramowitz and Stegun (1964), 26.7.3 and 26.7.4."""
  angle = math.atan(t / math.sqrt(df))
  odd = df % 2
  term = math.cos(angle) if odd else 1.0
  total = 0.0
  for k in range(odd + 2, df + 2, 2):
    total += term
    term *= math.cos(angle) ** 2 * (k - 1) / k
  within = math.sin(angle) * total
  return 2 / math.pi * (angle + within) if odd else within
