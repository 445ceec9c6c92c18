"""pass@k: the chance that at least one of k samples is right."""

import math


def pass_at_k(n: int, c: int, k: int) -> float:
  """Unbiased estimate 1 - C(n - c, k) / C(n, k) from n samples with c right.

  Chen et al. 2021 (arXiv 2107.03374) Eq. 1.

  Raises:
    ValueError: unless 0 <= c <= n and 1 <= k <= n.
  """
  if not (0 <= c <= n and 1 <= k <= n):
    raise ValueError(f"pass@{k} from {n} samples with {c} right")
  return 1.0 - math.comb(n - c, k) / math.comb(n, k)
