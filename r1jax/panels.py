"""Which metrics make which charts of the report."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax import charts


@dataclasses.dataclass(frozen=True)
class Panel:
  """A chart of a stage, left out where none of its metrics exists.

  Attributes:
    keys: metric -> name in the legend. A metric ending in "*" is a prefix: one curve
      for each metric that starts so, named by the rest.
    unit: "%" for shares, which are stored as 0 to 1.
    floor: what the axis must reach.
    is_smooth, may_be_log: as of charts.curves.
  """

  title: str
  unit: str
  keys: Mapping[str, str]
  about: str = ""
  floor: float | None = 0.0
  is_smooth: bool = True
  may_be_log: bool = False


PANELS = (
  Panel("Reward", "points", {"reward/total": "total", "reward/*": ""}),
  Panel(
    "Training accuracy",
    "%",
    {"reward/accuracy": "accuracy"},
    "Sampled answers that are right.",
  ),
  Panel(
    "Cross-entropy",
    "nats per token",
    {"loss/cross_entropy": "cross-entropy"},
    floor=None,
  ),
  Panel("Response length", "tokens", {"rollout/length_mean": "mean"}),
  Panel(
    "Answers cut off",
    "%",
    {"rollout/truncated": "cut off"},
    "Reached the length limit before their end.",
  ),
  Panel(
    "Groups without a signal",
    "%",
    {"group/solved_all": "all right", "group/solved_none": "none right"},
    "All advantages of such a group are zero.",
  ),
  Panel("Entropy", "nats per token", {"policy/entropy": "entropy"}),
  Panel("KL to the reference", "nats per token", {"loss/kl": "KL"}),
  Panel(
    "Clipped tokens",
    "%",
    {"policy/clip_fraction": "clipped"},
    "Their probability ratio left the allowed range.",
  ),
  Panel(
    "Log-prob gap",
    "nats",
    {"policy/logp_gap_mean": "mean", "policy/logp_gap_max": "largest"},
    "Sampler against trainer: same weights, same tokens.",
    may_be_log=True,
  ),
  Panel("Policy loss", "per token", {"loss/policy": "loss"}, floor=None),
  Panel(
    "Gradient norm", "global L2 norm", {"optim/grad_norm": "norm"}, may_be_log=True
  ),
  Panel("Learning rate", "per step", {"optim/lr": "rate"}, is_smooth=False),
  Panel(
    "Speed",
    "tokens per second",
    {
      "rollout/tokens_per_s": "sampling",
      "score/tokens_per_s": "scoring",
      "update/tokens_per_s": "training",
    },
  ),
  Panel(
    "Share of the machine's limit",
    "%",
    {
      "rollout/share_of_limit": "sampling",
      "score/share_of_limit": "scoring",
      "update/share_of_limit": "training",
    },
    "The least time that products and memory reads would take, in the time taken.",
  ),
  Panel(
    "Idle slots",
    "%",
    {"rollout/idle_share": "idle"},
    "Slot-steps in which the sampler had no answer to work on.",
  ),
)


def series(
  lines: Sequence[Mapping[str, Any]], key: str, *, scale: float = 1.0
) -> tuple[list[int], list[float]]:
  """Steps and values of a metric; of a repeated step the last one."""
  found = {
    line["step"]: line[key] * scale
    for line in lines
    if isinstance(line.get(key), int | float) and math.isfinite(line[key])
  }
  steps = sorted(found)
  return steps, [found[step] for step in steps]


def sets(lines: Sequence[Mapping[str, Any]]) -> list[str]:
  """Names of the evaluated sets, in the order of their first line."""
  names: dict[str, None] = {}
  for line in lines:
    for key in line:
      if key.startswith("eval/") and key.endswith("/accuracy"):
        names[key.removeprefix("eval/").removesuffix("/accuracy")] = None
  return list(names)


def headline(lines: list[dict[str, Any]], main_set: str) -> list[charts.Chart]:
  """Accuracy with its interval, and response length, of up to four sets."""
  names = sorted(sets(lines), key=lambda name: name != main_set)[:4]
  accuracy, length = [], []
  for name in names:
    steps, values = series(lines, f"eval/{name}/accuracy", scale=100)
    low_steps, low = series(lines, f"eval/{name}/accuracy_low", scale=100)
    high_steps, high = series(lines, f"eval/{name}/accuracy_high", scale=100)
    interval = (low, high) if low_steps == high_steps == steps else ((), ())
    accuracy.append(charts.Series(name, steps, values, *interval))
    steps, values = series(lines, f"eval/{name}/length_mean")
    length.append(charts.Series(name, steps, values))
  x_range = _x_range(lines)
  found = [
    charts.curves(
      "Held-out accuracy",
      accuracy,
      unit="%",
      x_range=x_range,
      about="Band: 95 % interval." if accuracy[0].low else "",
      floor=0.0,
      ceiling=100.0,
      is_tall=True,
    ),
    charts.curves(
      "Held-out response length",
      length,
      unit="tokens",
      x_range=x_range,
      about="Mean over all answers.",
      floor=0.0,
      is_tall=True,
      first_hue=1,
    ),
  ]
  return [chart for chart in found if chart is not None]


def _x_range(lines: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
  steps = [line["step"] for line in lines]
  return (min(0, *steps) if len(steps) > 1 else 0, max(steps))


def of_stage(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
  """The charts of a stage, and those of metrics that no panel knows."""
  x_range = _x_range(lines)
  names = list(dict.fromkeys(key for line in lines for key in line))
  known = {"step", "stage", "time", "compile/count"}
  # In the table alone: on one device they are what the chart of the speed shows.
  known |= {name for name in names if name.endswith("/tokens_per_s_per_device")}
  found = []
  for panel in PANELS:
    keys = _expanded(panel.keys, names)
    known |= set(keys)
    found.append(_panel_chart(panel, keys, lines, x_range))
  known |= {name for name in names if name.startswith("time/")}
  found.append(_time_chart(lines, x_range))
  others = [
    charts.curves(
      name, [charts.Series(name, *series(lines, name))], unit="", x_range=x_range
    )
    for name in names
    if name not in known and not name.startswith("eval/")
  ]
  return {
    "name": name,
    "steps": f"{x_range[1]:,}",
    "charts": [chart for chart in found if chart is not None],
    "times": times(lines),
    "others": [chart for chart in others if chart is not None],
  }


def _expanded(keys: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
  expanded = {}
  for key, label in keys.items():
    if key.endswith("*"):
      prefix = key[:-1]
      own = [n for n in names if n.startswith(prefix) and n not in expanded]
      expanded |= {n: n.removeprefix(prefix) for n in own}
    else:
      expanded[key] = label
  return expanded


def _panel_chart(
  panel: Panel,
  keys: Mapping[str, str],
  lines: Sequence[Mapping[str, Any]],
  x_range: tuple[float, float],
) -> charts.Chart | None:
  found = [charts.Series(label, *series(lines, key)) for key, label in keys.items()]
  if panel.unit == "%":
    found = [dataclasses.replace(s, values=[100 * v for v in s.values]) for s in found]
  return charts.curves(
    panel.title,
    found,
    unit=panel.unit,
    x_range=x_range,
    about=panel.about,
    floor=panel.floor,
    is_smooth=panel.is_smooth,
    may_be_log=panel.may_be_log,
  )


def _time_chart(
  lines: Sequence[Mapping[str, Any]], x_range: tuple[float, float]
) -> charts.Chart | None:
  """Phases on top of one another, and what is left of the step on top of all."""
  timed, columns = _by_phase(lines)
  if not timed:
    return None
  steps = [line["step"] for line in timed]
  return charts.stack(
    "Step time by phase" if len(columns) > 1 else "Step time",
    [charts.Series(name, steps, values) for name, values in columns.items()],
    unit="seconds",
    x_range=x_range,
  )


def _by_phase(
  lines: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], dict[str, list[float]]]:
  """Lines of steps that say how long they took, and seconds of each by phase.

  The longest phase comes first; last is what no phase has, "other", or without any
  phase all of the "step".
  """
  timed = [line for line in lines if isinstance(line.get("time/step_s"), int | float)]
  phases = dict.fromkeys(
    key for line in timed for key in line if key.startswith("time/")
  )
  columns = {
    phase.removeprefix("time/").removesuffix("_s"): [
      0.0 if line.get(phase) is None else line[phase] for line in timed
    ]
    for phase in phases
    if phase != "time/step_s"
  }
  rest = [
    max(0.0, line["time/step_s"] - sum(column[i] for column in columns.values()))
    for i, line in enumerate(timed)
  ]
  columns = dict(sorted(columns.items(), key=lambda item: -sum(item[1])))
  return timed, columns | {"other" if columns else "step": rest}


def times(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Rows of the table of a step's time: its phases, and "step" for all of it.

  Seconds, speed and share of the limit are medians over the steps, "share" is of all
  their time. The first step, which compiles, is left out where there are others.
  """
  timed, columns = _by_phase(lines)
  first = len(timed) > 1
  timed = timed[first:]
  if not timed:
    return []
  columns = {name: values[first:] for name, values in columns.items()}
  columns["step"] = [line["time/step_s"] for line in timed]
  total = sum(columns["step"])

  def median(key: str) -> float | None:
    _, values = series(timed, key)
    return statistics.median(values) if values else None

  return [
    {
      "phase": name,
      "seconds": statistics.median(values),
      "share": sum(values) / max(total, 1e-9),
      "tokens_per_s": median(f"{name}/tokens_per_s_per_device"),
      "share_of_limit": median(f"{name}/share_of_limit"),
      "idle_share": median(f"{name}/idle_share"),
    }
    for name, values in columns.items()
  ]
