"""Which text is judged as an answer to which problem."""

import numpy as np

from r1jax.stages import rollouts
from r1jax.types import Problem


class Pool:
  """Judges here what a `RewardPool` judges in processes of its own."""

  names = ("accuracy", "format")

  def score(self, texts, problems):
    pairs = list(zip(texts, problems, strict=True))
    parts = [
      {"format": float(len(text)), "accuracy": float(text == problem.answer)}
      for text, problem in pairs
    ]
    return parts, {"timeouts": len(pairs), "errors": 1}


def test_rows_are_samples_of_one_problem_after_another():
  problems = [Problem(name, name, name, "exact") for name in ("a", "bb")]
  parts, counts = rollouts.judge(Pool(), ["a", "bb", "c", "a", "bb", "bbb"], problems)
  np.testing.assert_array_equal(parts["accuracy"], [[1, 0, 0], [0, 1, 0]])
  np.testing.assert_array_equal(parts["format"], [[1, 2, 1], [1, 2, 3]])
  assert list(parts) == ["accuracy", "format"]
  assert {part.dtype for part in parts.values()} == {np.dtype(np.float32)}
  assert counts == {"timeouts": 6, "errors": 1}
