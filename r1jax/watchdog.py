"""Which phase a run is in, for how long, and a word when that is too long."""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from absl import logging

_HEARTBEAT_S = 1.0


class _Phase(NamedTuple):
  name: str
  since: float  # time.monotonic()


class Watchdog:
  """A daemon thread that writes `heartbeat.json` and prints stacks of a stuck phase.

  The clock of a phase starts again with each inner phase that begins or ends and with
  each `beat`, so an outer phase may last for ever as long as something happens in it.
  Use it as a context manager, or call `start` and `stop`.

  Args:
    workdir: where `heartbeat.json` goes, at most once a second; None for no file, as
      on all hosts but one. It holds `phase`, `step`, `time` (unix seconds, when it was
      written: the process lives), `phase_s` (seconds without progress) and `pid`.
    limit_s: seconds a phase may last before its stacks are printed, once per phase;
      None for no limit.
    stream: where the stacks go, a file with a descriptor; standard error by default.
  """

  def __init__(
    self,
    workdir: str | os.PathLike | None,
    *,
    limit_s: float | None,
    stream: IO[str] | None = None,
  ):
    self._path = None if workdir is None else Path(workdir) / "heartbeat.json"
    self._limit_s = limit_s
    self._stream = sys.__stderr__ if stream is None else stream
    self._tick_s = _HEARTBEAT_S if limit_s is None else min(_HEARTBEAT_S, limit_s / 4)
    self._step: int | None = None
    self._now = _Phase("start", time.monotonic())
    self._told: _Phase | None = None
    self._written = -_HEARTBEAT_S
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

  def start(self) -> "Watchdog":
    self._thread.start()
    return self

  def stop(self) -> None:
    if not self._over.is_set():
      self._over.set()
      self._thread.join()
      self._now = _Phase("end", time.monotonic())
      self._heartbeat()

  def __enter__(self) -> "Watchdog":
    return self.start()

  def __exit__(self, *unused: object) -> None:
    self.stop()

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Names what the main thread does from here on; may be nested."""
    outer = self._now.name
    self._now = _Phase(name, time.monotonic())
    try:
      yield
    finally:
      self._now = _Phase(outer, time.monotonic())

  def beat(self, step: int | None = None) -> None:
    """Says that the phase makes progress; `step` is shown in the heartbeat."""
    if step is not None:
      self._step = int(step)
    self._now = _Phase(self._now.name, time.monotonic())

  def _run(self) -> None:
    while not self._over.wait(self._tick_s):
      self._heartbeat()
      now = self._now
      stuck_s = time.monotonic() - now.since
      if self._limit_s is not None and stuck_s > self._limit_s and now != self._told:
        self._told = now
        self._dump(now.name, stuck_s)

  def _dump(self, name: str, stuck_s: float) -> None:
    print(
      f"watchdog: phase {name!r} of step {self._step} has made no progress for "
      f"{stuck_s:.1f} s (limit {self._limit_s:g} s); stacks of all threads:",
      file=self._stream,
      flush=True,
    )
    faulthandler.dump_traceback(file=self._stream, all_threads=True)

  def _heartbeat(self) -> None:
    now = self._now
    is_due = time.monotonic() - self._written >= _HEARTBEAT_S or now.name == "end"
    if self._path is None or not is_due:
      return
    self._written = time.monotonic()
    beat = {
      "phase": now.name,
      "step": self._step,
      "time": time.time(),
      "phase_s": round(time.monotonic() - now.since, 3),
      "pid": os.getpid(),
    }
    temporary = self._path.with_name(".heartbeat.tmp")
    try:
      temporary.write_text(json.dumps(beat) + "\n")
      os.replace(temporary, self._path)
    except OSError as e:
      logging.log_every_n_seconds(logging.WARNING, "no heartbeat: %s", 60, e)


class PhaseClock:
  """The host's seconds by phase: `with clock("rollout"): ...`, then `take()`.

  A phase that begins within another stops the clock of that one, so that no second
  counts twice. Devices work on after their programs have been started: their time is in
  the phase in which the host waits for them.

  Args:
    watchdog: told of each phase as well.
  """

  def __init__(self, watchdog: Watchdog | None = None):
    self._watchdog = watchdog
    self._seconds: dict[str, float] = {}
    self._open: list[str] = []
    self._since = 0.0

  @contextlib.contextmanager
  def __call__(self, name: str, *, shown: str = "") -> Iterator[None]:
    """Counts for `name`; the watchdog sees `shown` where that is given."""
    watched = contextlib.nullcontext()
    if self._watchdog is not None:
      watched = self._watchdog.phase(shown or name)
    self._count()
    self._open.append(name)
    try:
      with watched:
        yield
    finally:
      self._count()
      self._open.pop()

  def _count(self) -> None:
    """Gives the phase that is open the time since the last call."""
    now = time.perf_counter()
    if self._open:
      name = self._open[-1]
      self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
    self._since = now

  def take(self) -> dict[str, float]:
    """{"time/<phase>_s": seconds} since the last call; phases of one name add up.

    May be called within a phase, which then begins anew.
    """
    self._count()
    seconds, self._seconds = self._seconds, {}
    return {f"time/{name}_s": value for name, value in seconds.items()}
