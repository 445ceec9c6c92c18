"""How much of a set is of each category: counts, or shares of the whole."""

import math
import random
from collections.abc import Mapping, Sequence

from r1jax import prng
from r1jax.errors import InputError


def check_shares(shares: Mapping[str, float]) -> None:
  """Raises InputError where they are neither counts nor shares that make a whole."""
  values = list(shares.values())
  are_counts = all(isinstance(value, int) and value >= 0 for value in values)
  are_shares = (
    all(isinstance(value, float) and value >= 0 for value in values)
    and abs(sum(values) - 1) < 1e-6
  )
  if values and not are_counts and not are_shares:
    raise InputError(
      f"config.shares={dict(shares)}: give whole numbers, the most examples of each "
      "category, or fractions (0.5) that add up to 1"
    )


def wanted(
  there: Mapping[str, int], shares: Mapping[str, float]
) -> tuple[dict[str, int], dict[str, int]]:
  """(how many of each category to take, how many are missing).

  Of counts a category gives what it has, and lacks the rest. Of shares the set is as
  large as they allow; missing is what a category would need for nothing of the others
  to be left out.

  Args:
    there: {category: examples}; a key of `shares` that is not there has none.
    shares: as `check_shares` allows.

  Raises:
    InputError: a category of `there` without a share; a share of a category that has
      nothing.
  """
  check_shares(shares)
  if unknown := sorted(there.keys() - shares.keys()):
    raise InputError(
      f"config.shares={dict(shares)} says nothing of {', '.join(unknown)}, which the "
      "examples have; give each of them a number (0 leaves it out)"
    )
  has = {category: there.get(category, 0) for category in shares}
  if all(isinstance(share, int) for share in shares.values()):
    take = {category: min(has[category], most) for category, most in shares.items()}
    return take, {c: shares[c] - take[c] for c in shares}
  used = {category: share for category, share in shares.items() if share}
  sizes = {category: has[category] / share for category, share in used.items()}
  scarcest, least = min(sizes.items(), key=lambda item: item[1])
  if not least:
    raise InputError(
      f"config.shares={dict(shares)}: there is no example of {scarcest!r}; set its "
      "share to 0, or look at why there is none"
    )
  most = max(sizes.values())
  take = {c: min(has[c], round(least * share)) for c, share in shares.items()}
  missing = {
    c: max(math.ceil(most * share - 1e-6) - has[c], 0) for c, share in shares.items()
  }
  return take, missing


def drawn(categories: Sequence[str], take: Mapping[str, int], *, seed: int) -> set[int]:
  """Places of the examples that are taken, drawn at random.

  Args:
    categories: of each example.
    take: how many of each; no more than there are.
  """
  kept: set[int] = set()
  for category, count in take.items():
    places = [i for i, own in enumerate(categories) if own == category]
    draw = random.Random(prng.host_seed(seed, f"shares/{category}"))
    kept |= set(draw.sample(places, count))
  return kept
