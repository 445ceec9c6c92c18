"""Answers in packed rows, with marks on the tokens whose scores are read.

Letters: B rows, L tokens in a row.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from flax import struct

from r1jax.data import packing
from r1jax.errors import InputError
from r1jax.types import Array, TokenRows


@dataclasses.dataclass(frozen=True)
class Item:
  """What is learned from as a whole: an answer, or two of which the first is preferred.

  Attributes:
    prompt: ids, one at least.
    answers: ids of each.
    marks: for each answer the tokens, numbered in it from 0, that are scored.
    labels: what these scores should say; empty for two answers.
    margin: by which the first of two answers should lead.
  """

  prompt: Sequence[int]
  answers: Sequence[Sequence[int]]
  marks: Sequence[Sequence[int]]
  labels: Sequence[float] = ()
  margin: float = 0.0

  @property
  def size(self) -> int:
    """Tokens in a row; see `packing.Group`."""
    group = packing.Group(range(len(self.answers)), len(self.prompt))
    own = len(self.prompt) - group.once
    return group.once + sum(own + len(answer) for answer in self.answers)


@struct.dataclass
class ItemRows:
  """Packed items.

  Attributes:
    rows: the mask is 1 on marked tokens alone.
    label_BL: float32, at the mark of each label; 1 at that of a preferred answer.
    other_BL: int32, at the mark of a preferred answer the column of the other's; 0
      elsewhere.
    margin_BL: float32, at the mark of a preferred answer.
  """

  rows: TokenRows
  label_BL: Array
  other_BL: Array
  margin_BL: Array


def mark(
  pack: packing.Packing, lead: Sequence[int], marks: Sequence[Sequence[int]]
) -> TokenRows:
  """Rows whose mask is 1 on the marks of each sequence, numbered behind its `lead`."""
  mask_BL, length_BL = (np.zeros_like(pack.rows.mask_BL) for _ in range(2))
  for row, columns, skip, own in zip(
    pack.row_of, pack.columns, lead, marks, strict=True
  ):
    mask_BL[row, columns[skip:][list(own)]] = 1
    length_BL[row, columns[skip:]] = len(own)
  return pack.rows.replace(mask_BL=mask_BL, length_BL=length_BL)


def pack_items(
  items: Sequence[Item], *, row_length: int, num_rows: int
) -> tuple[ItemRows, int, float]:
  """Packs items by best fit, each whole in one row, its prompt once.

  Args:
    row_length, num_rows: L and B; rows that are not needed are empty.

  Returns:
    (rows, how many hold anything, share of padding in those).

  Raises:
    InputError: more than fits.
  """
  sizes = [item.size for item in items]
  check_sizes(sizes, row_length)
  alone = [packing.Group([i], 0) for i in range(len(items))]
  rows_of = packing.assign(sizes, alone, row_length)
  if len(rows_of) > num_rows:
    raise InputError(
      f"{len(items)} items of {sum(sizes)} tokens need {len(rows_of)} rows of "
      f"{row_length} and there are {num_rows}; raise config.training.row_length"
    )
  filled = [
    _pack_row([items[piece.members[0]] for piece in pieces], row_length)
    for pieces in rows_of
  ]
  packed = jax.tree.map(lambda *leaves: np.concatenate(leaves), *filled)
  empty = num_rows - len(filled)
  packed = jax.tree.map(lambda leaf: np.pad(leaf, ((0, empty), (0, 0))), packed)
  return packed, len(filled), 1 - sum(sizes) / (len(filled) * row_length)


def check_sizes(sizes: Sequence[int], row_length: int) -> None:
  """Raises InputError where one does not fit a row."""
  if (longest := max(sizes)) > row_length:
    too_long = sum(size > row_length for size in sizes)
    raise InputError(
      f"{too_long} of {len(sizes)} items do not fit a row of "
      f"config.training.row_length={row_length}; the longest has {longest} tokens: "
      f"raise config.training.row_length to {longest}"
    )


def _pack_row(items: Sequence[Item], row_length: int) -> ItemRows:
  sequences, lead, marks, groups = [], [], [], []
  for item in items:
    members = range(len(sequences), len(sequences) + len(item.answers))
    groups.append(packing.Group(members, len(item.prompt)))
    sequences += [[*item.prompt, *answer] for answer in item.answers]
    lead += [len(item.prompt)] * len(item.answers)
    marks += item.marks
  pack = packing.pack(sequences, lead, row_length=row_length, num_rows=1, groups=groups)
  label, other, margin = (np.zeros((1, row_length), t) for t in ("f4", "i4", "f4"))
  for item, group in zip(items, groups, strict=True):
    at = [
      pack.columns[i][lead[i] :][list(own)]
      for i, own in zip(group.members, item.marks, strict=True)
    ]
    if len(at) == 1:
      label[0, at[0]] = item.labels
    else:
      label[0, at[0]] = 1
      other[0, at[0]] = at[1]
      margin[0, at[0]] = item.margin
  return ItemRows(mark(pack, lead, marks), label, other, margin)
