"""What a run prints: what was resolved, a line a step, samples, where to look next.

On a terminal the line of the running step is rewritten in place; elsewhere (a file, a
scheduler's log) a step is a plain line of its own, one a second at most.
"""

import collections
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from r1jax.data.templates import (
  ANSWER_CLOSE,
  ANSWER_OPEN,
  TAGS,
  THINK_CLOSE,
  THINK_OPEN,
)

# What the line of a step shows, where the step has it: name, label, format.
_FIELDS = (
  ("loss/cross_entropy", "loss", "{:.3f}"),
  ("reward/total", "reward", "{:.3f}"),
  ("reward/accuracy", "acc", "{:.1%}"),
  ("rollout/length_mean", "length", "{:.1f}"),
)
_RATE = "tokens_per_s"
_RECENT_STEPS = 20
_TREND_STEPS = 24
_PLAIN_EVERY_S = 1.0
_BARS = "▁▂▃▄▅▆▇█"
_SAMPLE_CHARACTERS = 1500


class Span(NamedTuple):
  """A piece of a completion.

  Attributes:
    kind: "think", "answer", "plain" (neither), "tag" (one that opens or closes these
      in their order) or "stray" (a tag where it does not belong).
  """

  kind: str
  text: str


def spans(prompt: str, completion: str) -> list[Span]:
  """Cuts a completion at its tags; a prompt may have opened the thinking already.

  The texts joined are the completion again. A tag that is not closed runs to the end.
  """
  turns = {
    ("plain", THINK_OPEN): "think",
    ("think", THINK_CLOSE): "plain",
    ("plain", ANSWER_OPEN): "answer",
    ("answer", ANSWER_CLOSE): "plain",
  }
  kind = "think" if prompt.rstrip().endswith(THINK_OPEN) else "plain"
  found = []
  rest = completion
  while rest:
    at, tag = min(
      ((rest.find(tag), tag) for tag in TAGS if tag in rest), default=(len(rest), "")
    )
    if at > 0:
      found.append(Span(kind, rest[:at]))
    if tag:
      turn = turns.get((kind, tag))
      found.append(Span("stray" if turn is None else "tag", tag))
      kind = kind if turn is None else turn
    rest = rest[at + len(tag) :]
  return found


def printable(text: str) -> str:
  """Control characters as visible signs, so that no text can steer a terminal."""

  def shown(c: str) -> str:
    if c in "\n\t" or (ord(c) >= 32 and not 0x7F <= ord(c) < 0xA0):
      return "\ufffd" if 0xD800 <= ord(c) < 0xE000 else c
    return chr(0x2400 + ord(c)) if ord(c) < 32 else "\ufffd"

  return "".join(map(shown, text))


