"""Several sequences in one row of fixed length.

Letters: B rows, L row length.
"""

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

from r1jax.errors import InputError
from r1jax.types import TokenRows


@dataclasses.dataclass(frozen=True)
class Packing:
  """Where each sequence went.

  Attributes:
    rows: the packed tokens, numpy arrays [B, L].
    place: for each sequence its (row, first column).
    waste: share of padding among the tokens of rows that hold anything.
  """

  rows: TokenRows
  place: list[tuple[int, int]]
  waste: float

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
    for value, (row, column), lead in zip(values, self.place, skip, strict=True):
      end = column + lead + len(value)
      segment_L = self.rows.segments_BL[row]
      if end > len(segment_L) or (segment_L[column:end] != segment_L[column]).any():
        raise ValueError(
          f"{len(value)} values behind {lead} tokens pass their sequence"
        )
      out_BL[row, column + lead : end] = value
    return out_BL


def assign(lengths: Sequence[int], row_length: int) -> list[int]:
  """Row of each sequence by best fit, longest first; ties go to the earliest row."""
  rows_by_room: dict[int, list[int]] = {}  # heaps
  row_of = [0] * len(lengths)
  num_rows = 0
  for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    length = lengths[index]
    room = next((r for r in range(length, row_length + 1) if rows_by_room.get(r)), None)
    if room is None:
      row, room, num_rows = num_rows, row_length, num_rows + 1
    else:
      row = heapq.heappop(rows_by_room[room])
    row_of[index] = row
    heapq.heappush(rows_by_room.setdefault(room - length, []), row)
  return row_of


def pack(
  sequences: Sequence[Sequence[int]],
  trained_from: Sequence[int],
  *,
  row_length: int,
  num_rows: int | None = None,
  packed: bool = True,
) -> Packing:
  """Packs token sequences into rows.

  Args:
    sequences: token ids, each at least one.
    trained_from: index of the first token of each sequence that may be trained on
      (clipped to 1, since nothing predicts a sequence's first token); the sequence's
      length where none is.
    row_length: L.
    num_rows: B, padded up to with empty rows; None means as many as are needed.
    packed: False puts every sequence in a row of its own.

  Raises:
    InputError: a sequence is longer than a row, or the rows do not suffice.
  """
  lengths = [len(sequence) for sequence in sequences]
  if lengths and max(lengths) > row_length:
    raise InputError(
      f"a sequence of {max(lengths)} tokens does not fit a row of {row_length}; "
      "raise config.training.row_length"
    )
  row_of = assign(lengths, row_length) if packed else list(range(len(sequences)))
  used = max(row_of, default=-1) + 1
  if num_rows is None:
    num_rows = used
  if used > num_rows:
    raise InputError(
      f"{len(lengths)} sequences of {sum(lengths)} tokens need {used} rows of "
      f"{row_length} and there are {num_rows}; raise config.training.row_length"
    )
  shape = (num_rows, row_length)
  tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
  mask, length_of = (np.zeros(shape, np.float32) for _ in range(2))
  filled, count = [0] * num_rows, [0] * num_rows
  place = []
  for sequence, first, row in zip(sequences, trained_from, row_of, strict=True):
    start, size = filled[row], len(sequence)
    first = min(max(first, 1), size)
    count[row] += 1
    tokens[row, start : start + size] = sequence
    positions[row, start : start + size] = np.arange(size)
    segments[row, start : start + size] = count[row]
    mask[row, start + first : start + size] = 1.0
    length_of[row, start : start + size] = size - first
    place.append((row, start))
    filled[row] += size
  waste = 1.0 - sum(lengths) / (used * row_length) if used else 0.0
  return Packing(TokenRows(tokens, positions, segments, mask, length_of), place, waste)
