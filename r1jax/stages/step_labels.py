"""Labels of the steps of solutions from rollouts: Math-Shepherd (arXiv 2312.08935).

A step is as good as the chance to reach the right answer from it: each prefix of a
solution is completed several times, and the completions are judged.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from r1jax.data import judged
from r1jax.errors import InputError, one_of
from r1jax.objectives.scalar_models import hard_labels, soft_labels
from r1jax.types import Problem

# (problem and prefix of each request, completions of each) -> texts that follow them
Sample = Callable[[Sequence[tuple[Problem, str]], int], Sequence[Sequence[str]]]
# (whole answer, problem) -> whether it is right
Verify = Callable[[str, Problem], bool]
LABELS = ("hard", "soft")


def label_steps(
  solutions: Sequence[tuple[Problem, str]],
  *,
  sample: Sample,
  verify: Verify,
  num_rollouts: int = 8,
  labels: str = "hard",
) -> Iterator[dict[str, Any]]:
  """Yields a line of `judged`'s "process" data for each solution, and the counts.

  Steps are those of `judged.step_ends`. The last one has nothing behind it: it is right
  in all rollouts or in none, as the solution is. A solution without steps is left out.

  Args:
    sample: asked once, for all prefixes of all solutions.
    num_rollouts: of each prefix. The paper: 8.
    labels: "hard" (1 where any rollout is right) or "soft" (the share that is).

  Yields:
    `prompt` or `messages`, `completion`, `ends`, `labels`, and `hits`, of num_rollouts.
  """
  one_of(labels, LABELS, key="labels")
  if num_rollouts < 1:
    raise InputError(f"num_rollouts={num_rollouts}: must be 1 or more")
  ends_of = [judged.step_ends(text) for _, text in solutions]
  asked = [
    (problem, text[:end])
    for (problem, text), ends in zip(solutions, ends_of, strict=True)
    for end in ends[:-1]
  ]
  drawn = iter(sample(asked, num_rollouts) if asked else ())
  for (problem, text), ends in zip(solutions, ends_of, strict=True):
    if not ends:
      continue
    hits = []
    for end in ends[:-1]:
      rollouts = next(drawn)
      if len(rollouts) != num_rollouts:
        raise ValueError(f"{len(rollouts)} completions, not {num_rollouts}")
      hits.append(sum(bool(verify(text[:end] + more, problem)) for more in rollouts))
    hits.append(num_rollouts * bool(verify(text, problem)))
    yield judged.question(problem) | {
      "completion": text,
      "ends": list(ends),
      "labels": _labels(np.asarray(hits), num_rollouts, labels).tolist(),
      "hits": hits,
    }


def _labels(hits: np.ndarray, num_rollouts: int, labels: str) -> np.ndarray:
  return hard_labels(hits) if labels == "hard" else soft_labels(hits, num_rollouts)
