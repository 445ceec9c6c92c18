"""Which of a model's own answers become examples to train on."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

# Why an answer is not kept.
DROPPED = ("wrong", "truncated", "duplicates", "over_limit")


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer that has been judged.

  Attributes:
    problem: its id.
    tokens: ids, the end token included.
    text: what was judged.
    score: of the part that decides whether it is right.
    ended: whether it ended by itself.
  """

  problem: str
  tokens: tuple[int, ...]
  text: str
  score: float
  ended: bool


def select(
  answers: Iterable[Answer],
  met: set[tuple[str, str]],
  *,
  threshold: float,
  per_problem: int,
  with_wrong: bool,
) -> tuple[list[tuple[Answer, bool]], dict[str, int]]:
  """[(answer, whether it is right)] in their order, and counts by DROPPED.

  Args:
    met: (problem, text) of what was kept before, and of what is kept now afterwards.
    threshold: the least score of a right answer.
    per_problem: most right answers of a problem to keep, and most wrong ones; 0 keeps
      all.
    with_wrong: keep wrong answers too.
  """
  counts = dict.fromkeys(DROPPED, 0)
  kept, num_kept = [], collections.Counter()
  for answer in answers:
    is_right = answer.score >= threshold
    key, side = (answer.problem, answer.text), (answer.problem, is_right)
    if not is_right and not with_wrong:
      counts["wrong"] += 1
    elif not answer.ended:
      counts["truncated"] += 1
    elif key in met:
      counts["duplicates"] += 1
    elif per_problem and num_kept[side] >= per_problem:
      counts["over_limit"] += 1
    else:
      met.add(key)
      num_kept[side] += 1
      kept.append((answer, is_right))
  return kept, counts


def majority(votes: Sequence[str | None]) -> tuple[str | None, float]:
  """(the most frequent vote, its share of all); (None, 0) where nobody votes.

  Huang et al. 2022 (arXiv 2210.11610), section 3.1: the pseudo-label, and the
  confidence in it. Of several that are as frequent it is the one seen first.

  Args:
    votes: of each path the answer; None of a path without one, which counts in the
      whole all the same.
  """
  counts = collections.Counter(vote for vote in votes if vote is not None)
  if not counts:
    return None, 0.0
  ((label, count),) = counts.most_common(1)
  return label, count / len(votes)
