"""The numbers that are said of a set of problems, each answered several times.

Letters: Q problems, G answers to each.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.evals import votes
from r1jax.evals.intervals import clustered_interval
from r1jax.evals.passk import pass_at_k
from r1jax.rewards.votes import NO_VOTE

Line = Mapping[str, Any]
# Points of a right answer; verifiers of some tasks give parts of it.
RIGHT = 1.0
# The part of a line's reward that a reward model says.
MODEL = "model"


def ks(samples: int) -> list[int]:
  """1, 2, 4, ..., and the number of samples."""
  powers = [2**i for i in range(samples.bit_length()) if 2**i < samples]
  return [*powers, samples]


def summary(lines_QG: Sequence[Sequence[Line]], *, pairwise: bool) -> dict[str, Any]:
  """Measures of a set: {name: number, or {"mean", "low", "high"} with an interval}.

  Of problems with a gold answer: pass@1, the mean over all answers (avg@k), pass@k for
  more, maj@k (cons@k), and with a reward model best@k and weighted@k; 95 % intervals,
  clustered by problem. Of all: tokens, the share cut off, the share without an answer
  that could be read, means of the other parts of the reward.

  Args:
    lines_QG: of each answer its problem's `verifier`, `length`, `stop`, `reward` by
      part, `right` (None without a gold answer) and `vote`.
    pairwise: of the model's scores only differences mean anything.
  """
  samples = len(lines_QG[0])
  found: dict[str, Any] = {"n": len(lines_QG), "samples": samples}
  judged_QG = [own for own in lines_QG if own[0]["right"] is not None]
  if judged_QG:
    found["n_judged"] = len(judged_QG)
    found |= _accuracies(judged_QG, samples, pairwise)
  lines = [line for own in lines_QG for line in own]
  length = np.asarray([line["length"] for line in lines], np.float64)
  found["length"] = {
    "mean": float(length.mean()),
    "median": float(np.median(length)),
    "p95": float(np.percentile(length, 95)),
  }
  for name, is_right in (("right", True), ("wrong", False)):
    own = [line["length"] for line in lines if line["right"] is is_right]
    if own:
      found["length"][name] = float(np.mean(own))
  found["truncated"] = float(np.mean([line["stop"] == "length" for line in lines]))
  if judged_QG:
    found["points"] = _mean_of("accuracy", lines)
  voting = [line["vote"] is None for line in lines if _has_vote(line)]
  if voting:
    found["no_answer"] = float(np.mean(voting))
  names = dict.fromkeys(name for line in lines for name in line["reward"])
  for name in names:
    if name not in ("accuracy", MODEL):
      found[name] = _mean_of(name, lines)
  return found


def _accuracies(
  lines_QG: Sequence[Sequence[Line]], samples: int, pairwise: bool
) -> dict[str, Any]:
  right_QG = [[line["right"] for line in own] for own in lines_QG]

  def interval(value_Q: Sequence[float], k: int) -> dict[str, float]:
    low, high = clustered_interval(value_Q, samples_per_problem=samples // k)
    return {"mean": float(np.mean(value_Q)), "low": low, "high": high}

  found = {
    f"pass@{k}": interval(
      [pass_at_k(samples, sum(right_G), k) for right_G in right_QG], k
    )
    for k in ks(samples)
  }
  for name, choice in _choices(lines_QG, pairwise).items():
    chosen_from = [
      (right_G, choice(own))
      for right_G, own in zip(right_QG, lines_QG, strict=True)
      if name == "best" or _has_vote(own[0])
    ]
    for k in ks(samples)[1:] if chosen_from else ():
      value_Q = [votes.share_right(right_G, k, pick) for right_G, pick in chosen_from]
      found[f"{name}@{k}"] = interval(value_Q, k)
  return found


def _has_vote(line: Line) -> bool:
  return line["verifier"] not in NO_VOTE


def _choices(
  lines_QG: Sequence[Sequence[Line]], pairwise: bool
) -> dict[str, Callable[[Sequence[Line]], Callable[[slice], int | None]]]:
  """{name: (answers to a problem) -> (some of them) -> the one that is chosen}."""

  def majority(own: Sequence[Line]) -> Callable[[slice], int | None]:
    keys_G = [line["vote"] for line in own]
    return lambda block: votes.winner(keys_G[block])

  def best(own: Sequence[Line]) -> Callable[[slice], int]:
    scores_G = [line["reward"][MODEL] for line in own]
    return lambda block: votes.best(scores_G[block])

  def weighted(own: Sequence[Line]) -> Callable[[slice], int | None]:
    keys_G = [line["vote"] for line in own]
    weights_G = [line["reward"][MODEL] for line in own]
    if pairwise:
      weights_G = votes.strengths(weights_G)
    return lambda block: votes.winner(keys_G[block], weights_G[block])

  found = {"maj": majority}
  if all(MODEL in line["reward"] for own in lines_QG for line in own):
    found |= {"best": best, "weighted": weighted}
  return found


def _mean_of(part: str, lines: Sequence[Line]) -> float:
  return float(
    np.mean([line["reward"][part] for line in lines if part in line["reward"]])
  )
