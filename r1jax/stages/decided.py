"""What of judged answers becomes data: lines of `data.judged`, and their balance."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.data import judged
from r1jax.data.filters import Sieve
from r1jax.stages import judgements
from r1jax.stages.judgements import Record
from r1jax.stages.run import Run

_EXAMPLES = 5  # kept of what was dropped for each reason
# Of a record: what was asked; and what its example says, if it is dropped.
_ABOUT = ("prompt", "messages", "problem_id", "category")
_SHOWN = (
  *(*_ABOUT, "sample", "completion", "verdicts"),
  *("samples", "responses", "judgements", "chosen", "rejected", "gap"),
)


def sieve() -> Sieve:
  """What drops records, counts them, and keeps examples."""
  return Sieve(
    _EXAMPLES,
    lambda record: {key: value for key, value in record.items() if key in _SHOWN},
  )


def lines_of(
  config: Mapping[str, Any], records: Sequence[Record], sieve: Sieve
) -> list[Record]:
  """Lines of `data.judged`, of those records that are decided."""
  said = {"pairwise": "judgements", "pointwise": "verdicts"}.get(config["labels"])
  by_points = config["judge"]["kind"] == "reward"
  if not by_points:
    records = sieve(
      "no_verdict", records, lambda one: "" if one[said] else "a reply is no verdict"
    )
  if config["labels"] == "pairwise":
    return _preferred(
      records
      if by_points
      else [one | {"gap": judged.gap_of(one[said])} for one in records],
      config["choose"]["min_gap"],
      sieve,
    )
  if config["labels"] == "pointwise":
    if by_points:
      least = config["choose"]["threshold"]
      records = [one | {"verdicts": [one["points"] >= least]} for one in records]
    records = sieve(
      "no_agreement",
      records,
      lambda one: "" if len(set(one["verdicts"])) == 1 else "verdicts differ",
    )
    records = [one | {"label": int(one["verdicts"][0])} for one in records]
  names = (*_ABOUT, "completion", "label", "ends", "labels", "hits")
  return [{key: one[key] for key in names if key in one} for one in records]


def _preferred(records: Sequence[Record], min_gap: float, sieve: Sieve) -> list[Record]:
  """Pairs whose gap is large enough, the preferred answer as `chosen`."""
  kept = sieve(
    "small_gap",
    records,
    lambda one: "" if abs(one["gap"]) > min_gap else f"not more than {min_gap}",
  )
  lines = []
  for one in kept:
    chosen, rejected = one["responses"][:: 1 if one["gap"] > 0 else -1]
    more = {"chosen": chosen, "rejected": rejected, "gap": abs(one["gap"])}
    lines.append({key: one[key] for key in _ABOUT if key in one} | more)
  return lines


def balanced(
  run: Run, config: Mapping[str, Any], made: Sequence[Record], sieve: Sieve
) -> list[Record]:
  """Those of `judged.balance_lengths`."""
  kept = {*judged.balance_lengths(*_lengths(run, config, made), seed=run.seed)}
  place = itertools.count()
  return sieve(
    "balance_lengths",
    made,
    lambda line: "" if next(place) in kept else "too many of its side differ so much",
  )


def _lengths(
  run: Run, config: Mapping[str, Any], made: Sequence[Record]
) -> tuple[list[int], list[int]]:
  """Tokens of the chosen and of the rejected answer of each pair."""
  chosen, rejected = (
    [judgements.length(run, config["judge"]["reads"], line[side]) for line in made]
    for side in ("chosen", "rejected")
  )
  return chosen, rejected


def statistics(
  run: Run,
  config: Mapping[str, Any],
  records: Sequence[Record],
  made: Sequence[Record],
) -> dict[str, float]:
  """Metrics of what was judged, and of what is kept of it."""
  if config["labels"] != "pairwise":
    key = {"pointwise": "label", "process": "labels"}[config["labels"]]
    return {"pairs/label_mean": float(np.mean(np.hstack([line[key] for line in made])))}
  chosen, rejected = map(np.asarray, _lengths(run, config, made))
  seen = {
    "pairs/chosen_length": float(chosen.mean()),
    "pairs/rejected_length": float(rejected.mean()),
    "pairs/longer_chosen": float(np.mean(0.5 * (np.sign(chosen - rejected) + 1))),
    "pairs/gap": float(np.mean([line["gap"] for line in made])),
  }
  scores = [
    one["scores"] for record in records for one in record.get("judgements") or ()
  ]
  if scores:
    # Far from 0, the judge likes a place more than an answer.
    seen["judge/first_shown_gap"] = float(np.mean([a - b for a, b in scores]))
  return seen
