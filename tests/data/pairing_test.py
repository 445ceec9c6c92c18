"""Which answers of a group make a pair, and by how much one of them is preferred."""

import random

import pytest

from r1jax.data import pairing
from r1jax.data.pairing import Answer


def answers(*given):
  """Of (points, length) each; the text is the place."""
  return [
    Answer(2 * place, str(place), points, length)
    for place, (points, length) in enumerate(given)
  ]


GROUP = answers((1.0, 9), (0.0, 4), (2.0, 7), (1.0, 5), (0.5, 8))


def chosen(kind, count, *, given=GROUP, threshold=None, seed=0):
  """Texts of each pair."""
  draw = random.Random(seed)
  pairs = pairing.choose(given, kind=kind, count=count, threshold=threshold, draw=draw)
  return [(first.text, second.text) for first, second in pairs]


def test_the_best_against_the_worst():
  """The first of equals is the better one, and nobody is taken twice."""
  assert chosen("best_worst", 1) == [("2", "1")]
  assert chosen("best_worst", 9) == [("2", "1"), ("0", "4")]
  assert chosen("best_worst", 1, given=GROUP[:1]) == []


def test_the_shortest_right_answer_against_the_longest():
  assert chosen("shortest_longest", 1, threshold=1.0) == [("3", "0")]
  assert chosen("shortest_longest", 2, threshold=0.0) == [("1", "0"), ("3", "4")]
  assert chosen("shortest_longest", 2, threshold=2.0) == []
  shortest, longest = GROUP[3], GROUP[0]
  assert pairing.gap(shortest, longest, kind="shortest_longest") == 4.0
  assert pairing.gap(shortest, longest, kind="best_worst") == 0.0


def test_right_against_wrong():
  for seed in range(5):
    pairs = chosen("right_wrong", 9, threshold=1.0, seed=seed)
    right, wrong = zip(*pairs, strict=True)
    assert len(pairs) == 2
    assert set(wrong) == {"1", "4"} and len(set(right) & {"0", "2", "3"}) == 2
  assert chosen("right_wrong", 9, threshold=0.0) == []


def test_random_pairs_are_different_ones_in_any_order():
  every = chosen("random", 99)
  assert len({frozenset(pair) for pair in every}) == len(every) == 10
  assert {first < second for first, second in every} == {True, False}
  assert len(chosen("random", 3)) == 3
  assert chosen("random", 3) == chosen("random", 3)
  assert len({tuple(chosen("random", 1, seed=seed)) for seed in range(20)}) > 5


@pytest.mark.parametrize("kind", pairing.CHOICES)
def test_too_few_answers_make_no_pair(kind):
  assert chosen(kind, 3, given=GROUP[:1], threshold=0.0) == []
  assert chosen(kind, 3, given=[], threshold=0.0) == []
