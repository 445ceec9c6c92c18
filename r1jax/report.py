"""A run directory to one HTML page.

    python -m r1jax.report --workdir=DIR [--out=FILE]

The page fetches nothing: opened from a disk, by mail or on a phone it is the same page.
All text from models, data sets and configs goes through the template's escaping.
"""

import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from absl import app, flags

from r1jax import charts, metrics, panels, terminal
from r1jax.errors import InputError, refuse

MAX_PROBLEMS = 8
MAX_EVALUATIONS = 200
# Characters kept of one stretch of text: from its start, and from its end.
_HEAD, _TAIL = 1200, 500
_MAX_SPANS = 24
_TRUNCATED_WARNING = 0.2


def write_report(
  workdir: str | Path, out: str | Path | None = None, *, name: str | None = None
) -> Path:
  """Writes the page of a run, by default to `workdir/report.html`.

  Args:
    name: what the page calls the run; by default the folder's name.

  Raises:
    InputError: no such folder, no metrics in it, a damaged file in it.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise InputError(f"--workdir={workdir} is not a folder; name the folder of a run")
  lines = metrics.read(workdir)
  if not lines:
    raise InputError(
      f"--workdir={workdir} has no metrics (metrics.jsonl is absent or empty); name "
      "the folder of a run that has done a step"
    )
  page = _page(workdir, lines, workdir.resolve().name if name is None else name)
  out = workdir / "report.html" if out is None else Path(out)
  if not out.parent.is_dir():
    raise InputError(f"--out={out}: there is no folder {out.parent}")
  metrics.write_whole(out, page.encode("utf-8", errors="replace"))
  return out


def _page(workdir: Path, lines: list[dict[str, Any]], name: str) -> str:
  stages: dict[str, list[dict[str, Any]]] = {}
  for line in lines:
    stages.setdefault(line["stage"], []).append(line)
  facts = _facts(workdir)
  main = _main_evaluation(stages)
  problems = None if main is None else _problems(workdir, *main, stages[main[0]])
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["printable"] = terminal.printable
  template = resources.files("r1jax").joinpath("report_template.html").read_text()
  return environment.from_string(template).render(
    name=name,
    headline=_headline(stages, main),
    lede=_lede(stages, main),
    cards=_cards(stages, main, lines, facts),
    notes=_notes(stages),
    headline_charts=[] if main is None else panels.headline(stages[main[0]], main[1]),
    problems=problems,
    # The stage that the page is about comes first.
    stages=[
      panels.of_stage(stage, stages[stage])
      for stage in sorted(stages, key=lambda s: main is not None and s != main[0])
    ],
    smooth_percent=100 // charts.SMOOTH_PARTS,
    evaluations=_evaluations(lines),
    facts=facts,
    written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    num_lines=len(lines),
  )


def _main_evaluation(stages: Mapping[str, list]) -> tuple[str, str] | None:
  """(stage, set) the page is about: of the last stage that was evaluated most."""
  best, best_count = None, 0
  for stage, lines in reversed(stages.items()):
    for name in panels.sets(lines):
      count = len(panels.series(lines, f"eval/{name}/accuracy")[0])
      if count > best_count and (best_count < 2 or best[0] == stage):
        best, best_count = (stage, name), count
  return best


def _percent(value: float) -> str:
  return charts.value_text(100 * value, "%")


def _verb(before: float, after: float) -> str:
  return "rose" if after > before else "fell" if after < before else "stayed"


def _headline(
  stages: Mapping[str, list], main: tuple[str, str] | None
) -> list[tuple[str, str]]:
  """The result in a sentence, as (text, "", "accuracy" or "length") pieces."""
  if main is not None:
    lines = stages[main[0]]
    _, accuracy = panels.series(lines, f"eval/{main[1]}/accuracy")
    _, length = panels.series(lines, f"eval/{main[1]}/length_mean")
    if len(accuracy) == 1:
      accuracy_is = ("Held-out accuracy is ", "")
      return [accuracy_is, (_percent(accuracy[0]), "accuracy"), (".", "")]
    pieces = [
      (f"Held-out accuracy {_verb(accuracy[0], accuracy[-1])} from ", ""),
      (_percent(accuracy[0]), "accuracy"),
      (" to ", ""),
      (_percent(accuracy[-1]), "accuracy"),
    ]
    if len(length) > 1:
      verb = "grew" if length[-1] > length[0] else "went"
      pieces += [
        (f", while the mean response {verb} from ", ""),
        (charts.value_text(length[0], "tokens"), "length"),
        (" to ", ""),
        (f"{charts.value_text(length[-1], 'tokens')} tokens", "length"),
      ]
    return [*pieces, (".", "")]
  for key, what, unit in (
    ("reward/total", "Mean reward", ""),
    ("loss/cross_entropy", "Cross-entropy", " nats per token"),
  ):
    for stage, lines in reversed(stages.items()):
      steps, values = panels.series(lines, key)
      if len(values) > 1:
        means = charts.running_mean(values, max(1, len(values) // 25))
        return [
          (f"{what} {_verb(means[0], means[-1])} from ", ""),
          (charts.value_text(means[0]), "accuracy"),
          (" to ", ""),
          (f"{charts.value_text(means[-1])}{unit}", "accuracy"),
          (f" over {steps[-1] - steps[0] + 1:,} steps of {stage}.", ""),
        ]
  return [(f"A run of {' and '.join(stages)}.", "")]


def _lede(stages: Mapping[str, list], main: tuple[str, str] | None) -> str:
  parts = []
  if main is not None:
    stage, name = main
    low = panels.series(stages[stage], f"eval/{name}/accuracy_low")[1]
    high = panels.series(stages[stage], f"eval/{name}/accuracy_high")[1]
    n = panels.series(stages[stage], f"eval/{name}/n")[1]
    on = f"on {n[-1]:,.0f} problems of the set “{name}”" if n else f"on “{name}”"
    if len(low) > 1 and len(low) == len(high):
      parts.append(
        f"Measured {on}; 95\u00a0% intervals {100 * low[0]:.1f} to {_percent(high[0])} "
        f"before and {100 * low[-1]:.1f} to {_percent(high[-1])} after."
      )
      if low[-1] <= high[0] and low[0] <= high[-1]:
        parts.append("The two intervals overlap.")
    else:
      parts.append(f"Measured {on}.")
  counts = [f"{lines[-1]['step']:,} of {stage}" for stage, lines in stages.items()]
  parts.append(f"Training steps: {', then '.join(counts)}.")
  return " ".join(parts)


def _cards(
  stages: Mapping[str, list],
  main: tuple[str, str] | None,
  lines: list[dict[str, Any]],
  facts: Mapping[str, Any],
) -> list[tuple[str, str, str]]:
  """(label, number, what it is compared with)."""
  cards = []
  if main is not None:
    own = stages[main[0]]
    for label, key, form in (
      ("Held-out accuracy", "accuracy", _percent),
      (
        "Mean response",
        "length_mean",
        lambda v: f"{charts.value_text(v, 'tokens')} tokens",
      ),
      ("Answers in the format", "format", _percent),
    ):
      values = panels.series(own, f"eval/{main[1]}/{key}")[1]
      if values:
        before = f"{form(values[0])} before" if len(values) > 1 else ""
        cards.append((label, form(values[-1]), before))
  last_stage, last_lines = next(reversed(stages.items()))
  speed = sorted(panels.series(last_lines, "rollout/tokens_per_s")[1])
  if speed:
    median = charts.value_text(speed[len(speed) // 2])
    cards.append(("Sampling", f"{median} tok/s", f"median of {last_stage}"))
  taken = lines[-1]["time"] - lines[0]["time"]
  cards.append(("Time", terminal.duration(taken), "first to last line"))
  if facts["num_params"]:
    cards.append(("Parameters", facts["num_params"], facts["devices"]))
  return cards


def _notes(stages: Mapping[str, list]) -> list[str]:
  """What a reader should know before believing the curves."""
  notes = []
  for stage, lines in stages.items():
    _, cut = panels.series(lines, "rollout/truncated")
    recent = cut[-max(1, len(cut) // 10) :]
    if recent and sum(recent) / len(recent) > _TRUNCATED_WARNING:
      notes.append(
        f"{_percent(sum(recent) / len(recent))} of the last answers of {stage} were "
        "cut off at the length limit."
      )
    _, compiled = panels.series(lines, "compile/count")
    if compiled and compiled[-1] > compiled[0]:
      notes.append(
        f"{stage} compiled {compiled[-1] - compiled[0]:.0f} more programs after its "
        "first step."
      )
  return notes


def _problems(
  workdir: Path, stage: str, set_name: str, lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
  """The same held-out problems at the first, the middle and the last step kept."""
  last_step = max(line["step"] for line in lines)
  files = {}
  for path in (workdir / "samples" / stage).glob(f"eval_{set_name}_*.jsonl"):
    number = path.stem.removeprefix(f"eval_{set_name}_")
    if number.isdigit() and int(number) <= last_step:
      files[int(number)] = path
  if not files:
    return None
  steps = sorted(files)
  middle = min(steps, key=lambda s: abs(s - (steps[0] + steps[-1]) / 2))
  chosen = sorted({steps[0], middle, steps[-1]})
  names = {steps[0]: "Before" if steps[0] == 0 else "First kept"}
  if len(chosen) > 1:
    names[steps[-1]] = "After"
  kept = [_by_problem(files[step]) for step in chosen]
  shared = [key for key in kept[0] if all(key in records for records in kept)]
  prefix = _shared_prefix([str(kept[0][key].get("prompt", "")) for key in shared])
  columns = []
  for step, records in zip(chosen, kept, strict=True):
    marks = [_is_right(records[key]) for key in shared]
    columns.append(
      {
        "name": names.get(step, "Half way"),
        "step": f"{step:,}",
        "right": sum(mark is True for mark in marks),
      }
    )
  return {
    "columns": columns,
    "num_shared": len(shared),
    "prefix": _clip(prefix),
    "items": [
      {
        "id": key,
        "prompt": _clip(str(kept[0][key].get("prompt", ""))[len(prefix) :]),
        "answer": str(kept[0][key].get("answer", "")),
        "tries": [_attempt(records[key]) for records in kept],
      }
      for key in shared[:MAX_PROBLEMS]
    ],
  }


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
    "spans": [(kind, _clip(text.strip("\n"))) for kind, text in shown[:_MAX_SPANS]],
    "more_spans": max(0, len(shown) - _MAX_SPANS),
  }


def _clip(text: str) -> str:
  left_out = len(text) - _HEAD - _TAIL
  if left_out <= 0:
    return text
  return f"{text[:_HEAD]}\n[… {left_out:,} characters left out …]\n{text[-_TAIL:]}"


def _evaluations(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  rows = []
  for line in lines:
    for name in panels.sets([line]):
      own = {
        key.removeprefix(f"eval/{name}/"): value
        for key, value in line.items()
        if key.startswith(f"eval/{name}/") and value is not None
      }
      if "accuracy" in own:
        rows.append({"stage": line["stage"], "step": line["step"], "set": name} | own)
  if len(rows) > MAX_EVALUATIONS:
    last = len(rows) - 1
    at = [round(i * last / (MAX_EVALUATIONS - 1)) for i in range(MAX_EVALUATIONS)]
    return {"rows": [rows[i] for i in at], "num_all": len(rows)}
  return {"rows": rows, "num_all": len(rows)}


def _facts(workdir: Path) -> dict[str, Any]:
  """How the run was made, from config.json; empty values where it is absent."""
  path = workdir / "config.json"
  known: dict[str, Any] = {}
  if path.exists():
    try:
      known = json.loads(path.read_text())
    except ValueError as e:
      raise InputError(f"{path} is not JSON ({e})") from e
    if not isinstance(known, dict):
      raise InputError(f"{path} is not the config of a run")
  devices = [str(device) for device in known.get("devices", [])]
  mesh = {axis: size for axis, size in known.get("mesh", {}).items() if size != 1}
  num_params = known.get("num_params")
  return {
    "command": known.get("command", ""),
    "git": known.get("git", ""),
    "versions": known.get("versions", {}),
    "devices": _device_text(devices),
    "mesh": " × ".join(f"{axis} {size}" for axis, size in mesh.items()),
    "num_params": "" if num_params is None else _compact(num_params),
    "config": _flat(known.get("config", {})),
  }


def _device_text(devices: Sequence[str]) -> str:
  if len(devices) <= 1:
    return "".join(devices)
  return f"{len(devices)} × {devices[0]}"


def _compact(count: int) -> str:
  for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if count >= size:
      return f"{count / size:.3g} {unit}"
  return str(count)


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
  rows = []
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      rows += _flat(value, f"{prefix}{key}.")
    else:
      shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
      rows.append((f"{prefix}{key}", _clip(shown)))
  return rows


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as e:
    refuse(e)


def main(argv: Sequence[str]) -> None:
  try:
    if len(argv) > 1:
      raise InputError(f"{argv[1:]} is not expected; use --workdir=DIR [--out=FILE]")
    if flags.FLAGS.workdir is None:
      raise InputError("--workdir=DIR is needed: the folder of a run")
    print(write_report(flags.FLAGS.workdir, flags.FLAGS.out))
  except InputError as e:
    refuse(e)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "The run directory.")
  flags.DEFINE_string("out", None, "The page; WORKDIR/report.html by default.")
  app.run(main, flags_parser=_parse_flags)
