"""Every token lands once, in order, and what speaks of it lands with it."""

import numpy as np
import pytest

from r1jax.data import packing
from r1jax.errors import InputError


@pytest.mark.parametrize("seed", range(8))
def test_any_sequences_land_once_whole_and_in_order(seed):
  """R4: segments are contiguous and numbered in order, positions restart, nothing is
  trained on before `trained_from`, and padding is 0 everywhere."""
  rng = np.random.default_rng(seed)
  row_length = int(rng.integers(1, 40))
  lengths = rng.integers(1, row_length + 1, rng.integers(1, 30)).tolist()
  ids = iter(range(1, 10_000))
  sequences = [[next(ids) for _ in range(n)] for n in lengths]
  first = [int(rng.integers(-1, n + 3)) for n in lengths]
  got = packing.pack(sequences, first, row_length=row_length)
  rows = got.rows
  assert rows.parents_BL is None
  seen = rows.tokens_BL[rows.segments_BL > 0]
  assert sorted(seen) == list(range(1, sum(lengths) + 1))
  for array in (rows.tokens_BL, rows.positions_BL, rows.mask_BL, rows.length_BL):
    assert not array[rows.segments_BL == 0].any()
  for i, (row, columns) in enumerate(zip(got.row_of, got.columns, strict=True)):
    here = (row, columns)
    assert (np.diff(columns) == 1).all()
    assert rows.tokens_BL[here].tolist() == sequences[i]
    assert rows.positions_BL[here].tolist() == list(range(lengths[i]))
    number = rows.segments_BL[row, columns[0]]
    assert (rows.segments_BL[row] == number).sum() == lengths[i]
    assert (rows.segments_BL[here] == number).all()
    start = min(max(first[i], 1), lengths[i])
    assert rows.mask_BL[here].tolist() == [0] * start + [1] * (lengths[i] - start)
    assert (rows.length_BL[here] == lengths[i] - start).all()
  check_order_of_segments(rows)
  assert got.waste == pytest.approx(1 - sum(lengths) / rows.tokens_BL.size)
  again = packing.pack(sequences, first, row_length=row_length)
  assert again.row_of == got.row_of


def check_order_of_segments(rows):
  for segment_L in rows.segments_BL:
    used = segment_L[segment_L > 0]
    assert (np.diff(used) >= 0).all() and (segment_L[: len(used)] == used).all()
    assert set(used) == set(range(1, used.max() + 1))


