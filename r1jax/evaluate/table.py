"""The table of an evaluation, as Markdown."""

from collections.abc import Mapping
from typing import Any

Measures = Mapping[str, Any]


def markdown(results: Mapping[str, Any]) -> str:
  """The page: what was evaluated, a row for each set, accuracies by k.

  Args:
    results: as in results.json.
  """
  rows: dict[str, Measures] = {}
  for name, own in results["sets"].items():
    rows[f"**{name}**"] = own
    for category, part in own.get("categories", {}).items():
      rows[f"{name}, {category}"] = part
  tables = [_table(rows), *(_by_k(name, own) for name, own in results["sets"].items())]
  return "\n\n".join([_about(results), *filter(None, tables), _NOTES])


_NOTES = """\
k answers to each problem; in brackets 95 % intervals, clustered by problem. pass@1 is
the mean over all answers, pass@k the unbiased estimate that one of k is right, cons@k
the answer that most of k have, best@k the one that the reward model prefers, weighted@k
a vote by its scores; for fewer than all of them the mean over blocks of k. Of votes
with the same weight the one seen first counts. Tokens are those of an answer (mean,
median, 95th percentile); cut off is the share that met the limit.
"""


def _about(results: Mapping[str, Any]) -> str:
  made_from = ", ".join(f"{k} `{v}`" for k, v in results["made_from"].items())
  drawing = results["eval"]
  said = (
    f"{made_from}: temperature {drawing['temperature']:g}, top-p {drawing['top_p']:g}, "
    f"{drawing['max_tokens']:,} tokens at most, template `"
    f"{results['template']['template']}`, seed {results['seed']}."
  )
  if results["reward_model"]:
    own = results["reward_model"]["made_from"]
    said += f" Reward model: stage `{own['stage']}` of `{own['checkpoint']}`."
  return said


def _table(rows: Mapping[str, Measures]) -> str:
  columns = {
    "problems": lambda own: f"{own['n']:,}",
    "k": lambda own: f"{own['samples']}",
    "pass@1": lambda own: _share(own["pass@1"]),
    "cons@k": lambda own: _share(own[f"maj@{own['samples']}"]),
    "best@k": lambda own: _share(own[f"best@{own['samples']}"]),
    "weighted@k": lambda own: _share(own[f"weighted@{own['samples']}"]),
    "greedy": lambda own: _share(own["greedy"]["pass@1"]),
    "tokens": lambda own: f"{own['length']['mean']:,.1f}",
    "median": lambda own: f"{own['length']['median']:,g}",
    "p95": lambda own: f"{own['length']['p95']:,g}",
    "cut off": lambda own: _percent(own["truncated"]),
    "no answer": lambda own: _percent(own["no_answer"]),
    "format": lambda own: _percent(own["format"]),
    "language": lambda own: _percent(own["language"]),
  }
  cells = {
    column: [_or_empty(write, own) for own in rows.values()]
    for column, write in columns.items()
  }
  cells = {"set": list(rows)} | {name: own for name, own in cells.items() if any(own)}
  return _laid_out([list(cells), *zip(*cells.values(), strict=True)])


def _by_k(name: str, own: Measures) -> str:
  """Accuracies of a set for each k, where there is more than one."""
  kinds = {"pass": "pass@k", "maj": "cons@k", "best": "best@k"}
  kinds["weighted"] = "weighted@k"
  ks = [int(key.removeprefix("pass@")) for key in own if key.startswith("pass@")]
  if len(ks) < 2:
    return ""
  cells = {
    title: [_share(own[key]) if (key := f"{kind}@{k}") in own else "" for k in ks]
    for kind, title in kinds.items()
  }
  cells = {f"{name}, k": list(map(str, ks))} | {
    title: column for title, column in cells.items() if any(column)
  }
  return _laid_out([list(cells), *zip(*cells.values(), strict=True)])


def _laid_out(rows: list) -> str:
  header, *rest = ([*row] for row in rows)
  lines = [header, ["---"] * len(header), *rest]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _or_empty(write: Any, own: Measures) -> str:
  try:
    return write(own)
  except KeyError:  # it is not said of this set
    return ""


def _share(one: Mapping[str, float]) -> str:
  mean, low, high = (f"{100 * one[key]:.1f}" for key in ("mean", "low", "high"))
  return f"{mean} ({low} to {high})"


def _percent(share: float) -> str:
  return f"{100 * share:.1f} %"
