"""Several sequences in one row of fixed length, what they begin with in common once.

Letters: B rows, L row length.
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from r1jax.errors import InputError
from r1jax.types import TokenRows


@dataclasses.dataclass(frozen=True)
class Group:
  """Sequences that begin with the same tokens, as the answers to one prompt do.

  Attributes:
    members: their numbers.
    shared: how many tokens they begin with in common.
  """

  members: Sequence[int]
  shared: int

  @property
  def once(self) -> int:
    """Tokens that lie once in a row: the last common one is repeated by each member, so
    that the state before a token is the one that predicts it."""
    return max(self.shared - 1, 0)


@dataclasses.dataclass(frozen=True)
class Packing:
  """Where each sequence went.

  Attributes:
    rows: the packed tokens, numpy arrays [B, L].
    row_of: for each sequence its row.
    columns: for each sequence the column of each of its tokens, int32.
    waste: share of padding among the tokens of rows that hold anything.
  """

  rows: TokenRows
  row_of: list[int]
  columns: list[np.ndarray]
  waste: float

  @property
  def used(self) -> int:
    """Rows that hold anything; they are the first."""
    return max(self.row_of, default=-1) + 1

  def spread(
    self, values: Sequence[np.ndarray], *, skip: Sequence[int], fill: float = 0.0
  ) -> np.ndarray:
    """[B, L, ...] with `values[i]` laid at sequence i's tokens from `skip[i]` on.

    Args:
      values: arrays [tokens, ...] that agree in type and in all axes but the first.
      fill: stands where no value is laid.

    Raises:
      ValueError: values that reach past the end of their sequence.
    """
    inner, dtype = values[0].shape[1:], values[0].dtype
    out_BL = np.full((*self.rows.tokens_BL.shape, *inner), fill, dtype)
    for value, row, columns, lead in zip(
      values, self.row_of, self.columns, skip, strict=True
    ):
      if lead + len(value) > len(columns):
        raise ValueError(
          f"{len(value)} values behind {lead} tokens pass their sequence"
        )
      out_BL[row, columns[lead : lead + len(value)]] = value
    return out_BL


def assign(
  lengths: Sequence[int], groups: Sequence[Group], row_length: int
) -> list[list[Group]]:
  """The pieces of each row, in order of their first members, by best fit.

  The longest group first, each goes whole into the row with the least room that takes
  it. Where none does, the row with most room takes as many of its members as fit, the
  longest first, and what is left is placed in the same way; a row is begun where no
  other takes even one. Ties go to the earliest row. So at most one row has room for
  another sequence of full length, whatever the groups: n sequences of at most m tokens
  need no more than ceil(n / floor(row_length / m)) rows.

  Args:
    lengths: tokens of each sequence, the common ones included.
  """

  def size(group: Group) -> int:
    return group.once + sum(lengths[i] - group.once for i in group.members)

  rows: list[list[Group]] = []
  by_room: list[tuple[int, int]] = []  # (free tokens, row), sorted
  for group in sorted(groups, key=lambda group: -size(group)):
    left = sorted(group.members, key=lambda i: (-lengths[i], i))
    while left:
      rest = dataclasses.replace(group, members=left)
      most = by_room[-1][0] if by_room else -1
      if size(rest) <= most:
        room, row = by_room.pop(bisect.bisect_left(by_room, (size(rest), -1)))
      elif lengths[left[-1]] <= most:
        room, row = by_room.pop(bisect.bisect_left(by_room, (most, -1)))
      else:
        room, row = row_length, len(rows)
        rows.append([])
      room -= group.once
      members, left = [], []
      for i in rest.members:
        if lengths[i] - group.once <= room:
          members.append(i)
          room -= lengths[i] - group.once
        else:
          left.append(i)
      rows[row].append(dataclasses.replace(group, members=sorted(members)))
      bisect.insort(by_room, (room, row))
  return [sorted(pieces, key=lambda piece: piece.members[0]) for pieces in rows]


def pack(
  sequences: Sequence[Sequence[int]],
  trained_from: Sequence[int],
  *,
  row_length: int,
  num_rows: int | None = None,
  groups: Sequence[Group] | None = None,
) -> Packing:
  """Packs token sequences into rows, see `assign`.

  What a group has in common is a segment of its own but for its last token; a member's
  segment begins with a copy of that and continues the common one, in its positions and
  by `TokenRows.parents_BL`.

  Args:
    sequences: token ids, each at least one.
    trained_from: index of the first token of each sequence that may be trained on
      (clipped to 1, since nothing predicts a sequence's first token, and to the end of
      what it shares); the sequence's length where none is.
    row_length: L.
    num_rows: B, padded up to with empty rows; None means as many as are needed.
    groups: every sequence in one of them; None means that nothing is shared.

  Raises:
    InputError: a sequence is longer than a row, or the rows do not suffice.
  """
  lengths = [len(sequence) for sequence in sequences]
  if lengths and max(lengths) > row_length:
    raise InputError(
      f"a sequence of {max(lengths)} tokens does not fit a row of {row_length}; "
      "raise config.training.row_length"
    )
  alone = [Group([i], 0) for i in range(len(lengths))]
  pieces = assign(lengths, alone if groups is None else groups, row_length)
  used = len(pieces)
  if num_rows is None:
    num_rows = used
  if used > num_rows:
    raise InputError(
      f"{len(lengths)} sequences of {sum(lengths)} tokens need {used} rows of "
      f"{row_length} and there are {num_rows}; raise config.training.row_length"
    )
  shape = (num_rows, row_length)
  tokens, positions, segments, parents = (np.zeros(shape, np.int32) for _ in range(4))
  mask, length_of = (np.zeros(shape, np.float32) for _ in range(2))
  row_of, columns = [0] * len(lengths), [np.zeros(0, np.int32)] * len(lengths)
  filled = 0
  for row, groups_here in enumerate(pieces):
    end, segment = 0, 0
    for group in groups_here:
      common = np.arange(end, end + group.once, dtype=np.int32)
      parent = 0
      if group.once:
        parent = segment = segment + 1
        tokens[row, common] = sequences[group.members[0]][: group.once]
        positions[row, common] = np.arange(group.once)
        segments[row, common] = parents[row, common] = segment
        end += group.once
      for i in group.members:
        segment += 1
        first = min(max(trained_from[i], 1, group.shared), lengths[i])
        own = np.arange(end, end + lengths[i] - group.once, dtype=np.int32)
        tokens[row, own] = sequences[i][group.once :]
        positions[row, own] = np.arange(group.once, lengths[i])
        segments[row, own] = segment
        parents[row, own] = parent or segment
        mask[row, own[first - group.once :]] = 1.0
        length_of[row, own] = lengths[i] - first
        row_of[i], columns[i] = row, np.concatenate([common, own])
        end += len(own)
    filled += end
  rows = TokenRows(
    tokens,
    positions,
    segments,
    mask,
    length_of,
    parents_BL=None if groups is None else parents,
  )
  waste = 1.0 - filled / (used * row_length) if used else 0.0
  return Packing(rows, row_of, columns, waste)
