"""Tests of the 10-gram match between training and evaluation prompts."""

import pytest

from r1jax.data.decontamination import decontaminate
from r1jax.types import Problem

TEN = "one two three four five six seven eight nine ten"


def problems(name, *prompts):
  return [Problem(f"{name}/{i}", text, "1", "exact") for i, text in enumerate(prompts)]


@pytest.mark.parametrize(
  ("train", "evaluation", "dropped"),
  [
    (f"zero {TEN} eleven", f"nought {TEN} twelve", True),
    (f"zero {TEN}", TEN, True),
    # nine words in a row are too few
    (TEN.replace("one", "uno"), TEN, False),
    (f"{TEN[:18]}, and {TEN[19:]}", TEN, False),
    # case and punctuation do not hide a match
    (TEN.upper().replace(" ", ", ") + "!", TEN, True),
    (
      "a well-known one two three four five six seven eight",
      f"a well known {TEN}",
      True,
    ),
    # short texts match as a whole only
    ("What is two?", "what is two", True),
    ("What is two?", "what is two plus two", False),
    # operators tell sums apart
    ("3 a+4 b*3 = ?", "3 a-4 b*3 = ?", False),
    ("3 a+4 b*3 = ?", "3 a + 4 b * 3 = ?", True),
  ],
)
def test_what_matches(train, evaluation, dropped):
  kept, found = decontaminate(problems("train", train), problems("eval", evaluation))
  assert found.count == int(dropped)
  assert len(kept) == 1 - int(dropped)


def test_counts_examples_and_order():
  train = problems("train", "a b c d", "b c d e", "x b c d", "w x y z")
  evaluation = problems("eval", "q", "a b c d", "0 b c d 1")
  kept, found = decontaminate(train, evaluation, n=3, num_examples=2)
  assert [problem.id for problem in kept] == ["train/3"]
  assert found.count == 3
  assert found.examples == (
    ("train/0", "eval/1", "a b c"),
    ("train/1", "eval/1", "b c d"),
  )


def test_nothing_to_compare_with():
  train = problems("train", "a", "b")
  assert decontaminate(train, []) == (train, decontaminate([], [])[1])
