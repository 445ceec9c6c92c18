"""The processes behind `RewardPool`: a server that forks workers, and the workers.

The server is a fresh interpreter that never imports jax. It loads the verifiers' heavy
libraries once and forks workers from itself, so that replacing a killed worker takes
milliseconds, and no fork ever happens in a process that runs jax. The main process
speaks to the server over one connection and to each worker over another.
"""

import importlib
import logging
import math
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")


def serve(fd: int) -> None:
  """Server: obeys ("load", modules), ("fork",) + a handle, ("kill", pid), until EOF."""
  # A cluster signals every process of a job; the main one still saves, and may judge.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  control = Connection(fd)
  sys.stdout = sys.stderr
  for name in ("math_verify", "latex2sympy2_extended"):
    # They warn about each odd text and about their own time limits being off.
    logging.getLogger(name).setLevel(logging.ERROR)
  children: set[int] = set()
  try:
    parts, memory_limit_mb = pickle.loads(control.recv_bytes())
    control.send(None)
    while True:
      command, *arguments = control.recv()
      children -= reaped()
      if command == "load":
        control.send(load(*arguments))
      elif command == "fork":
        handle = recv_handle(control)
        pid = os.fork()
        if pid == 0:
          control.close()
          work(Connection(handle), parts, memory_limit_mb)
        os.close(handle)
        children.add(pid)
        control.send(pid)
      elif command == "kill" and arguments[0] in children:
        os.kill(arguments[0], signal.SIGKILL)
  except EOFError:
    pass
  except (ImportError, AttributeError) as e:  # of the parts
    control.send(f"{type(e).__name__}: {e}")
  finally:
    for pid in children - reaped():
      os.kill(pid, signal.SIGKILL)


def reaped() -> set[int]:
  """Children that have ended since the last call."""
  ended = set()
  while True:
    try:
      pid, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
      return ended
    if pid == 0:
      return ended
    ended.add(pid)


def load(modules: tuple[str, ...]) -> str | None:
  """Imports modules; returns what went wrong, or None."""
  try:
    for name in modules:
      importlib.import_module(name)
  except ImportError as e:
    return f"{type(e).__name__}: {e}"
  return None


def address_space() -> int:
  """Bytes of virtual memory that this process has."""
  with open("/proc/self/statm") as f:
    return int(f.read().split()[0]) * PAGE


def work(
  tasks: Connection,
  parts: Mapping[str, Callable[[str, Mapping[str, Any]], float]],
  memory_limit_mb: int,
) -> None:
  """Worker: takes lists of (text, record), sends one verdict per item; never returns.

  A verdict is (values by part, the errors met, whether the worker leaves now); it is
  sent as soon as it is known, so that the item under way when a worker dies or is
  killed is known as well. A worker that has grown leaves before a harmless item meets
  the limit.
  """
  limit = memory_limit_mb * 2**20
  start = address_space()
  resource.setrlimit(resource.RLIMIT_AS, (start + limit, start + limit))
  leaves = False
  try:
    while not leaves:
      for text, record in tasks.recv():
        values, errors = judge(parts, text, record)
        leaves = address_space() - start > limit // 2
        tasks.send((values, errors, leaves))
        if leaves:
          break
  except (EOFError, ConnectionError):
    pass
  finally:
    os._exit(0)


def judge(
  parts: Mapping[str, Callable[[str, Mapping[str, Any]], float]],
  text: str,
  record: Mapping[str, Any],
) -> tuple[dict[str, float], list[str]]:
  values, errors = {}, []
  for name, part in parts.items():
    try:
      value = float(part(text, record))
      if not math.isfinite(value):
        raise ValueError(f"it returned {value}")
      values[name] = value
    except MemoryError:
      os._exit(1)  # what is left of this process is not to be trusted
    except Exception as e:  # noqa: BLE001  (no verifier's exception may end a run)
      values[name] = 0.0
      errors.append(f"{name}: {type(e).__name__}: {e}"[:500])
  return values, errors
