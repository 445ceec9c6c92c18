"""The order in which problems are met: a function of (seed, step) alone."""

from collections.abc import Sequence

import grain.python as grain

from r1jax import prng
from r1jax.errors import InputError
from r1jax.types import Problem


class ProblemStream:
  """An endless, shuffled, randomly accessible order of problems.

  Every epoch is a fresh permutation of all problems, and epochs follow each other
  without a gap: a batch may end one and begin the next, and may then hold a problem
  twice. There is no state, so a resumed run asks for its step and goes on.

  Args:
    problems: what to walk; the order depends on their number, not on their content.
    batch: problems per step over all hosts.
    seed: of the run.
    shard: (this host's index, number of hosts). A host gets its contiguous slice of the
      global batch.

  Raises:
    InputError: the batch does not divide by the hosts, or exceeds the problems.
  """

  def __init__(
    self,
    problems: Sequence[Problem],
    *,
    batch: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
  ):
    index, count = shard
    if not 0 <= index < count:
      raise InputError(f"shard={shard}; needed: 0 <= index < count")
    if batch < 1 or batch % count:
      raise InputError(
        f"config.data.batch={batch} does not divide by {count} hosts; "
        f"a multiple of {count} is needed"
      )
    if batch > len(problems):
      raise InputError(
        f"config.data.batch={batch} exceeds the {len(problems)} problems; lower it, or "
        "raise config.data.size or config.data.limit"
      )
    self._problems = problems
    self._batch = batch
    self._host = slice(index * batch // count, (index + 1) * batch // count)
    self._order = (
      grain.MapDataset.range(len(problems))
      .shuffle(seed=prng.host_seed(seed, "problems"))
      .repeat(None, reseed_each_epoch=True)
    )

  def at(self, step: int) -> list[Problem]:
    """This host's problems of a step, counted from 0."""
    positions = range(step * self._batch, (step + 1) * self._batch)[self._host]
    return [self._problems[int(self._order[i])] for i in positions]

  def epoch(self, step: int) -> float:
    """Passes over the data that lie behind when `step` begins."""
    return step * self._batch / len(self._problems)
