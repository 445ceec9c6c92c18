"""What the report says of a run of several stages: what was made from what, what each
stage came to, what data stages dropped, and the ends of its lineages side by side.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax import charts, panels
from r1jax.errors import InputError
from r1jax.evals import intervals
from r1jax.pages import graph, lineage
from r1jax.pages.lineage import Lines, Made

_EXAMPLES = 2  # shown of what a filter dropped
_CHARACTERS = 400  # of each of its texts
_MAX_ENDS = 5  # in the headline


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What the template shows.

  Attributes:
    is_recipe: several stages were evaluated on the set that the page is about, so that
      the page goes through the stages and not through the steps of one.
    drawing: of the lineage, and `told` the same in words; None of a single stage.
    not_begun: stages of the config that are still to come.
    tables, compared, data: as of the functions of these names.
    best: of the stages with which a lineage ends, the most accurate; "" if not
      `is_recipe`, as the next two.
    headline: the result as (text, "" or "accuracy") pieces.
    lede: what it was measured on.
  """

  is_recipe: bool
  drawing: graph.Drawing | None
  told: str
  not_begun: Sequence[str]
  tables: list[dict[str, Any]]
  compared: list[dict[str, Any]]
  data: list[dict[str, Any]]
  best: str
  headline: list[tuple[str, str]]
  lede: str


def of_run(
  workdir: Path,
  made: Mapping[str, Made],
  stages: Mapping[str, Lines],
  main_set: str | None,
  *,
  planned: Sequence[str],
) -> Recipe:
  """All of it.

  Args:
    stages: name -> lines of metrics, in the order of their first; see
      `lineage.measured`.
    main_set: the held-out set that the page is about.
    planned: names of all stages of the config.
  """
  evaluated = [name for name, own in stages.items() if main_set in panels.sets(own)]
  is_recipe = len(evaluated) > 1
  best, headline, lede = "", [], ""
  if is_recipe:
    last = ends(made, stages, main_set)
    if not last:
      last = [_end(evaluated[-1:], evaluated[-1], stages, main_set)]
    best = last[0]["members"][0]
    headline = _headline(made, stages, last, main_set)
    lede = _lede(last, main_set)
  return Recipe(
    is_recipe=is_recipe,
    drawing=lineage.drawing(made, stages, main_set) if len(made) > 1 else None,
    told=lineage.told(made),
    not_begun=[name for name in planned if name not in made and name not in stages],
    tables=tables(stages) if is_recipe else [],
    compared=compared(made, stages),
    data=data(workdir, made, stages),
    best=best,
    headline=headline,
    lede=lede,
  )


def _headline(
  made: Mapping[str, Made],
  stages: Mapping[str, Lines],
  last: Sequence[Mapping[str, Any]],
  main_set: str,
) -> list[tuple[str, str]]:
  """Accuracy of the ends, and of where the way to a single one began."""
  shown = last[:_MAX_ENDS]
  pieces = [("Held-out accuracy is ", "")]
  for i, end in enumerate(shown):
    pieces.append((_percent(end["accuracy"]), "accuracy"))
    left = len(shown) - 1 - i
    after = ", " if left > 1 else " and " if left else ""
    pieces.append((f" after {end['stage']}{after}", ""))
  end = last[0]["members"][0]
  if len(last) == 1 and end in made:
    way = {*lineage.ancestors(made, end), end}
    first = next(s for s in stages if s in way and main_set in panels.sets(stages[s]))
    if (before := result(stages[first], main_set)["before"]) is not None:
      pieces.append((", and was ", ""))
      pieces.append((_percent(before), "accuracy"))
      pieces.append((f" before {first}", ""))
  return [*pieces, (".", "")]


def _percent(value: float) -> str:
  return charts.value_text(100 * value, "%")


