"""Every token lands once, in order, and what speaks of it lands with it."""

import numpy as np
import pytest

from r1jax.data import packing
from r1jax.errors import InputError


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_any_sequences_land_once_whole_and_in_order(seed, packed):
  """R4: segments are contiguous and numbered in order, positions restart, nothing is
  trained on before `trained_from`, and padding is 0 everywhere."""
  rng = np.random.default_rng(seed)
  row_length = int(rng.integers(1, 40))
  lengths = rng.integers(1, row_length + 1, rng.integers(1, 30)).tolist()
  ids = iter(range(1, 10_000))
  sequences = [[next(ids) for _ in range(n)] for n in lengths]
  first = [int(rng.integers(-1, n + 3)) for n in lengths]
  got = packing.pack(sequences, first, row_length=row_length, packed=packed)
  rows = got.rows
  seen = rows.tokens_BL[rows.segments_BL > 0]
  assert sorted(seen) == list(range(1, sum(lengths) + 1))
  for array in (rows.tokens_BL, rows.positions_BL, rows.mask_BL, rows.length_BL):
    assert not array[rows.segments_BL == 0].any()
  for i, (row, column) in enumerate(got.place):
    here = (row, slice(column, column + lengths[i]))
    assert rows.tokens_BL[here].tolist() == sequences[i]
    assert rows.positions_BL[here].tolist() == list(range(lengths[i]))
    number = rows.segments_BL[row, column]
    assert (rows.segments_BL[row] == number).sum() == lengths[i]
    assert (rows.segments_BL[here] == number).all()
    start = min(max(first[i], 1), lengths[i])
    assert rows.mask_BL[here].tolist() == [0] * start + [1] * (lengths[i] - start)
    assert (rows.length_BL[here] == lengths[i] - start).all()
  for segment_L in rows.segments_BL:
    used = segment_L[segment_L > 0]
    assert (np.diff(used) >= 0).all() and used.tolist() == segment_L[
      : len(used)
    ].tolist()
    assert set(used) == set(range(1, used.max() + 1))
  assert got.waste == pytest.approx(1 - sum(lengths) / rows.tokens_BL.size)
  if not packed:
    assert got.place == [(i, 0) for i in range(len(lengths))]
  again = packing.pack(sequences, first, row_length=row_length, packed=packed)
  assert again.place == got.place


@pytest.mark.parametrize(
  ("lengths", "row_length", "want"),
  [
    ([4, 3, 3, 2], 6, [0, 1, 1, 0]),  # 2 fits exactly behind 4
    ([2, 6, 4], 6, [1, 0, 1]),  # longest first, whatever the order given
    ([5, 4, 2, 1], 6, [0, 1, 1, 0]),  # tightest room first
    ([3, 3, 3, 3], 6, [0, 0, 1, 1]),
    ([5, 3, 2, 2], 7, [0, 1, 0, 1]),
    ([], 6, []),
  ],
)
def test_best_fit_by_hand(lengths, row_length, want):
  assert packing.assign(lengths, row_length) == want


def test_ties_go_to_the_earliest_row():
  """Row 1 comes down to one free place before row 0 does; the last 1 goes to row 0."""
  assert packing.assign([15, 13, 6, 4, 1], 20) == [0, 1, 1, 0, 0]


def test_rows_are_padded_up_and_waste_counts_used_rows_only():
  got = packing.pack([[1, 2, 3], [4]], [1, 1], row_length=5, num_rows=4)
  assert got.rows.tokens_BL.shape == (4, 5)
  assert not got.rows.segments_BL[1:].any()
  assert got.waste == pytest.approx(1 / 5)


def test_nothing_to_pack():
  got = packing.pack([], [], row_length=5, num_rows=2)
  assert got.rows.tokens_BL.shape == (2, 5) and got.waste == 0.0
  assert not got.rows.mask_BL.any() and got.place == []


def test_spread_lays_values_at_their_tokens():
  sequences = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
  got = packing.pack(sequences, [1, 1, 3], row_length=6)
  values = [np.asarray(v, np.float32) for v in ([0.2, 0.3], [0.4, 0.5], [])]
  out = got.spread(values, skip=[1, 0, 4])
  by_token = {int(t): v for t, v in zip(got.rows.tokens_BL.flat, out.flat, strict=True)}
  assert out.dtype == np.float32
  want = {2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}
  assert {t: v for t, v in by_token.items() if v} == pytest.approx(want)


@pytest.mark.parametrize("size", [3, 6])
def test_spread_refuses_to_write_into_the_next_sequence(size):
  got = packing.pack([[1, 2, 3], [4, 5, 6]], [1, 1], row_length=6)
  with pytest.raises(ValueError, match="pass their sequence"):
    got.spread([np.ones(size), np.ones(0)], skip=[1, 0])
  with pytest.raises(ValueError, match="zip"):
    got.spread([np.ones(2)], skip=[1])


def test_a_sequence_longer_than_a_row_is_refused():
  with pytest.raises(InputError, match=r"7 tokens does not fit a row of 6.*row_length"):
    packing.pack([[1] * 7], [1], row_length=6)


def test_too_few_rows_are_refused():
  with pytest.raises(InputError, match=r"2 sequences of 8 tokens need 2 rows of 6"):
    packing.pack([[1] * 4, [2] * 4], [1, 1], row_length=6, num_rows=1)


def test_spread_of_several_numbers_a_token():
  got = packing.pack([[1, 2, 3], [4]], [1, 1], row_length=5)
  values = [np.asarray([[1, 2], [3, 4], [5, 6]], np.int32), np.asarray([[7, 8]])]
  out = got.spread(values, skip=[0, 0], fill=-1)
  assert out.dtype == np.int32
  np.testing.assert_array_equal(out[0], [[1, 2], [3, 4], [5, 6], [7, 8], [-1, -1]])
