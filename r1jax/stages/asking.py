"""Which problems the next rollout asks: in a shuffled order, or by pass rates.

Letters: N problems, Q prompts, G samples per prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax import prng
from r1jax.data import stream
from r1jax.errors import InputError
from r1jax.objectives import filters
from r1jax.types import Problem


class InOrder:
  """Every problem once an epoch, in an order that is a function of the seed alone."""

  def __init__(self, order: stream.Stream[Problem]):
    self._order = order

  def places(self, count: int, *, num_asked: int, rollout: int) -> np.ndarray:
    """Of the next problems, int32 [count].

    Args:
      num_asked: problems asked so far.
      rollout: its number, from 1.
    """
    del rollout
    return np.arange(num_asked, num_asked + count, dtype=np.int32)

  def problem(self, place: int) -> Problem:
    return self._order.item(place)

  def judged(self, place_Q: np.ndarray, correct_QG: np.ndarray) -> None:
    """Is told what came of problems that were asked."""

  def held(self) -> np.ndarray | None:
    """What a checkpoint must hold of it; None for nothing."""
    return None

  def take_up(self, held: np.ndarray) -> None:
    """Goes on from what a checkpoint holds."""


class ByPassRate:
  """The more often, the closer a problem's running pass rate is to one half.

  A rollout's problems are drawn without replacement, with the probabilities that
  `filters.curriculum_weights` makes of the rates so far, by keys that are a function of
  seed and rollout.

  Args:
    items: all problems; a place is a number among them.
    decay, floor: see `filters.running_rate` and `filters.curriculum_weights`.
  """

  def __init__(
    self, items: Sequence[Problem], *, seed: int, name: str, decay: float, floor: float
  ):
    self._items = items
    self._seed, self._purpose = seed, f"{name}/curriculum"
    self._decay, self._floor = decay, floor
    self._rate_N = np.full(len(items), np.nan, np.float32)

  def places(self, count: int, *, num_asked: int, rollout: int) -> np.ndarray:
    del num_asked
    weight_N = filters.curriculum_weights(self._rate_N, floor=self._floor)
    rng = np.random.default_rng(prng.host_seed(self._seed, self._purpose, rollout))
    # The first arrivals of Poisson processes are a draw without replacement.
    arrival_N = rng.exponential(size=len(weight_N)) / weight_N
    return np.argsort(arrival_N, kind="stable")[:count].astype(np.int32)

  def problem(self, place: int) -> Problem:
    return self._items[place]

  def judged(self, place_Q: np.ndarray, correct_QG: np.ndarray) -> None:
    rate_N = filters.running_rate(self._rate_N, place_Q, correct_QG, decay=self._decay)
    self._rate_N = rate_N.astype(np.float32)

  def held(self) -> np.ndarray:
    return self._rate_N

  def take_up(self, held: np.ndarray) -> None:
    self._rate_N = np.asarray(held)


Asking = InOrder | ByPassRate


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where `filter` or `curriculum` of a stage cannot be."""
  rounds = config["filter"]["max_rounds"]
  if rounds < 1:
    raise InputError(f"config.filter.max_rounds={rounds}: must be 1 or more")
  decay, floor = (config["curriculum"][key] for key in ("decay", "floor"))
  if not 0 <= decay < 1:
    raise InputError(f"config.curriculum.decay={decay}: must be 0 or more and below 1")
  if not 0 < floor <= 0.25:
    raise InputError(
      f"config.curriculum.floor={floor}: must be above 0 and at most 0.25, the largest "
      "weight that there is"
    )
