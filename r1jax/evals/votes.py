r"""What several answers to a problem come to: the majority, the best, a weighted vote.

Equal answers are one vote. Numbers, letters of a choice and texts are told apart by
`rewards.votes`; what is left are formulas, such as x/2 and \frac{x}{2}, which the
verifier compares (`comparisons`). It costs a few milliseconds a pair, so the FORMS most
frequent texts of a problem are compared alone: a rarer one hardly decides a vote.

Letters: G answers to a problem.
"""

import collections
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from r1jax.rewards import extract, votes

FORMS = 12


class Ballot(NamedTuple):
  """An answer's vote.

  Attributes:
    key: what equal votes share.
    shown: the answer as it stands.
  """

  key: str
  shown: str


def ballot(text: str, problem: Mapping[str, Any]) -> Ballot | None:
  """The vote of a completion, None without an answer; the gold is not read.

  Args:
    problem: a record; of it `verifier`, and `meta` for a choice.
  """
  found = votes.vote(text, problem)
  return None if found is None else Ballot(*found)


def comparisons(votes_G: Sequence[Ballot | None]) -> list[tuple[Ballot, Ballot]]:
  """(earlier, later) votes with different keys that may be the same formula."""
  counts = collections.Counter(vote.key for vote in votes_G if vote is not None)
  frequent = {key for key, _ in counts.most_common(FORMS)}
  first: dict[str, Ballot] = {}
  for vote in votes_G:
    if vote is not None and vote.key in frequent:
      first.setdefault(vote.key, vote)
  return [
    (a, b)
    for a, b in itertools.combinations(first.values(), 2)
    if extract.number(a.shown) is None or extract.number(b.shown) is None
  ]


def merged(
  votes_G: Sequence[Ballot | None], same: set[tuple[str, str]]
) -> list[str | None]:
  """The key of each answer, where equal keys become the one that was seen first.

  Args:
    same: pairs of keys that are equal, the earlier one first.
  """
  stands_for: dict[str, str] = {}
  for key in dict.fromkeys(vote.key for vote in votes_G if vote is not None):
    earlier = (other for other in stands_for if (other, key) in same)
    stands_for[key] = stands_for.get(next(earlier, ""), key)
  return [None if vote is None else stands_for[vote.key] for vote in votes_G]


def winner(
  keys_G: Sequence[str | None], weights_G: Sequence[float] | None = None
) -> int | None:
  """The first answer with the vote that has most weight; None where nobody votes.

  Self-consistency (arXiv 2203.11171), DeepSeek-R1's cons@k (arXiv 2501.12948), where
  every answer weighs the same; else argmax_a sum_i 1[a_i = a] * weight_i, as in
  Math-Shepherd (arXiv 2312.08935). Of votes with the same weight it is the one seen
  first.
  """
  given: dict[str, list[float]] = {}
  weights_G = [1.0] * len(keys_G) if weights_G is None else weights_G
  for key, weight in zip(keys_G, weights_G, strict=True):
    if key is not None:
      given.setdefault(key, []).append(weight)
  if not given:
    return None
  return keys_G.index(max(given, key=lambda key: math.fsum(given[key])))


def best(scores_G: Sequence[float]) -> int:
  """The answer with the highest score; of equal ones the first."""
  return max(range(len(scores_G)), key=scores_G.__getitem__)


def strengths(scores_G: Sequence[float]) -> list[float]:
  """Weights of scores of which only differences mean anything: exp, the largest 1.

  They are those of the Bradley-Terry model that such scores are trained by.
  """
  top = max(scores_G)
  return [math.exp(score - top) for score in scores_G]


def share_right(
  right_G: Sequence[bool], k: int, choose: Callable[[slice], int | None]
) -> float:
  """Of the G // k blocks of k answers, in order, the share whose chosen one is right.

  Answers of a problem are drawn alike, so that this is an unbiased estimate for k, as
  pass@k's is; what is left over is not looked at.

  Args:
    choose: the number of an answer within a block, or None, which is wrong.
  """
  found = []
  for start in range(0, len(right_G) - k + 1, k):
    block = slice(start, start + k)
    chosen = choose(block)
    found.append(chosen is not None and right_G[block][chosen])
  return sum(found) / len(found)
