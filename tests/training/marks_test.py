"""Items in packed rows: whole, their prompt once, marks where they belong."""

import numpy as np
import pytest

from r1jax.data import packing
from r1jax.errors import InputError
from r1jax.training import marks
from r1jax.training.marks import Item


def pairs(rng, count):
  """Pairs whose tokens name them: prompt and answers of several lengths."""
  made = []
  for i in range(count):
    prompt = [1000 + i] * int(rng.integers(2, 5))
    answers = [[2000 + 2 * i + k] * int(rng.integers(1, 7)) for k in range(2)]
    at = [[len(answer) - 1] for answer in answers]
    made.append(Item(prompt, answers, at, margin=float(i)))
  return made


def test_both_answers_of_a_pair_lie_in_one_row_behind_one_prompt():
  items = pairs(np.random.default_rng(0), 30)
  sizes = [item.size for item in items]
  packed, used, waste = marks.pack_items(items, row_length=24, num_rows=20)
  rows = packed.rows
  assert rows.tokens_BL.shape == (20, 24)
  assert (rows.segments_BL > 0).sum() == sum(sizes)
  assert waste == pytest.approx(1 - sum(sizes) / (24 * used))
  assert not rows.segments_BL[used:].any() and rows.segments_BL[:used].any(1).all()
  np.testing.assert_array_equal(rows.mask_BL.sum(), 60)
  np.testing.assert_array_equal(packed.label_BL.sum(), 30)
  found = set()
  for row, column in zip(*np.nonzero(packed.label_BL), strict=True):
    other = packed.other_BL[row, column]
    chosen, rejected = rows.tokens_BL[row, [column, other]]
    assert rejected == chosen + 1
    assert rows.mask_BL[row, [column, other]].all()
    assert packed.margin_BL[row, column] == (chosen - 2000) // 2
    assert rows.parents_BL[row, column] == rows.parents_BL[row, other]
    # The last token of its answer: behind it comes another segment, or nothing.
    if column + 1 < 24:
      assert rows.segments_BL[row, column + 1] != rows.segments_BL[row, column]
    found.add(int(chosen))
  assert found == set(range(2000, 2060, 2))


def test_labels_stand_at_the_marks_of_steps():
  items = [
    Item([9, 9], [[5, 6, 7, 8]], [[1, 3]], (1.0, 0.25)),
    Item([9], [[4]], [[0]], (0.5,)),
  ]
  packed, used, _ = marks.pack_items(items, row_length=8, num_rows=1)
  assert used == 1
  inside = packed.rows.mask_BL[0] > 0
  np.testing.assert_array_equal(packed.rows.tokens_BL[0, inside], [6, 8, 4])
  np.testing.assert_array_equal(packed.label_BL[0, inside], [1.0, 0.25, 0.5])
  np.testing.assert_array_equal(packed.rows.length_BL[0, inside], [2, 2, 1])
  assert not packed.label_BL[0, ~inside].any()


def test_a_size_is_that_of_the_packing():
  for item in pairs(np.random.default_rng(1), 20):
    sequences = [[*item.prompt, *answer] for answer in item.answers]
    lead = [len(item.prompt)] * 2
    group = packing.Group([0, 1], len(item.prompt))
    pack = packing.pack(sequences, lead, row_length=40, groups=[group])
    assert (pack.rows.segments_BL > 0).sum() == item.size


def test_what_does_not_fit_is_said():
  long = Item([1, 2], [[3] * 9, [4] * 9], [[8], [8]])
  with pytest.raises(InputError, match=r"1 of 2 items .*row_length=20.*has 21 tokens"):
    marks.pack_items([Item([1], [[2]], [[0]], (1.0,)), long], row_length=20, num_rows=9)
  with pytest.raises(InputError, match=r"2 items of 42 tokens need 2 rows of 21"):
    marks.pack_items([long, long], row_length=21, num_rows=1)
