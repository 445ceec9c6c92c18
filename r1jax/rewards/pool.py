"""Rewards in worker processes, with a deadline per item and a hard kill."""

import collections
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from typing import TYPE_CHECKING, Any

from absl import logging

from r1jax.errors import InputError
from r1jax.rewards import accuracy

if TYPE_CHECKING:
  from r1jax.rewards.combine import Part
  from r1jax.types import Problem

START_LIMIT_S = 120.0  # imports on a cold or crowded disk
MAX_CHUNK = 32


class Worker:
  """One worker process as seen from here: its pipe and the items it has been given."""

  def __init__(self, pid: int, pipe: Connection):
    self.pid = pid
    self.pipe = pipe
    self.items: collections.deque[int] = collections.deque()
    self.since = 0.0  # when it began with the first of its items


# What is counted of a batch.
COUNTS = ("timeouts", "crashes", "errors", "seconds")


class RewardPool:
  """Judges texts in processes of their own, where a verifier may hang or die.

  An item that runs past its deadline, kills its process or outgrows its memory gets 0
  in every part; its worker is replaced and the rest of the batch goes on. An item on
  which a part raises gets 0 in that part.

  Processes start at the first `score`, or with `warm`. Use as a context manager, or
  call `close`; they also end with this process, however it ends.

  Args:
    parts: name -> function of (text, record), importable in another process. A record
      is a Problem as a plain dict.
    num_workers: processes.
    timeout_s: wall-clock seconds per item.
    batch_timeout_s: wall-clock seconds per batch; items not judged by then count as
      timed out.
    memory_limit_mb: MiB that a worker may take beyond what it starts with.
  """

  def __init__(
    self,
    parts: "Mapping[str, Part]",
    *,
    num_workers: int = 2,
    timeout_s: float = 10.0,
    batch_timeout_s: float = 300.0,
    memory_limit_mb: int = 1024,
  ):
    for key, value in (
      ("num_workers", num_workers),
      ("timeout_s", timeout_s),
      ("batch_timeout_s", batch_timeout_s),
      ("memory_limit_mb", memory_limit_mb),
    ):
      if value <= 0:
        raise InputError(f"config.reward.{key}={value}; needed: above 0")
    self._parts = dict(parts)
    self._num_workers = num_workers
    self._timeout_s = timeout_s
    self._batch_timeout_s = batch_timeout_s
    self._memory_limit_mb = memory_limit_mb
    self._server: subprocess.Popen | None = None
    self._control: Connection | None = None
    self._workers: list[Worker] = []
    self._loaded: set[str] = set()

  @property
  def names(self) -> list[str]:
    """The parts that it judges."""
    return list(self._parts)

  def seen(self) -> dict[str, float]:
    """Metrics of this process since the beginning."""
    return {}

  def __enter__(self) -> "RewardPool":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends all processes; a later `score` starts new ones."""
    for worker in self._workers:
      worker.pipe.close()
    if self._control is not None:
      self._control.close()  # at which the server kills what is left, and ends
    if self._server is not None:
      self._server.wait()
    self._workers, self._loaded = [], set()
    self._server = self._control = None

  def warm(self, problems: "Iterable[Problem]" = ()) -> None:
    """Starts the processes, with what the verifiers of `problems` import.

    Raises:
      InputError: a part or a verifier's library cannot be imported there.
    """
    self._ready([_record(problem) for problem in problems])

  def _ready(self, records: Sequence[Mapping[str, Any]]) -> None:
    self._load(records)
    while len(self._workers) < self._num_workers:
      self._workers.append(self._fork())

  def score(
    self, texts: Sequence[str], problems: "Sequence[Problem]"
  ) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Judges text i as an answer to problem i.

    Returns:
      The parts of each item, without "accuracy" where the verifier is "none"; and of
      the batch: counts `timeouts`, `crashes` (memory included), `errors` (items on
      which a part raised), and `seconds`.

    Raises:
      InputError: unknown verifier; every item of the batch raised.
    """
    results, counts, raised = self.score_some(texts, problems)
    if raised:
      self.explain(raised, len(texts))
    return results, counts

  def score_some(
    self, texts: Sequence[str], problems: "Sequence[Problem]"
  ) -> tuple[list[dict[str, float]], dict[str, float], list[str]]:
    """`score` of a part of a batch: what was raised is returned, for `explain`."""
    start = time.monotonic()
    items = [
      (text, _record(problem)) for text, problem in zip(texts, problems, strict=True)
    ]
    self._ready([record for _, record in items])
    try:
      results, stats, raised = self._judge(items)
    finally:
      # After an interrupt, verdicts of this batch must not be read by the next.
      if any(worker.items for worker in self._workers):
        self.close()
    for parts, problem in zip(results, problems, strict=True):
      if problem.verifier == accuracy.NO_GOLD:
        parts.pop("accuracy", None)
    said = [f"{raised[i]} (problem {problems[i].id!r})" for i in sorted(raised)]
    stats["errors"] = len(said)
    return results, stats | {"seconds": time.monotonic() - start}, said

  def explain(self, raised: Sequence[str], num_items: int) -> None:
    """Warns of a batch in which parts raised.

    Raises:
      InputError: every one of its items did.
    """
    if len(raised) == num_items:
      raise InputError(
        f"every one of {num_items} answers made a reward part raise; the first: "
        f"{raised[0]}; look at config.reward.weights and config.data.verifier"
      )
    logging.warning(
      "%d of %d answers made a reward part raise and got 0 in it; the first: %s",
      len(raised),
      num_items,
      raised[0],
    )

  def _judge(
    self, items: Sequence[tuple[str, Mapping[str, Any]]]
  ) -> tuple[list[dict[str, float]], dict[str, int], dict[int, str]]:
    """Results, counts, and what was raised by index of the item."""
    nothing = dict.fromkeys(self._parts, 0.0)
    results = [dict(nothing) for _ in items]
    stats = {"timeouts": 0, "crashes": 0}
    queue = collections.deque(range(len(items)))
    chunk = max(1, min(MAX_CHUNK, len(items) // (4 * self._num_workers)))
    raised: dict[int, str] = {}
    left = len(items)
    end = time.monotonic() + self._batch_timeout_s

    while left:
      now = time.monotonic()
      for worker in list(self._workers):
        while queue and not worker.items:
          worker.items.extend(queue.popleft() for _ in range(min(chunk, len(queue))))
          worker.since = now
          try:
            worker.pipe.send([items[k] for k in worker.items])
          except ConnectionError:  # it ended while idle: nobody's fault
            worker = self._renew(worker, queue)
      busy = {worker.pipe: worker for worker in self._workers if worker.items}
      deadline = min(min(w.since for w in busy.values()) + self._timeout_s, end)
      for pipe in wait(list(busy), timeout=max(0.0, deadline - time.monotonic())):
        worker = busy[pipe]
        try:
          values, errors, leaves = pipe.recv()
        except (EOFError, ConnectionError):
          self._give_up(worker, queue)
          stats["crashes"] += 1
        else:
          index = worker.items.popleft()
          worker.since = time.monotonic()
          results[index] = values
          if errors:
            raised[index] = errors[0]
          if leaves:
            self._renew(worker, queue)
        left -= 1
      now = time.monotonic()
      if now >= end:
        for worker in [w for w in self._workers if w.items]:
          self._give_up(worker, queue)
        queue.clear()
        stats["timeouts"] += left
        left = 0
      for worker in [
        w for w in self._workers if w.items and now >= w.since + self._timeout_s
      ]:
        # A verdict may have come in while the others were read.
        if not worker.pipe.poll():
          self._give_up(worker, queue)
          stats["timeouts"] += 1
          left -= 1

    return results, stats, raised

  def _give_up(self, worker: Worker, queue: collections.deque[int]) -> None:
    """Abandons the item that a worker is at."""
    worker.items.popleft()
    self._renew(worker, queue)

  def _renew(self, worker: Worker, queue: collections.deque[int]) -> Worker:
    """Ends a worker and puts a new one in its place; its items return to the queue."""
    queue.extendleft(reversed(worker.items))
    worker.pipe.close()
    self._ask("kill", worker.pid)
    fresh = self._workers[self._workers.index(worker)] = self._fork()
    return fresh

  def _fork(self) -> Worker:
    ours, theirs = socket.socketpair()
    with theirs:
      self._ask("fork")
      send_handle(self._control, theirs.fileno(), self._server.pid)
    return Worker(self._answer(), Connection(ours.detach()))

  def _load(self, records: Sequence[Mapping[str, Any]]) -> None:
    if self._server is None:
      self._start()
    modules: set[str] = set()
    parts = self._parts.values()
    if any(getattr(part, "func", part) is accuracy.score for part in parts):
      modules.update(*(accuracy.modules_of(record) for record in records))
    if modules <= self._loaded:
      return
    self._ask("load", tuple(sorted(modules)))
    wrong = self._answer()
    if wrong is not None:
      raise InputError(
        f"reward workers cannot import {sorted(modules)}: {wrong}; install it, or "
        "choose another config.data.verifier"
      )
    self._loaded |= modules
    # Those already running were forked without it.
    for worker in self._workers:
      worker.pipe.close()
    self._workers = []

  def _start(self) -> None:
    ours, theirs = socket.socketpair()
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with theirs:
      self._server = subprocess.Popen(
        [
          sys.executable,
          "-c",
          f"from r1jax.rewards import worker; worker.serve({theirs.fileno()})",
        ],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for the main process, which ends its workers itself.
        start_new_session=True,
        env=os.environ
        | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
      )
    self._control = Connection(ours.detach())
    self._control.send_bytes(pickle.dumps((self._parts, self._memory_limit_mb)))
    wrong = self._answer()
    if wrong is not None:
      raise InputError(
        f"reward workers cannot import the parts {sorted(self._parts)}: {wrong}; they "
        "must stand in a module, not in a notebook or a script"
      )

  def _ask(self, *message: object) -> None:
    try:
      self._control.send(message)
    except ConnectionError as e:
      raise RuntimeError(f"the reward server has ended: {self._server.poll()}") from e

  def _answer(self) -> Any:
    try:
      if self._control.poll(START_LIMIT_S):
        return self._control.recv()
    except (EOFError, ConnectionError) as e:
      raise RuntimeError(f"the reward server has ended: {self._server.poll()}") from e
    raise RuntimeError(f"the reward server was silent for {START_LIMIT_S} s")


def _record(problem: "Problem") -> dict[str, Any]:
  """A Problem without its class, which would bring jax into the workers."""
  return {
    "id": problem.id,
    "prompt": problem.prompt,
    "answer": problem.answer,
    "verifier": problem.verifier,
    "meta": dict(problem.meta),
  }
