"""Which of a model's own answers are kept, and what is counted."""

import pytest

from r1jax.data.selection import DROPPED, Answer, majority, select

PLAIN = {"threshold": 1.0, "per_problem": 0, "with_wrong": False}


def answer(text, score=1.0, *, problem="p", ended=True):
  return Answer(problem, tuple(text.encode()), text, score, ended)


def kept_of(answers, met=None, **changes):
  kept, counts = select(answers, set() if met is None else met, **{**PLAIN, **changes})
  assert len(kept) + sum(counts.values()) == len(answers)
  assert tuple(counts) == DROPPED
  lost = {reason: n for reason, n in counts.items() if n}
  return [(one.problem, one.text, is_right) for one, is_right in kept], lost


def test_right_wrong_and_a_repeated_text_make_one_example():
  """Method notes, section 4."""
  answers = [answer("a"), answer("a"), answer("c", 0.0)]
  assert kept_of(answers) == ([("p", "a", True)], {"wrong": 1, "duplicates": 1})


def test_a_text_is_kept_once_over_all_rounds_but_for_each_problem():
  met = set()
  assert kept_of([answer("a"), answer("a", problem="q")], met)[1] == {}
  kept, lost = kept_of([answer("a"), answer("b"), answer("b", problem="q")], met)
  assert kept == [("p", "b", True), ("q", "b", True)]
  assert lost == {"duplicates": 1}


def test_so_many_of_a_problem_and_what_was_cut_off():
  answers = [answer(text) for text in "abcd"] + [answer("e", problem="q")]
  kept, lost = kept_of([answer("x", ended=False), *answers], per_problem=2)
  assert [text for _, text, _ in kept] == ["a", "b", "e"]
  assert lost == {"truncated": 1, "over_limit": 2}


def test_wrong_answers_have_a_limit_of_their_own():
  answers = [answer("a"), answer("b", 0.2), answer("c", 0.0), answer("d")]
  kept, lost = kept_of(answers, per_problem=1, with_wrong=True)
  assert kept == [("p", "a", True), ("p", "b", False)]
  assert lost == {"over_limit": 2}
  assert kept_of(answers, threshold=0.2)[0] == [
    ("p", "a", True),
    ("p", "b", True),
    ("p", "d", True),
  ]


@pytest.mark.parametrize(
  ("votes", "want"),
  [
    (["108", "96", "108"], ("108", 2 / 3)),  # method notes, section 6
    (["96", "108"], ("96", 1 / 2)),  # the one seen first
    ([None, "108", None, None], ("108", 1 / 4)),
    ([None, None], (None, 0.0)),
    ([], (None, 0.0)),
  ],
)
def test_the_most_frequent_vote_and_its_share(votes, want):
  assert majority(votes) == want
