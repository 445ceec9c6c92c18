"""Tests of the repetition penalty."""

import pytest

from r1jax.rewards import repetition


@pytest.mark.parametrize(
  ("text", "ngram", "want"),
  [
    # 6 pairs, 4 of them distinct: a b, b a, b c, c d
    ("a b a b a b c", 2, -(1 - 3 / 6)),
    ("a b c d", 2, 0.0),
    ("a A a a", 1, -3 / 4),
    # too short to repeat itself
    ("", 3, 0.0),
    ("a b", 3, 0.0),
    ("a b c", 3, 0.0),
    ("a a a a", 3, -1 / 2),
    # marks and characters without spaces are pieces
    ("!!!!!", 2, -3 / 4),
    ("哈哈哈哈哈", 2, -3 / 4),
    ("12 12 12", 1, -2 / 3),
  ],
)
def test_share_of_ngrams_that_come_again(text, ngram, want):
  assert repetition.score(text, ngram=ngram) == pytest.approx(want)


def test_a_loop_costs_nearly_all_and_more_the_longer_it_is():
  sentence = "Wait, let me check that the sum of both numbers is still even. "
  once, thrice, often = (
    repetition.score(sentence * times, ngram=5) for times in (1, 3, 200)
  )
  assert once == 0.0 > thrice > often > -1.0
  assert often < -0.99


def test_white_space_is_no_way_around_it():
  spaced = repetition.score("so  on\n" * 50, ngram=4)
  assert spaced == repetition.score("so on " * 50, ngram=4) < -0.9
