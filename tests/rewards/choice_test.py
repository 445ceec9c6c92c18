"""Tests of multiple choice: which letter an answer names, and when it names none."""

import pytest

from r1jax.errors import InputError
from r1jax.rewards import accuracy

OPTIONS = ["London", "Berlin", "Paris", "A city"]


def score(text, gold="C", options=None):
  meta = {} if options is None else {"options": options}
  problem = {"id": "p/1", "prompt": "?", "answer": gold, "verifier": "choice"}
  return accuracy.score(text, problem | {"meta": meta})


def tagged(answer):
  return f"<think>(A) or B?</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
  "answer",
  [
    "C",
    "c",
    "(C)",
    "C.",
    "C)",
    " C: ",
    "Option C",
    "**C**",
    r"\boxed{C}",
    r"\boxed{\text{(C)}}",
    r"$\textbf{(C)}$",
    r"\textbf{(C)}\ 15",
    "(C) Paris",
    "C. Paris",
    "C: a triangle",
    "The answer is C",
    "The answer is (C), since A is too small.",
    "the answer is option C.",
    "I choose option C",
    "It must be (C).",
  ],
)
def test_names_c(answer):
  assert score(tagged(answer)) == 1.0
  for other in "ABDJ":
    assert score(tagged(answer), gold=other) == 0.0
    assert score(tagged(answer), gold=f"({other})") == 0.0


@pytest.mark.parametrize(
  "answer",
  [
    "C or D",
    "C and D",
    "(C) or (D)",
    "C, D",
    "C/D",
    "A, B, C",
    "not C",
    "Cats",
    "Paris",
    "CD",
    "K",
    "",
    "The answer is C or D.",
    "Not (C) but (D)",
  ],
)
def test_names_none_or_several(answer):
  assert score(tagged(answer)) == 0.0


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ("It is not A.\nC", 1.0),
    ("It is not (A).\n(C)", 1.0),
    ("C\nIt is not A.", 0.0),
    ("(A) is too small, so the answer is (C).", 1.0),
    ("<think>C</think>", 0.0),
    ("<think>C", 0.0),
    ("<answer>C", 0.0),
  ],
)
def test_without_tags(text, want):
  """A cue, else the last line."""
  assert score(text) == want


@pytest.mark.parametrize("options", [OPTIONS, dict(zip("ABCD", OPTIONS, strict=True))])
def test_text_of_an_option(options):
  assert score(tagged("Paris"), options=options) == 1.0
  assert score(tagged("paris."), options=options) == 1.0
  assert score(tagged("C. Paris"), options=options) == 1.0
  assert score("The answer is Paris.", options=options) == 1.0
  assert score(tagged("Berlin"), options=options) == 0.0
  assert score(tagged("Paris, Texas"), options=options) == 0.0
  assert score(tagged("C. Berlin"), options=options) == 0.0
  assert score(tagged("A city"), options=options) == 0.0
  assert score(tagged("A city"), gold="D", options=options) == 1.0


def test_text_of_two_options_is_ambiguous():
  assert score(tagged("Paris"), options=["Paris", "Rome", "paris"]) == 0.0


def test_gold_that_is_no_letter():
  with pytest.raises(InputError, match=r"'p/1'.*one letter from A to J.*'Paris'"):
    score(tagged("C"), gold="Paris")