def duration(seconds: float) -> str:
  """Such as "48 s", "8 min 12 s", "3 h 4 min", "2 d 7 h"."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"
  units = [("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)]
  unit, size, part, part_size = next(u for u in units if whole >= u[1])
  rest = whole % size // part_size
  return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")


def num_bytes(count: float) -> str:
  """Such as "3.1 MiB"."""
  unit = "B"
  for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
    if count < 1024 or unit == "TiB":
      break
    count /= 1024
  return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def print_resolved(
  *,
  config_path: str,
  stages: Sequence[str],
  devices: Sequence[str],
  mesh: Mapping[str, int],
  num_params: int,
  bytes_per_device: int,
  workdir: str | Path,
  console: Console | None = None,
) -> None:
  """The table before the work starts.

  Args:
    devices: one name per device, such as jax.devices() as text.
    mesh: axis -> size.
    bytes_per_device: parameters, optimizer state and reference on one device.
  """
  kinds = collections.Counter(devices)
  axes = [f"{axis} {size}" for axis, size in mesh.items() if size > 1]
  rows = {
    "config": config_path,
    "stages": " → ".join(stages),
    "devices": ", ".join(f"{n} × {kind}" for kind, n in kinds.items()),
    "mesh": " × ".join(axes) if axes else "one device",
    "parameters": f"{num_params:,}",
    "bytes per device": num_bytes(bytes_per_device),
    "output": str(workdir),
  }
  console = Console() if console is None else console
  console.print(pairs(rows))
  console.print()


class Progress:
  """The lines of one stage. A context manager.

  Args:
    total: the number of the last step.
  """

  def __init__(self, stage: str, total: int, *, console: Console | None = None):
    self._stage = stage
    self._total = total
    self._console = Console() if console is None else console
    self._seconds: collections.deque[float] = collections.deque(maxlen=_RECENT_STEPS)
    self._trend: collections.deque[float] = collections.deque(maxlen=_TREND_STEPS)
    self._before: tuple[int, float] | None = None
    self._printed_at = -_PLAIN_EVERY_S
    self._live: Live | None = None
    self._line = Text()

  def __enter__(self) -> "Progress":
    if self._console.is_terminal:
      self._live = Live(console=self._console, auto_refresh=False, transient=True)
      self._live.start()
    return self

  def __exit__(self, *unused: object) -> None:
    if self._live is not None:
      self._live.stop()
      self._console.print(self._line)

  def step(self, step: int, metrics: Mapping[str, Any]) -> None:
    """One step is done, with these training metrics."""
    now = time.monotonic()
    if self._before is not None and step > self._before[0]:
      self._seconds.append((now - self._before[1]) / (step - self._before[0]))
    self._before = (step, now)
    self._line = self._written(step, metrics)
    if self._live is not None:
      self._live.update(self._line, refresh=True)
    elif now - self._printed_at >= _PLAIN_EVERY_S or step == self._total:
      self._printed_at = now
      self._console.print(self._line, soft_wrap=True)

  def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
    """A lasting line for each set of `eval/<set>/accuracy` in `metrics`."""
    for name in metrics:
      if not (name.startswith("eval/") and name.endswith("/accuracy")):
        continue
      prefix = name.removesuffix("accuracy")
      line = Text(f"{self._stage} {step:>{len(str(self._total))}}/{self._total}  ")
      line.append(f"{name.split('/')[1]}  ", style="cyan")
      line.append(f"accuracy {metrics[name]:.1%}", style="bold")
      low = metrics.get(f"{prefix}accuracy_low")
      high = metrics.get(f"{prefix}accuracy_high")
      if low is not None and high is not None:
        line.append(f" ({100 * low:.1f} to {high:.1%})")
      if (length := metrics.get(f"{prefix}length_mean")) is not None:
        line.append(f"  length {length:.1f}")
      if (n := metrics.get(f"{prefix}n")) is not None:
        line.append(f"  n {int(n)}", style="dim")
      self._console.print(line, soft_wrap=True)

  def sample(self, record: Mapping[str, Any]) -> None:
    """One rollout: its prompt, the thinking dimmed apart from the answer, its reward.

    Args:
      record: as in samples/*.jsonl.
    """
    styles = {"think": "dim", "tag": "dim", "answer": "bold", "stray": "red"}
    text = Text()
    text.append(f"── sample, step {record['step']} ", style="cyan")
    text.append(f"({record['problem_id']})\n", style="dim")
    text.append(_clipped(record["prompt"]) + "\n")
    left = _SAMPLE_CHARACTERS
    for span in spans(record["prompt"], record["completion"]):
      text.append(_clipped(span.text, left), style=styles.get(span.kind, ""))
      left -= len(span.text)
      if left <= 0:
        break
    parts = dict(record["reward"])
    total = parts.pop("total", sum(parts.values()))
    text.append("\n→ reward ", style="cyan")
    text.append(f"{total:g}", style="bold")
    if parts:
      shown = ", ".join(f"{name} {value:g}" for name, value in parts.items())
      text.append(f" ({shown})")
    text.append(f"  {record['length']} tokens", style="dim")
    if record["stop"] == "length":
      text.append(", cut off", style="yellow")
    self._console.print(text, soft_wrap=True)

  def _written(self, step: int, metrics: Mapping[str, Any]) -> Text:
    line = Text(no_wrap=self._live is not None, overflow="ellipsis")
    line.append(self._stage, style="bold")
    line.append(f" {step:>{len(str(self._total))}}/{self._total}")
    known = [field for field in _FIELDS if metrics.get(field[0]) is not None]
    for name, label, form in known:
      line.append(f"  {label} ", style="dim")
      line.append(form.format(metrics[name]))
    for name, value in metrics.items():
      if name.endswith(_RATE) and value is not None:
        line.append(f"  {value:,.0f}")
        line.append(" tok/s", style="dim")
        break
    if self._seconds and step < self._total:
      mean_s = sum(self._seconds) / len(self._seconds)
      line.append(f"  {duration(mean_s * (self._total - step))}", style="green")
      line.append(" left", style="dim")
    if known and self._live is not None:
      self._trend.append(metrics[known[0][0]])
      if line.cell_len + 2 + len(self._trend) < self._console.width:
        line.append(f"  {_sparkline(self._trend)}", style="cyan")
    return line


def closing(
  workdir: str | Path,
  *,
  command: Sequence[str],
  seconds: float,
  is_done: bool = True,
  report: str | Path | None = None,
  console: Console | None = None,
) -> None:
  """The last lines of a run.

  Args:
    command: the words of the command, which continues the run where it is not done.
    seconds: what the run took.
    is_done: False where it was stopped.
    report: the page, where one was written.
  """
  rows = {"done in" if is_done else "stopped after": duration(seconds)}
  if report is not None:
    rows["report"] = str(report)
  rows["samples"] = str(Path(workdir) / "samples")
  rows["curves"] = shlex.join(["tensorboard", "--logdir", f"{workdir}/tensorboard"])
  rows["continue"] = shlex.join(command)
  console = Console() if console is None else console
  console.print()
  console.print(pairs(rows))


def pairs(rows: Mapping[str, Any]) -> Table:
  """Names and what they are, a line each, as commands print what they resolved."""
  table = Table.grid(padding=(0, 2))
  for name, value in rows.items():
    said = Text(printable(str(value)), overflow="fold")
    table.add_row(Text(name, style="dim"), said)
  return table


def _clipped(text: str, limit: int = _SAMPLE_CHARACTERS) -> str:
  left_out = len(text) - limit
  note = f" … ({left_out} characters left out)" if left_out > 0 else ""
  return printable(text[:limit]) + note


def _sparkline(values: Sequence[float]) -> str:
  low, high = min(values), max(values)
  span = high - low if high > low else 1.0
  return "".join(_BARS[int((v - low) / span * (len(_BARS) - 1))] for v in values)
