"""What a run leaves behind as numbers and samples.

`metrics.jsonl` holds one JSON object a line, for all stages of a run, in the order of
events. A line is one write to the operating system, so a killed process loses at most
the line it was writing, and a later start drops that half line.
"""

import contextlib
import importlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from r1jax import trees
from r1jax.errors import InputError

_FILE = "metrics.jsonl"
_OWN_KEYS = ("step", "stage", "time")
_TENSORBOARD_FLUSH_S = 10.0


class Writer:
  """Appends metrics to `workdir/metrics.jsonl`, and to TensorBoard and wandb.

  Args:
    workdir: the run directory; made if absent.
    tensorboard: also write `workdir/tensorboard/<stage>/`.
    wandb: a wandb project name, or None. The wandb run is named after the folder and
      continues over restarts; a repeated step repeats equal numbers there.
    is_main: False on all processes but one of a run on several hosts: nothing is
      written, values are still checked, so that all hosts stop together.

  Raises:
    InputError: wandb was asked for and is not installed, or the disk refuses.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    tensorboard: bool = True,
    wandb: str | None = None,
    is_main: bool = True,
  ):
    self._workdir = Path(workdir)
    self._is_main = is_main
    self._last_finite: dict[str, int] = {}
    self._stages: set[str] = set()
    self._tensorboard: dict[str, _Events] | None = {} if tensorboard else None
    self._wandb = None
    if not is_main:
      return
    if wandb is not None:
      self._wandb = _wandb_run(wandb, self._workdir)
    with _disk(self._workdir):
      self._workdir.mkdir(parents=True, exist_ok=True)
      (self._workdir / _FILE).touch()
      _drop_half_line(self._workdir / _FILE)

  def write(self, step: int, stage: str, metrics: Mapping[str, Any]) -> None:
    """Appends one line; numbers may be Python's, numpy's or jax's scalars.

    A number that is not finite is written as null. Where it is a loss or the gradient
    norm the run must not go on: the line is written, then the error is raised.

    Raises:
      FloatingPointError: `loss/*` or `optim/grad_norm` is not finite.
      InputError: the disk refuses; lines written before are whole.
      TypeError: a value is not a scalar number.
    """
    metrics = {name: _scalar(name, v) for name, v in jax.device_get(metrics).items()}
    if self._is_main:
      self._append(step, stage, metrics)
    self._check_finite(step, stage, metrics)

  def close(self) -> None:
    if not self._is_main:
      return
    with _disk(self._workdir):
      for events in (self._tensorboard or {}).values():
        events.close()
    if self._wandb is not None:
      self._wandb.finish()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def _append(self, step: int, stage: str, metrics: dict[str, float | int | None]):
    now = time.time()
    numbers = {name: _finite(value) for name, value in metrics.items()}
    line = {"step": int(step), "stage": stage, "time": now, **numbers}
    if clash := sorted(set(_OWN_KEYS) & set(numbers)):
      raise ValueError(f"metrics may not be named {clash}: every line has these")
    with _disk(self._workdir):
      # Opened for each line, since `truncate` puts another file in its place.
      with open(self._workdir / _FILE, "ab", buffering=0) as file:
        _append_whole(file, (json.dumps(line, allow_nan=False) + "\n").encode())
      numbers = {name: value for name, value in numbers.items() if value is not None}
      if self._tensorboard is not None:
        if stage not in self._tensorboard:
          folder = self._workdir / "tensorboard" / stage
          self._tensorboard[stage] = _Events(folder, first_step=step)
        self._tensorboard[stage].write(step, now, numbers)
    if self._wandb is not None:
      # Steps start at 0 again in each stage, which wandb's own counter would refuse.
      if stage not in self._stages:
        self._stages.add(stage)
        self._wandb.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
      own = {f"{stage}/{name}": value for name, value in numbers.items()}
      self._wandb.log({f"{stage}/step": int(step), **own})

  def _check_finite(self, step: int, stage: str, metrics: dict[str, Any]) -> None:
    for name, value in metrics.items():
      if value is None or not name.startswith(("loss/", "optim/grad_norm")):
        continue
      if math.isfinite(value):
        self._last_finite[f"{stage}/{name}"] = step
        continue
      before = self._last_finite.get(f"{stage}/{name}")
      since = (
        f"after step {before}, where it was finite"
        if before is not None
        else ("in the first step of this process")
      )
      raise FloatingPointError(
        f"{name} is {value} at step {step} of stage {stage!r}, {since}; checkpoints up "
        "to there are good. Usual causes: a learning rate too high, log-probs of "
        "sampler and trainer that differ (policy/logp_gap_max), a half-precision range"
      )


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """All lines of a run directory in order; [] where there are none.

  A half-written last line is left out.

  Raises:
    InputError: a line before the last is not a JSON object.
  """
  return [json.loads(line) for line in _whole_lines(Path(workdir) / _FILE)]


def truncate(
  workdir: str | os.PathLike, stage: str, step: int, stages_after: Iterable[str]
) -> int:
  """Takes `metrics.jsonl` back to a restored checkpoint, in one atomic rename.

  Lines of `stage` beyond `step`, lines of `stages_after` and a half-written last line
  go; other bytes stay as they are. TensorBoard needs no call: the first step that is
  written again tells it to forget the later ones.

  Returns:
    The number of whole lines dropped.
  """
  path = Path(workdir) / _FILE
  lines = _whole_lines(path)
  later = set(stages_after)

  def is_kept(line: bytes) -> bool:
    entry = json.loads(line)
    beyond = entry["stage"] == stage and entry["step"] > step
    return not beyond and entry["stage"] not in later

  kept = [line for line in lines if is_kept(line)]
  if path.exists():
    write_whole(path, b"".join(kept))
  return len(lines) - len(kept)


def write_samples(
  workdir: str | os.PathLike,
  stage: str,
  name: str,
  step: int,
  records: Iterable[Mapping[str, Any]],
) -> Path:
  """Writes `samples/<stage>/<name>_<step>.jsonl` whole or not at all.

  Args:
    name: "train", or "eval_<set>".
    records: JSON-like; numpy and jax values are converted, numbers that are not
      finite become null.
  """
  path = Path(workdir) / "samples" / stage / f"{name}_{step:06d}.jsonl"
  lines = [json.dumps(_plain(record), allow_nan=False) + "\n" for record in records]
  with _disk(workdir):
    path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, "".join(lines).encode())
  return path


class _Events:
  """One TensorBoard event file of one stage.

  tensorboardX's own SummaryWriter hands events to a thread; where the disk is full
  that thread dies and close() waits for it without end. This writes at once.
  """

  def __init__(self, folder: Path, *, first_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    # The name is made of seconds: a number tells two starts in one second apart.
    suffix = f".{len(list(folder.iterdir())):04d}"
    self._writer = EventsWriter(str(folder / "events"), suffix)
    start = SessionLog(status=SessionLog.START)
    self._writer.write_event(Event(step=first_step, session_log=start))
    self._flushed = -math.inf

  def write(self, step: int, now: float, numbers: Mapping[str, float | int]) -> None:
    values = [Summary.Value(tag=k, simple_value=v) for k, v in numbers.items()]
    summary = Summary(value=values)
    self._writer.write_event(Event(step=step, wall_time=now, summary=summary))
    if now - self._flushed > _TENSORBOARD_FLUSH_S:
      self._writer.flush()
      self._flushed = now

  def close(self) -> None:
    self._writer.close()


def _wandb_run(project: str, workdir: Path) -> Any:
  try:
    wandb = importlib.import_module("wandb")
  except ImportError as e:
    raise InputError(
      f"--config.log.wandb={project!r} needs wandb, which is not installed: "
      "run `pip install wandb`, or leave --config.log.wandb empty"
    ) from e
  return wandb.init(
    project=project,
    dir=str(workdir),
    name=workdir.name,
    id=trees.digest(str(workdir.resolve())),
    resume="allow",
  )


@contextlib.contextmanager
def _disk(workdir: str | os.PathLike) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    raise InputError(
      f"cannot write to {workdir}: {e.strerror}. What is there already is kept: make "
      "room (or permit writing) and run the same command again to continue, or name "
      "another --workdir"
    ) from e


def _append_whole(file: Any, data: bytes) -> None:
  """Appends all of `data`, or nothing."""
  end = file.seek(0, os.SEEK_END)
  try:
    done = 0
    while done < len(data):
      done += file.write(data[done:])
  except OSError:
    file.truncate(end)
    raise


def _drop_half_line(path: Path) -> None:
  with open(path, "rb+") as f:
    data = f.read()
    f.truncate(data.rfind(b"\n") + 1)


def _whole_lines(path: Path) -> list[bytes]:
  """The newline-terminated lines, each checked to be a JSON object with our keys."""
  if not path.exists():
    return []
  lines = path.read_bytes().splitlines(keepends=True)
  if lines and not lines[-1].endswith(b"\n"):
    lines.pop()
  for number, line in enumerate(lines, 1):
    try:
      entry = json.loads(line)
    except ValueError as e:
      raise InputError(f"{path}:{number} is not JSON ({e}); remove that line") from e
    if not isinstance(entry, dict) or not set(_OWN_KEYS) <= set(entry):
      raise InputError(
        f"{path}:{number} is not a line of metrics (no {', '.join(_OWN_KEYS)}); "
        "remove that line"
      )
  return lines


def write_whole(path: Path, data: bytes) -> None:
  """Puts `data` at `path` in one rename: a reader sees the old file or the new one.

  Raises:
    InputError: the disk refuses; the old file is as it was.
  """
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  with _disk(path.parent):
    try:
      with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)


def _scalar(name: str, value: Any) -> float | int | None:
  if value is None:
    return None
  array = np.asarray(value)
  if array.size != 1 or array.dtype.kind in "OSUcmM":
    raise TypeError(
      f"metric {name!r} must be one number, not {type(value).__name__} of shape "
      f"{array.shape} and dtype {array.dtype}"
    )
  return int(array.item()) if array.dtype.kind in "biu" else float(array.item())


def _finite(value: float | int | None) -> float | int | None:
  return value if value is None or math.isfinite(value) else None


def _plain(value: Any) -> Any:
  """JSON-like from containers, numpy and jax values."""
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    return _plain(jax.device_get(value).tolist())
  return _finite(value) if isinstance(value, float) else value
