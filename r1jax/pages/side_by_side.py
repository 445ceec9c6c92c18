"""The same held-out problems, answered at several moments of a run."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r1jax import charts, terminal
from r1jax.errors import InputError

MAX_PROBLEMS = 8
# Moments of a recipe that are shown, from its first to its last.
MAX_COLUMNS = 8
# Characters kept of one stretch of text: from its start, and from its end.
_HEAD, _TAIL = 1200, 500
_MAX_SPANS = 24


class Moment(NamedTuple):
  """When answers were kept: a heading, what is beside it, and it in a sentence."""

  name: str
  beside: str
  told: str
  path: Path


def problems(
  workdir: Path,
  stage: str,
  set_name: str,
  stages: Mapping[str, Sequence[Mapping[str, Any]]],
  kept_by: Mapping[str, str],
  *,
  by_stage: bool,
) -> dict[str, Any] | None:
  """The problems that were kept at every moment; None where nothing was.

  Args:
    stage: whose first, middle and last answers are shown.
    stages: name -> its lines of metrics.
    kept_by: stage -> another that has evaluated it on the set.
    by_stage: show the last answers of every stage in place of these.
  """
  others = set(kept_by.values())
  kept_at = {
    name: _kept(workdir, by, set_name, stages[by])
    for name in stages
    if name not in others
    for by in (kept_by.get(name, name),)
  }
  moments = _by_stage(kept_at) if by_stage else _by_step(kept_at[stage])
  if not moments:
    return None
  kept = [_by_problem(moment.path) for moment in moments]
  shared = [key for key in kept[0] if all(key in records for records in kept)]
  prefix = _shared_prefix([str(kept[0][key].get("prompt", "")) for key in shared])
  columns = []
  for moment, records in zip(moments, kept, strict=True):
    marks = [_is_right(records[key]) for key in shared]
    columns.append({**moment._asdict(), "right": sum(mark is True for mark in marks)})
  return {
    "columns": columns,
    "num_shared": len(shared),
    "prefix": clip(prefix),
    "items": [
      {
        "id": key,
        "prompt": clip(str(kept[0][key].get("prompt", ""))[len(prefix) :]),
        "answer": str(kept[0][key].get("answer", "")),
        "tries": [_attempt(records[key]) for records in kept],
      }
      for key in shared[:MAX_PROBLEMS]
    ],
  }


def _kept(
  workdir: Path, stage: str, set_name: str, lines: Sequence[Mapping[str, Any]]
) -> dict[int, Path]:
  """{step: file}, without those that a run which went back has left behind."""
  last_step = max(line["step"] for line in lines)
  files = {}
  for path in (workdir / "samples" / stage).glob(f"eval_{set_name}_*.jsonl"):
    number = path.stem.removeprefix(f"eval_{set_name}_")
    if number.isdigit() and int(number) <= last_step:
      files[int(number)] = path
  return dict(sorted(files.items()))


def _by_step(files: Mapping[int, Path]) -> list[Moment]:
  """The first, the middle and the last step that was kept."""
  if not files:
    return []
  steps = list(files)
  middle = min(steps, key=lambda s: abs(s - (steps[0] + steps[-1]) / 2))
  names = {steps[0]: "Before" if steps[0] == 0 else "First kept"}
  if len(steps) > 1:
    names[steps[-1]] = "After"
  return [
    Moment(names.get(s, "Half way"), f"step {s:,}", f"at step {s:,}", files[s])
    for s in sorted({steps[0], middle, steps[-1]})
  ]


def _by_stage(kept_at: Mapping[str, Mapping[int, Path]]) -> list[Moment]:
  """Before the first stage, and after each."""
  moments = []
  for stage, files in kept_at.items():
    if not files:
      continue
    first, last = next(iter(files)), next(reversed(files))
    if not moments and first == 0 and last > 0:
      moments.append(Moment("Before", stage, f"before {stage}", files[first]))
    moments.append(Moment(stage, "", f"after {stage}", files[last]))
  if len(moments) <= MAX_COLUMNS:
    return moments
  gap = (len(moments) - 1) / (MAX_COLUMNS - 1)
  return [moments[round(i * gap)] for i in range(MAX_COLUMNS)]


def _by_problem(path: Path) -> dict[str, dict[str, Any]]:
  """Problem id -> its first sample, in the order of the file."""
  records: dict[str, dict[str, Any]] = {}
  with open(path, encoding="utf-8") as f:
    for number, line in enumerate(f, 1):
      try:
        record = json.loads(line)
        records.setdefault(str(record["problem_id"]), record)
      except (ValueError, KeyError, TypeError) as e:
        raise InputError(
          f"{path}:{number} is not a sample ({e!r}); remove that line"
        ) from e
  return records


def _shared_prefix(prompts: Sequence[str]) -> str:
  """The sentences or lines that all prompts begin with; "" where these are short."""
  if len(prompts) < 2:
    return ""
  # What the first and the last in order share, all share.
  pairs = zip(min(prompts), max(prompts), strict=False)
  same = "".join(
    a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
  )
  shared = re.match(r"(.*([.:!?]\s|\n))?", same, re.DOTALL)[0]
  return shared if len(shared) >= 60 else ""


def _is_right(record: Mapping[str, Any]) -> bool | None:
  accuracy = record.get("reward", {}).get("accuracy")
  return None if accuracy is None else accuracy > 0.5


def _attempt(record: Mapping[str, Any]) -> dict[str, Any]:
  parts = dict(record.get("reward", {}))
  found = terminal.spans(
    str(record.get("prompt", "")), str(record.get("completion", ""))
  )
  shown = [span for span in found if span.kind != "tag" and span.text.strip()]
  return {
    "is_right": _is_right(record),
    "total": parts.pop("total", None),
    "parts": {
      name: charts.value_text(value)
      for name, value in parts.items()
      if isinstance(value, int | float)
    },
    "length": record.get("length"),
    "is_cut": record.get("stop") == "length",
    "spans": [(kind, clip(text.strip("\n"))) for kind, text in shown[:_MAX_SPANS]],
    "more_spans": max(0, len(shown) - _MAX_SPANS),
  }


def clip(text: str) -> str:
  left_out = len(text) - _HEAD - _TAIL
  if left_out <= 0:
    return text
  return f"{text[:_HEAD]}\n[… {left_out:,} characters left out …]\n{text[-_TAIL:]}"