def _lede(last: Sequence[Mapping[str, Any]], main_set: str) -> str:
  n = last[-1]["n"]
  on = f"{n:,.0f} problems of the set" if n else "the set"
  said = f"Measured on {on} “{main_set}”."
  known = [
    end for end in last if None not in (end["accuracy_low"], end["accuracy_high"])
  ]
  if known:
    each = [
      f"{100 * end['accuracy_low']:.1f} to {_percent(end['accuracy_high'])} "
      f"after {end['stage']}"
      for end in known
    ]
    said += f" 95\u00a0% intervals: {', '.join(each)}."
  overlapping = [
    f"{a['stage']} and {b['stage']}"
    for a, b in itertools.combinations(known, 2)
    if a["accuracy_low"] <= b["accuracy_high"]
    and b["accuracy_low"] <= a["accuracy_high"]
  ]
  if overlapping:
    said += f" The intervals of {', of '.join(overlapping)} overlap."
  if repeated := [end["stage"] for end in last if len(end["members"]) > 1]:
    said += (
      f" {' and '.join(repeated)}: means over repetitions, with intervals by Student's "
      "t, which takes them for a normal sample."
    )
  return said


def tables(stages: Mapping[str, Lines]) -> list[dict[str, Any]]:
  """For each held-out set what every stage that was evaluated on it came to.

  As R1's ablation of stages (arXiv 2501.12948, supplement) has it, a row for a stage.
  """
  names = dict.fromkeys(
    name for lines in stages.values() for name in panels.sets(lines)
  )
  return [
    {
      "set": name,
      "rows": [
        {"stage": stage, **result(lines, name)}
        for stage, lines in stages.items()
        if name in panels.sets(lines)
      ],
    }
    for name in names
  ]


