"""Which two answers of a group to one problem are compared, or trained against each
other.

Letters: G answers to a problem.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence

Pairs = list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Answer:
  """One that may be taken.

  Attributes:
    sample: its number in the group.
    text: all of it.
    points: its reward.
    length: tokens of the part of it that is compared.
  """

  sample: int
  text: str
  points: float
  length: int


@dataclasses.dataclass(frozen=True)
class Choice:
  """A way to choose.

  Attributes:
    pick: (answers, which of them are right, most pairs, draws) -> places of pairs, that
      of the preferred answer first where the way itself says which is preferred.
    measure: what a pair must differ in: "points", or "length".
    by_threshold: whether points from a threshold on make an answer right.
  """

  pick: Callable[[Sequence[Answer], Sequence[int], int, random.Random], Pairs]
  measure: str = "points"
  by_threshold: bool = False


def _random(
  answers: Sequence[Answer], right: Sequence[int], count: int, draw: random.Random
) -> Pairs:
  """Different ones of all pairs, each in any order."""
  del right
  size = len(answers)
  every = [(i, j) for i in range(size) for j in range(i)]
  picked = draw.sample(every, min(count, len(every)))
  return [pair if draw.random() < 0.5 else pair[::-1] for pair in picked]


def _best_worst(
  answers: Sequence[Answer], right: Sequence[int], count: int, draw: random.Random
) -> Pairs:
  """Most against fewest points, then the second most against the second fewest, …

  Llama 3 (arXiv 2407.21783, section 4.2) has a reward model pick the best of a prompt's
  answers. Departs: its preference pairs are people's; here the points choose the worst
  too.
  """
  del right, draw
  order = sorted(range(len(answers)), key=lambda i: -answers[i].points)
  return _outermost(order, count)


def _right_wrong(
  answers: Sequence[Answer], right: Sequence[int], count: int, draw: random.Random
) -> Pairs:
  """A right answer against a wrong one, each at most once, as iterative reasoning
  preference optimisation does (arXiv 2404.19733)."""
  wrong = [i for i in range(len(answers)) if i not in right]
  count = min(count, len(right), len(wrong))
  return list(zip(draw.sample(right, count), draw.sample(wrong, count), strict=True))


def _shortest_longest(
  answers: Sequence[Answer], right: Sequence[int], count: int, draw: random.Random
) -> Pairs:
  """The shortest right answer against the longest right one, then the second
  shortest, …; wrong ones are left out (arXiv 2412.21187)."""
  del draw
  return _outermost(sorted(right, key=lambda i: answers[i].length), count)


def _outermost(order: Sequence[int], count: int) -> Pairs:
  return [(order[i], order[-1 - i]) for i in range(min(count, len(order) // 2))]


CHOICES: dict[str, Choice] = {
  "random": Choice(_random),
  "best_worst": Choice(_best_worst),
  "right_wrong": Choice(_right_wrong, by_threshold=True),
  "shortest_longest": Choice(_shortest_longest, measure="length", by_threshold=True),
}


def choose(
  answers: Sequence[Answer],
  *,
  kind: str,
  count: int,
  threshold: float | None,
  draw: random.Random,
) -> list[tuple[Answer, Answer]]:
  """At most `count` pairs of answers to one problem, see CHOICES.

  Args:
    answers: those that may be taken, no two of one text.
    threshold: points from which an answer is right, where the kind asks that.
  """
  right = (
    []
    if threshold is None
    else [i for i, a in enumerate(answers) if a.points >= threshold]
  )
  pairs = CHOICES[kind].pick(answers, right, count, draw)
  return [(answers[first], answers[second]) for first, second in pairs]


def gap(first: Answer, second: Answer, *, kind: str) -> float:
  """By how much the first is preferred, in what the kind of choice measures: points, or
  tokens by which it is the shorter one."""
  if CHOICES[kind].measure == "length":
    return float(second.length - first.length)
  return first.points - second.points
