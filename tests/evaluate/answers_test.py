"""Votes of formulas, by the verifier."""

import types

from r1jax.evaluate import answers
from r1jax.rewards import accuracy
from r1jax.types import Problem


class Pool:
  """Judges in this process; remembers what it was asked."""

  def __init__(self):
    self.asked = []

  def score_some(self, texts, problems):
    self.asked += zip([p.answer for p in problems], texts, strict=True)
    parts = [
      {"accuracy": accuracy.score(text, vars(problem))}
      for text, problem in zip(texts, problems, strict=True)
    ]
    return parts, {}, []


def votes_of(verifier, *texts):
  pool = Pool()
  problem = Problem("p", "", "1", verifier)
  lines = [{"completion": text} for text in texts]
  (cast,) = answers._votes([problem], [lines], pool)
  return cast, pool.asked


def test_formulas_that_are_equal_are_one_vote():
  cast, asked = votes_of(
    "math",
    r"\boxed{3}",
    r"\boxed{\frac{x}{2}+1}",
    r"\boxed{\frac{x+2}{2}}",
    "nothing",
    r"\boxed{3.0}",
    r"\boxed{x+1}",
  )
  keys = [key for key, _ in cast]
  assert keys == ["3", keys[1], keys[1], None, "3", "x+1"]
  assert cast[2][1] == r"\frac{x+2}{2}"
  # Neither the gold nor two numbers are compared.
  assert len(asked) == 6 and ("3", r"\boxed{3.0}") not in asked


def test_other_verifiers_compare_no_formulas():
  cast, asked = votes_of("gsm8k", "the answer is x", "the answer is y")
  assert [key for key, _ in cast] == ["x", "y"] and not asked


def test_a_line_says_what_was_read_and_whether_it_is_right():
  one = types.SimpleNamespace(name="own")
  problem = Problem("p", "q", "8", "math", {"category": "sums"})
  drawn = {
    **{"sample": 1, "prompt": "q", "completion": "8", "length": 2, "stop": "eos"},
    **{"seed": 0, "tokens": [8, 1], "digest": "", "score": 1.0},
    "reward": {"total": 2.0, "accuracy": 0.99},
  }
  line = answers._line(one, problem, drawn, ("8", "8."))
  assert line["right"] is False and line["extracted"] == "8."
  assert line["reward"] == {"accuracy": 0.99} and line["category"] == "sums"
  no_gold = drawn | {"reward": {"total": 2.0}}
  assert answers._line(one, problem, no_gold, (None, None))["right"] is None
