"""Runs of one config with several seeds: what each stage reached by answers drawn."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1jax import metrics, trees
from r1jax.errors import InputError, one_of
from r1jax.evals.intervals import mean_interval
from r1jax.stages import setup

# Sections of a config in which runs may differ.
_ASIDE = ("seed", "mesh", "cpu_devices", "checkpoint", "on_change", "log", "profile")
# Accuracy is compared at the start and after each of so many parts of the budget.
NUM_PARTS = 16


@dataclasses.dataclass(frozen=True)
class Point:
  """How far a stage of a run is.

  Attributes:
    answers: drawn for training so far. Those of groups that a filter dropped count, and
      the greedy ones of a baseline; those of evaluations do not.
    tokens: of these answers.
    updates: of the policy.
    seconds: of the steps, evaluations aside; the first one compiles.
    accuracy: on held-out problems, 0 to 1.
  """

  answers: float
  tokens: float
  updates: float
  seconds: float
  accuracy: float


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over seeds with its 95 % interval."""

  mean: float
  low: float
  high: float

  @classmethod
  def of(cls, values: Sequence[float]) -> "Estimate":
    return cls(statistics.fmean(values), *mean_interval(values))


@dataclasses.dataclass(frozen=True)
class Compared:
  """A stage over all seeds.

  Attributes:
    accuracy: at the start and after each part of the budget.
    by_seed: accuracy of each run at the budget.
    gain: its accuracy there less that of the first stage in the same run; None for the
      first stage.
    tokens, updates, seconds: mean over the seeds at the budget.
    drawn: all answers, those beyond the budget too; mean over the seeds.
  """

  accuracy: Sequence[Estimate]
  by_seed: Sequence[float]
  gain: Estimate | None
  tokens: float
  updates: float
  seconds: float
  drawn: float


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What figure and table are made of.

  Attributes:
    eval_set: name of the held-out problems, `num_problems` of them.
    temperatures: that they were answered with, one unless stages differ.
    budget: answers of each stage.
    seeds: of the runs.
    stages: in the order of the config.
  """

  eval_set: str
  num_problems: int
  temperatures: Sequence[float]
  budget: float
  seeds: Sequence[int]
  stages: Mapping[str, Compared]


def read(
  workdirs: Sequence[str | Path],
  *,
  eval_set: str | None = None,
  budget: float | None = None,
) -> Comparison:
  """Compares stages of runs that differ in their seeds alone.

  Args:
    workdirs: run directories, two or more.
    eval_set: a name in `eval.sets`, by default the only one; stages that are not
      evaluated on it are left out.
    budget: answers, by default as many as every stage of every run has drawn.

  Raises:
    InputError: a folder without what is needed, runs that differ in more than seeds, a
      set or a budget that is not there.
  """
  if len(workdirs) < 2:
    raise InputError(
      f"{len(workdirs)} folders of runs are given; an interval needs two or more, of "
      "runs that differ in --config.seed"
    )
  configs = [_config(Path(workdir)) for workdir in workdirs]
  seeds = [config["seed"] for config in configs]
  if len(set(seeds)) < len(seeds):
    raise InputError(f"the runs have the seeds {seeds}; give runs of different ones")
  for workdir, config in zip(workdirs, configs, strict=True):
    if changed := _differences(configs[0], config):
      raise InputError(
        f"{workdir} and {workdirs[0]} differ in config.{changed[0]}; give runs that "
        "differ in config.seed alone"
      )
  settings = setup.stage_sections(configs[0])
  sets = {name: own.get("eval", {}).get("sets", {}) for name, own in settings.items()}
  eval_set = _chosen(eval_set, sets)
  settings = {name: own for name, own in settings.items() if eval_set in sets[name]}
  lines = [metrics.read(workdir) for workdir in workdirs]
  curves = {name: [] for name in settings}
  ends = []
  for name, own in settings.items():
    for workdir, of_run in zip(workdirs, lines, strict=True):
      of_stage = [line for line in of_run if line["stage"] == name]
      points = curve(of_stage, own, eval_set)
      if not points or not points[-1].answers:
        raise InputError(
          f"{workdir} has no answers of stage {name!r} that an evaluation on "
          f"{eval_set!r} follows; run it to its end"
        )
      curves[name].append(points)
      ends.append((points[-1].answers, f"stage {name!r} of {workdir}"))
  most, where = min(ends)
  if budget is None:
    budget = most
  if not 0 < budget <= most:
    raise InputError(
      f"--answers={budget:g}: must be above 0 and at most {most:g}, which is what "
      f"{where} has drawn"
    )
  counts = [line[key] for line in lines[0] if (key := f"eval/{eval_set}/n") in line]
  return Comparison(
    eval_set=eval_set,
    num_problems=counts[0],
    temperatures=sorted({own["eval"]["temperature"] for own in settings.values()}),
    budget=budget,
    seeds=seeds,
    stages=_compared(curves, budget),
  )


def curve(
  lines: Iterable[Mapping[str, Any]], settings: Mapping[str, Any], eval_set: str
) -> list[Point]:
  """A stage at each of its evaluations, from its lines of metrics.

  Args:
    settings: all of the stage, as `setup.stage_sections` has them.
  """
  answers = tokens = updates = seconds = 0.0
  points = []
  for line in lines:
    if "time/step_s" in line:
      now = drawn(line, settings)
      answers += now
      tokens += now * line.get("rollout/length_mean", 0.0)
      updates += _updates(settings)
      seconds += line["time/step_s"] - line.get("time/eval_s", 0.0)
    accuracy = line.get(f"eval/{eval_set}/accuracy")
    if accuracy is not None:
      points.append(Point(answers, tokens, updates, seconds, accuracy))
  return points


def at(points: Sequence[Point], answers: float) -> Point:
  """Where a curve is at a number of answers, on straight lines between its points."""
  columns = np.asarray([dataclasses.astuple(point) for point in points]).T
  return Point(*(float(np.interp(answers, columns[0], column)) for column in columns))


def drawn(line: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
  """Answers that the line of a step tells of, see `Point.answers`."""
  if settings["kind"] == "expert":
    return line.get("expert/answers", 0)
  rollout = settings["rollout"]
  asked = line.get("filter/asked", rollout["prompts"])
  greedy = settings["advantage"]["estimator"] == "remax"
  return asked * rollout["group_size"] + greedy * rollout["prompts"]


def _updates(settings: Mapping[str, Any]) -> int:
  """Of the policy in a step."""
  if settings["kind"] == "expert":
    return 1
  return settings["training"]["minibatches"] * settings["training"]["epochs"]


def _compared(
  curves: Mapping[str, Sequence[Sequence[Point]]], budget: float
) -> dict[str, Compared]:
  """`Comparison.stages` of {stage: the curve of each run}."""
  found, first = {}, None
  for name, own in curves.items():
    at_parts = [[at(one, x) for one in own] for x in parts(budget)]
    ends = at_parts[-1]
    by_seed = [end.accuracy for end in ends]
    gain = None
    if first is not None:
      gain = Estimate.of([a - b for a, b in zip(by_seed, first, strict=True)])
    first = by_seed if first is None else first
    accuracies = [Estimate.of([one.accuracy for one in seeds]) for seeds in at_parts]
    found[name] = Compared(
      # A share, whatever the width of its interval.
      [Estimate(e.mean, max(e.low, 0.0), min(e.high, 1.0)) for e in accuracies],
      by_seed,
      gain,
      statistics.fmean(end.tokens for end in ends),
      statistics.fmean(end.updates for end in ends),
      statistics.fmean(end.seconds for end in ends),
      statistics.fmean(one[-1].answers for one in own),
    )
  return found


def parts(budget: float) -> list[float]:
  """Answers at which accuracies are compared."""
  return [budget * i / NUM_PARTS for i in range(NUM_PARTS + 1)]


def _chosen(eval_set: str | None, sets: Mapping[str, Iterable[str]]) -> str:
  """The set that was named, or the only one of all stages."""
  known = list(dict.fromkeys(key for names in sets.values() for key in names))
  if eval_set is not None:
    return one_of(eval_set, known, key="--set")
  if len(known) != 1:
    raise InputError(
      f"the stages are evaluated on {', '.join(known) or 'no set'}; name one with --set"
    )
  return known[0]


def _config(workdir: Path) -> dict[str, Any]:
  path = workdir / "config.json"
  try:
    return json.loads(path.read_text(encoding="utf-8"))["config"]
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise InputError(
      f"{path} cannot be read ({e!r}); name the folders of runs (--workdir of "
      "r1jax.train)"
    ) from e


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
  """Paths at which two configs differ, but for `_ASIDE`."""
  flat = [
    trees.flatten({key: x for key, x in config.items() if key not in _ASIDE})
    for config in (one, other)
  ]
  return sorted(
    path.replace("/", ".")
    for path in flat[0].keys() | flat[1].keys()
    if flat[0].get(path) != flat[1].get(path)
  )
