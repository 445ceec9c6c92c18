"""Pairs of answers in packed rows, and sums over their answers.

Letters: B rows, L tokens in a row, P pairs that a row has room for, 2 answers of each.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from r1jax.data import packing
from r1jax.errors import InputError
from r1jax.objectives import segments
from r1jax.types import Array, TokenRows


@struct.dataclass
class PairRows:
  """Rows in which both answers of every pair lie, behind their prompt.

  Attributes:
    rows: the answers' tokens are those with a mask.
    column_BP2: int32, where the tokens of each answer begin; 0 where there is no pair.
    is_pair_BP: float32, 1 where there is a pair.
    ref_BP2: float32 log-probs of the answers under the reference, or None.
  """

  rows: TokenRows
  column_BP2: Array
  is_pair_BP: Array
  ref_BP2: Array | None = None


def pack_pairs(
  prompts: Sequence[Sequence[int]],
  answers: Sequence[Sequence[Sequence[int]]],
  *,
  row_length: int,
) -> tuple[PairRows, float]:
  """Packs pairs into rows by best fit, and the share of padding in them.

  Args:
    prompts: ids of each pair's prompt, one at least; they lie once for both answers.
    answers: ids of each pair's two answers, the chosen one first.
    row_length: L.

  Raises:
    InputError: pairs that are longer than a row.
  """
  # A group may be split over rows, and a pair may not: rows are filled with pairs as
  # wholes first, and each is then packed for itself.
  sizes = [
    len(prompt) - 1 + sum(1 + len(answer) for answer in pair)
    for prompt, pair in zip(prompts, answers, strict=True)
  ]
  if (longest := max(sizes)) > row_length:
    too_long = sum(size > row_length for size in sizes)
    raise InputError(
      f"{too_long} of {len(sizes)} pairs do not fit a row of config.training."
      f"row_length={row_length}; the longest has {longest} tokens, its prompt counted "
      f"once: raise config.training.row_length to {longest}"
    )
  alone = [packing.Group([i], 0) for i in range(len(sizes))]
  numbers = [
    [piece.members[0] for piece in pieces]
    for pieces in packing.assign(sizes, alone, row_length)
  ]
  capacity = max(map(len, numbers))
  column_BP2 = np.zeros((len(numbers), capacity, 2), np.int32)
  is_pair_BP = np.zeros((len(numbers), capacity), np.float32)
  packed = []
  for row, own in enumerate(numbers):
    lead = [len(prompts[i]) for i in own for _ in range(2)]
    pack = packing.pack(
      [[*prompts[i], *answer] for i in own for answer in answers[i]],
      lead,
      row_length=row_length,
      num_rows=1,
      groups=[
        packing.Group([2 * place, 2 * place + 1], len(prompts[i]))
        for place, i in enumerate(own)
      ],
    )
    starts = [columns[n] for columns, n in zip(pack.columns, lead, strict=True)]
    column_BP2[row, : len(own)] = np.reshape(starts, (-1, 2))
    is_pair_BP[row, : len(own)] = 1
    packed.append(pack.rows)
  rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *packed)
  waste = 1 - sum(sizes) / rows.tokens_BL.size
  return PairRows(rows, column_BP2, is_pair_BP), waste


def of_answers(x_BL: jax.Array, pairs: PairRows) -> jax.Array:
  """Sums [B, P, 2] of a per-token quantity over the tokens of each answer."""
  rows = pairs.rows
  return _at(segments.total(x_BL, rows.mask_BL, rows.segments_BL), pairs)


def lengths(pairs: PairRows) -> jax.Array:
  """Tokens [B, P, 2] of each answer."""
  return _at(jnp.asarray(pairs.rows.length_BL), pairs)


def _at(x_BL: jax.Array, pairs: PairRows) -> jax.Array:
  return jax.vmap(lambda x_L, column_P2: x_L[column_P2])(
    x_BL, jnp.asarray(pairs.column_BP2)
  )
