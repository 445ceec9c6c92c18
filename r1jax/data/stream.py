"""The order in which things are met: a function of (seed, step) alone."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import grain.python as grain

from r1jax import prng
from r1jax.errors import InputError

T = TypeVar("T")


class Stream(Generic[T]):
  """An endless, shuffled, randomly accessible order of items.

  Every epoch is a fresh permutation of all items, and epochs follow each other without
  a gap: a batch may end one and begin the next, and may then hold an item twice. There
  is no state, so a resumed run asks for its step and goes on.

  Args:
    items: what to walk; the order depends on their number, not on their content.
    batch: items per step over all hosts.
    seed: of the run.
    key: the config key that `batch` came from, for errors.
    shard: (this host's index, number of hosts). A host gets its contiguous slice of the
      global batch.

  Raises:
    InputError: the batch does not divide by the hosts, or exceeds the items.
  """

  def __init__(
    self,
    items: Sequence[T],
    *,
    batch: int,
    seed: int,
    key: str,
    shard: tuple[int, int] = (0, 1),
  ):
    index, count = shard
    if not 0 <= index < count:
      raise InputError(f"shard={shard}; needed: 0 <= index < count")
    if batch < 1 or batch % count:
      raise InputError(
        f"{key}={batch} does not divide by {count} hosts; a multiple of {count} is "
        "needed"
      )
    if batch > len(items):
      raise InputError(
        f"{key}={batch} exceeds the {len(items)} that there are; lower it, or raise "
        "the size or the limit of the data"
      )
    self._items = items
    self._batch = batch
    self._host = slice(index * batch // count, (index + 1) * batch // count)
    self._order = (
      grain.MapDataset.range(len(items))
      .shuffle(seed=prng.host_seed(seed, "order"))
      .repeat(None, reseed_each_epoch=True)
    )

  def at(self, step: int) -> list[T]:
    """This host's items of a step, counted from 0."""
    positions = range(step * self._batch, (step + 1) * self._batch)[self._host]
    return [self.item(i) for i in positions]

  def item(self, place: int) -> T:
    """The item at a place of the order, over all hosts."""
    return self._items[int(self._order[place])]