@pytest.mark.parametrize("seed", range(8))
def test_any_groups_see_their_own_sequence_and_nothing_else(seed):
  """R4: a token of a completion sees the tokens of its prompt and of its own before it;
  those, in order, are the sequence up to it. No more rows than without sharing need be
  planned for."""
  rng = np.random.default_rng(seed)
  longest = int(rng.integers(3, 20))
  row_length = int(rng.integers(longest, 5 * longest))
  ids = iter(range(1, 10_000))
  sequences, first, groups = [], [], []
  for _ in range(int(rng.integers(1, 12))):
    prompt = [next(ids) for _ in range(rng.integers(1, longest))]
    members = len(sequences) + np.arange(rng.integers(1, 9))
    groups.append(packing.Group(members, len(prompt)))
    for _ in members:
      more = int(rng.integers(0, longest - len(prompt) + 1))
      sequences.append([*prompt, *[next(ids) for _ in range(more)]])
      first.append(len(prompt))
  got = packing.pack(sequences, first, row_length=row_length, groups=groups)
  rows = got.rows
  check_order_of_segments(rows)
  is_placed = np.zeros(rows.tokens_BL.shape, bool)
  for group in groups:
    for i in group.members:
      row, columns = got.row_of[i], got.columns[i]
      is_placed[row, columns] = True
      segment_L, parent_L = rows.segments_BL[row], rows.parents_BL[row]
      assert rows.tokens_BL[row, columns].tolist() == sequences[i]
      assert rows.positions_BL[row, columns].tolist() == list(range(len(columns)))
      own = columns[max(group.shared - 1, 0) :]
      assert (np.diff(own) == 1).all()
      assert rows.mask_BL[row, own].tolist() == [0] + [1] * (len(own) - 1)
      assert (rows.length_BL[row, own] == len(own) - 1).all()
      for at, column in enumerate(columns):
        sees = (segment_L == segment_L[column]) | (segment_L == parent_L[column])
        assert np.flatnonzero(sees[: column + 1]).tolist() == columns[: at + 1].tolist()
  np.testing.assert_array_equal(is_placed, rows.segments_BL > 0)
  assert rows.mask_BL.sum() == sum(len(s) for s in sequences) - sum(first)
  assert got.used <= -(-len(sequences) // (row_length // longest))
  assert got.waste == pytest.approx(1 - is_placed.sum() / is_placed.size)


@pytest.mark.parametrize("samples", [4, 16, 64])
def test_shared_prompts_half_as_long_as_answers(samples):
  """Of 192 tokens an answer 129 are left and its share of the prompt's 63: 24.6 %,
  30.8 % and 32.3 % fewer."""
  prompt, answer, num_prompts = 64, 128, 3
  num = num_prompts * samples
  sequences = [[1] * (prompt + answer)] * num
  groups = [
    packing.Group(np.arange(i, i + samples), prompt) for i in range(0, num, samples)
  ]
  size = prompt - 1 + samples * (answer + 1)
  got = packing.pack(sequences, [prompt] * num, row_length=size, groups=groups)
  assert got.used == num_prompts and got.waste == 0
  assert got.rows.mask_BL.sum() == num * answer
  fewer = 1 - size / (samples * (prompt + answer))
  assert round(fewer, 3) == {4: 0.246, 16: 0.308, 64: 0.323}[samples]


def rows_of(lengths, row_length):
  groups = [packing.Group([i], 0) for i in range(len(lengths))]
  pieces = packing.assign(lengths, groups, row_length)
  row_of = {
    i: row for row, here in enumerate(pieces) for piece in here for i in piece.members
  }
  return [row_of[i] for i in range(len(lengths))]


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
  assert rows_of(lengths, row_length) == want


@pytest.mark.parametrize(
  ("row_length", "want"),
  [
    # Groups of 2 + 4 + 3 + 2 = 11 and 1 + 3 + 3 = 7 tokens.
    (18, [[[0, 1, 2], [3, 4]]]),
    (11, [[[0, 1, 2]], [[3, 4]]]),
    # Row 0 takes 2 + 4 + 3, row 1 what is left; there 1 + 3 goes beside it.
    (9, [[[0, 1]], [[2], [3]], [[4]]]),
    (8, [[[0, 2]], [[1]], [[3, 4]]]),  # behind 0 there is no room for 1
  ],
)
def test_groups_by_hand(row_length, want):
  groups = [packing.Group([0, 1, 2], 3), packing.Group([3, 4], 2)]
  pieces = packing.assign([6, 5, 4, 4, 4], groups, row_length)
  assert [[list(piece.members) for piece in row] for row in pieces] == want


def test_ties_go_to_the_earliest_row():
  """Row 1 comes down to one free place before row 0 does; the last 1 goes to row 0."""
  assert rows_of([15, 13, 6, 4, 1], 20) == [0, 1, 1, 0, 0]


def test_rows_are_padded_up_and_waste_counts_used_rows_only():
  got = packing.pack([[1, 2, 3], [4]], [1, 1], row_length=5, num_rows=4)
  assert got.rows.tokens_BL.shape == (4, 5)
  assert not got.rows.segments_BL[1:].any()
  assert got.waste == pytest.approx(1 / 5)


def test_nothing_to_pack():
  got = packing.pack([], [], row_length=5, num_rows=2)
  assert got.rows.tokens_BL.shape == (2, 5) and got.waste == 0.0
  assert not got.rows.mask_BL.any() and got.used == 0


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


def test_spread_over_a_shared_prompt():
  """Values of the whole sequences, and of what follows the prompt."""
  sequences = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 3, 7, 8, 9]]
  groups = [packing.Group([0, 1, 2], 3)]
  got = packing.pack(sequences, [3] * 3, row_length=9, groups=groups)
  assert got.row_of == [0, 1, 0]
  whole = got.spread([np.asarray(s) for s in sequences], skip=[0] * 3)
  np.testing.assert_array_equal(whole, got.rows.tokens_BL)
  assert whole.tolist() == [[1, 2, 3, 4, 5, 3, 7, 8, 9], [1, 2, 3, 6, 0, 0, 0, 0, 0]]
  behind = got.spread([np.asarray(s[3:]) for s in sequences], skip=[3] * 3)
  np.testing.assert_array_equal(behind, whole * got.rows.mask_BL)
