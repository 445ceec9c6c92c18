"""Which text is judged as an answer to which problem."""

import numpy as np
import pytest

from r1jax.stages import rollouts
from r1jax.types import Problem


class Pool:
  """Judges here what a `RewardPool` judges in processes of its own."""

  names = ("accuracy", "format")

  def __init__(self):
    self.raised = []

  def score_some(self, texts, problems):
    pairs = list(zip(texts, problems, strict=True))
    parts = [
      {"format": float(len(text)), "accuracy": float(text == problem.answer)}
      for text, problem in pairs
    ]
    said = ["no"] * texts.count("raises")
    return parts, {"timeouts": len(pairs), "errors": len(said), "seconds": 0.0}, said

  def explain(self, raised, num_items):
    self.raised.append((len(raised), num_items))


PROBLEMS = [Problem(name, name, name, "exact") for name in ("a", "bb", "c")]


def test_groups_are_judged_as_they_come_and_laid_where_they_belong():
  pool = Pool()
  judging = rollouts.Judging(pool, PROBLEMS, 3)
  judging.add(1, ["a", "bb", "bbb"])
  judging.add(0, ["a", "raises", "c"])
  parts, counts = judging.result()
  np.testing.assert_array_equal(parts["accuracy"], [[1, 0, 0], [0, 1, 0], [0, 0, 0]])
  np.testing.assert_array_equal(parts["format"], [[1, 6, 1], [1, 2, 3], [0, 0, 0]])
  assert list(parts) == ["accuracy", "format"]
  assert {part.dtype for part in parts.values()} == {np.dtype(np.float32)}
  assert counts == {"timeouts": 6, "crashes": 0, "errors": 1, "seconds": 0}
  assert pool.raised == [(1, 6)]


def test_what_the_judge_raises_is_raised_when_it_is_waited_for():
  pool = Pool()
  pool.score_some = lambda texts, problems: 1 / 0
  judging = rollouts.Judging(pool, PROBLEMS, 1)
  judging.add(0, ["a"])
  with pytest.raises(ZeroDivisionError):
    judging.result()