def result(lines: Lines, name: str) -> dict[str, Any]:
  """What the last evaluation of a stage on a set says, and the accuracy at the first.

  Without a "language" of the set it is that of the training's last tenth of answers.
  """

  def last(key: str) -> float | None:
    values = panels.series(lines, f"eval/{name}/{key}")[1]
    return values[-1] if values else None

  keys = ("accuracy", "accuracy_low", "accuracy_high", "format", "length_mean")
  found = {key: last(key) for key in (*keys, "truncated", "n", "language")}
  accuracy = panels.series(lines, f"eval/{name}/accuracy")[1]
  found["before"] = accuracy[0] if len(accuracy) > 1 else None
  if found["language"] is None:
    seen = panels.series(lines, "reward/language")[1]
    recent = seen[-max(1, len(seen) // 10) :]
    found["language"] = sum(recent) / len(recent) if recent else None
  return found


def ends(
  made: Mapping[str, Made], stages: Mapping[str, Lines], name: str
) -> list[dict[str, Any]]:
  """What the ends of lineages came to on a set, the best first.

  Repetitions are one end, with the mean of each number and its interval over them.
  """
  last = [
    stage for stage in lineage.ends(made, stages) if name in panels.sets(stages[stage])
  ]
  found = []
  for family, names in lineage.families(made).items():
    if members := [stage for stage in names if stage in last]:
      found.append(_end(members, family, stages, name))
  return sorted(found, key=lambda end: -end["accuracy"])


def _end(
  members: Sequence[str], family: str, stages: Mapping[str, Lines], name: str
) -> dict[str, Any]:
  """The result of stages on a set as one; "each" has the accuracy of every one."""
  results = [result(stages[stage], name) for stage in members]
  each = [own["accuracy"] for own in results]
  means = {
    key: None if None in (values := [own[key] for own in results]) else _mean(values)
    for key in results[0]
  }
  if len(members) > 1:
    low, high = intervals.mean_interval(each)
    means |= {"accuracy_low": max(0.0, low), "accuracy_high": min(1.0, high)}
  return {"stage": family, "members": members, "each": each, **means}


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values)


def compared(
  made: Mapping[str, Made], stages: Mapping[str, Lines]
) -> list[dict[str, Any]]:
  """For each set on which several lineages end, the ends side by side.

  Those that were repeated as often as another have their differences from it,
  repetition by repetition, since what comes before these may be shared.
  """
  found = []
  names = dict.fromkeys(n for lines in stages.values() for n in panels.sets(lines))
  for name in names:
    columns = ends(made, stages, name)
    if len(columns) < 2:
      continue
    for end in columns:
      first = end["members"][0]
      end["path"] = " → ".join(lineage.path(made, first))
      end["model"] = lineage.shape_of(made[first])
    repeated = [end for end in columns if len(end["members"]) > 1]
    found.append(
      {
        "set": name,
        "columns": columns,
        "differences": [
          _difference(a, b)
          for a, b in itertools.combinations(repeated, 2)
          if len(a["members"]) == len(b["members"])
        ],
      }
    )
  return found


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
  points = [100 * (x - y) for x, y in zip(a["each"], b["each"], strict=True)]
  low, high = intervals.mean_interval(points)
  mean = _mean(points)
  shown = f"{mean:+.1f} points ({low:+.1f} to {high:+.1f})".replace("-", "−")
  return f"{a['stage']} less {b['stage']}: {shown}"


def data(
  workdir: Path, made: Mapping[str, Made], stages: Mapping[str, Lines]
) -> list[dict[str, Any]]:
  """What each stage that makes data has kept and dropped, with examples."""
  found = []
  for name, stage in made.items():
    if stage.product != "data" or name not in stages:
      continue
    line = stages[name][-1]
    prefix = f"{stage.kind}/"
    own = {
      key.removeprefix(prefix): value
      for key, value in line.items()
      if key.startswith(prefix) and isinstance(value, int | float)
    }
    dropped = _after("dropped_", own)
    sizes, tokens = _after("size_", own), _after("tokens_", own)
    rest = [
      (_words(key), charts.value_text(value))
      for key, value in own.items()
      if not key.startswith(("dropped_", "size_", "tokens_"))
    ]
    largest = max(dropped.values(), default=0)
    examples = _examples(workdir / "data" / name / "dropped.jsonl")
    found.append(
      {
        "name": name,
        "kind": stage.kind,
        "num_lines": stage.num_lines,
        "counts": rest,
        "num_dropped": sum(dropped.values()),
        "dropped": [
          {
            "reason": _words(reason),
            "count": count,
            "share": count / largest,
            "examples": examples.get(reason, []),
          }
          for reason, count in sorted(dropped.items(), key=lambda item: -item[1])
          if count
        ],
        "idle": [_words(reason) for reason, count in dropped.items() if not count],
        "categories": [
          {"name": key, "size": size, "tokens": tokens.get(key)}
          for key, size in sizes.items()
        ],
      }
    )
  return found


def _after(prefix: str, counts: Mapping[str, float]) -> dict[str, float]:
  return {k.removeprefix(prefix): v for k, v in counts.items() if k.startswith(prefix)}


def _words(key: str) -> str:
  return key.replace("_", " ")


def _examples(path: Path) -> dict[str, list[dict[str, Any]]]:
  """By reason the first few; each is {"why": text, "texts": [(field, text)]}."""
  found: dict[str, list[dict[str, Any]]] = {}
  if not path.exists():
    return found
  with open(path, encoding="utf-8") as f:
    for number, line in enumerate(f, 1):
      try:
        record = json.loads(line)
        reason = str(record["filter"])
      except (ValueError, TypeError, KeyError) as e:
        raise InputError(
          f"{path}:{number} does not say why something was dropped ({e!r}); remove "
          "that line"
        ) from e
      of_reason = found.setdefault(reason, [])
      if len(of_reason) < _EXAMPLES:
        texts = [(key, _text(record[key])) for key in record if _is_text(key, record)]
        of_reason.append({"why": str(record.get("why", "")), "texts": texts})
  return found


def _is_text(key: str, record: Mapping[str, Any]) -> bool:
  value = record[key]
  is_list = isinstance(value, list) and all(isinstance(v, str) for v in value)
  return (
    key not in ("filter", "why", "problem_id")
    and bool(value)
    and (isinstance(value, str) or is_list)
  )


def _text(value: str | list[str]) -> str:
  text = value if isinstance(value, str) else "\n—\n".join(value)
  left_out = len(text) - _CHARACTERS
  if left_out <= 0:
    return text
  return f"{text[:_CHARACTERS]} [… {left_out:,} characters more]"
