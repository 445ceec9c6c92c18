"""A run directory to one HTML page.

    python -m r1jax.report --workdir=DIR [--out=FILE]

The page fetches nothing: opened from a disk, by mail or on a phone it is the same page.
All text from models, data sets and configs goes through the template's escaping.
"""

import json
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from absl import app, flags

from r1jax import charts, metrics, panels, terminal
from r1jax.errors import InputError, refuse
from r1jax.pages import lineage, side_by_side
from r1jax.pages import recipe as recipes

MAX_EVALUATIONS = 200
# With more stages than these, their curves are folded away.
_MAX_OPEN_STAGES = 3
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
  made = lineage.read(workdir, list(stages))
  measured = lineage.measured(made, stages)
  main = _main_evaluation(measured)
  recipe = recipes.of_run(
    workdir,
    made,
    measured,
    None if main is None else main[1],
    planned=facts["stages"],
  )
  problems = None
  if main is not None:
    kept_by = {
      stage: by[main[1]]
      for stage, by in lineage.evaluated_by(made, stages).items()
      if main[1] in by
    }
    # Of repetitions the first.
    once = {names[0] for names in lineage.families(made).values()}
    shown = {s: own for s, own in stages.items() if s in once or s not in made}
    problems = side_by_side.problems(
      workdir,
      *main,
      shown if recipe.is_recipe else stages,
      kept_by,
      by_stage=recipe.is_recipe,
    )
  # Those that leave a file have one line of metrics: it stands in tables.
  trained = {s: own for s, own in stages.items() if s not in made or made[s].num_steps}
  curves = _curves(trained, main, is_recipe=recipe.is_recipe)
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
    headline=recipe.headline or _headline(measured, main),
    lede=recipe.lede or _lede(measured, main, trained),
    cards=_cards(measured, main, lines, facts, best=recipe.best),
    notes=_notes(stages),
    headline_charts=[]
    if main is None or recipe.is_recipe
    else panels.headline(measured[main[0]], main[1]),
    recipe=recipe,
    problems=problems,
    stages=curves,
    stage_links={
      stage["name"]: f"stage-{number}"
      for number, stage in enumerate(curves, 1)
      if stage["charts"] or stage["others"]
    },
    products=lineage.PRODUCTS,
    folds=len(curves) > _MAX_OPEN_STAGES,
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


def _curves(
  stages: Mapping[str, list], main: tuple[str, str] | None, *, is_recipe: bool
) -> list[dict[str, Any]]:
  """The charts of each stage.

  A recipe's page has no curves at its top, so those of held-out sets are here; of
  another the stage that the page is about comes first.
  """
  order = list(stages)
  if not is_recipe:
    order.sort(key=lambda stage: main is not None and stage != main[0])
  found = []
  for stage in order:
    lines, held_out = stages[stage], []
    if is_recipe and sum(bool(panels.sets([line])) for line in lines) > 1:
      held_out = panels.headline(lines, panels.sets(lines)[0])
    found.append({**panels.of_stage(stage, lines), "held_out": held_out})
  return found


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


def _lede(
  stages: Mapping[str, list],
  main: tuple[str, str] | None,
  trained: Mapping[str, list],
) -> str:
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
  counts = [f"{lines[-1]['step']:,} of {stage}" for stage, lines in trained.items()]
  if counts:
    parts.append(f"Training steps: {', then '.join(counts)}.")
  return " ".join(parts)


def _cards(
  stages: Mapping[str, list],
  main: tuple[str, str] | None,
  lines: list[dict[str, Any]],
  facts: Mapping[str, Any],
  *,
  best: str,
) -> list[tuple[str, str, str]]:
  """(label, number, what it is compared with).

  Args:
    best: the stage that a recipe's page is about, else "".
  """
  cards = []
  if main is not None:
    own = stages[best or main[0]]
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
        if best:
          before = ", ".join(filter(None, (f"after {best}", before)))
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
    "stages": known.get("config", {}).get("stages", []),
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
      rows.append((f"{prefix}{key}", side_by_side.clip(shown)))
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
