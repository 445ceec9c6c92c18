"""Runs a program that a model has written, so that it can do no harm.

Three levels, the strongest that works here:

- bubblewrap (0.7 or newer): namespaces of its own for processes, network, users and
  IPC; of the files only the interpreter's and the system's libraries, read-only; an
  empty /tmp of bounded size, which goes with it.
- namespaces: `unshare` gives the first three, files stay those of this machine.
- limits: none of them.

All have limits of time, memory, output, processes and file size, an environment of
their own and no open files of ours. Root becomes a user that owns nothing. The memory
of a test is at most `memory_mb` times `processes`; what a program holds without mapping
it (System V segments, anonymous files) is bounded only by its time.
"""

import dataclasses
import functools
import json
import os
import pathlib
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from r1jax.errors import InputError, one_of
from r1jax.rewards import sandboxed

GRACE_S = 0.5  # for the sandbox to say that the time is over
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
# Levels of a setting, the first that works.
KINDS: dict[str, tuple[str, ...]] = {
  "auto": ("bubblewrap", "namespaces", "limits"),
  "bubblewrap": ("bubblewrap",),
  "subprocess": ("namespaces", "limits"),
}
TOOLS = {"bubblewrap": "bwrap", "namespaces": "unshare"}
_PROBE = """
import threading

def probe(processes):
  if processes > 1:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
  return "fine"
"""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a program may take.

  Attributes:
    time_s: of a test, by the clock on the wall; CPU time as well.
    total_s: of all tests of a program; those not reached fail.
    memory_mb: MiB of address space of a process.
    output_kb: KiB that a test may print or return.
    file_mb: MiB of a file, and with bubblewrap of all files.
    processes: processes and threads at a time, the program's own among them.
  """

  time_s: float
  total_s: float
  memory_mb: int
  output_kb: int
  file_mb: int
  processes: int

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value <= 0:
        raise InputError(f"config.reward.code.{name}={value}; needed: above 0")


@dataclasses.dataclass(frozen=True)
class Sandbox:
  """A level that works here, and the interpreter that runs in it."""

  level: str
  python: str


class Outcome(NamedTuple):
  """How a test ended: a status of `sandboxed.STATUSES`, or "unreached"; its output.

  The output is the bytes printed, or the returned value as JSON; empty unless "ok".
  """

  status: str
  output: bytes


@functools.cache
def choose(kind: str, limits: Limits, *, python: str = "") -> Sandbox:
  """The first level of a kind that runs a small program here; warns of its gaps once.

  Args:
    kind: a key of KINDS.
    python: an interpreter, for "" the one that runs this.

  Raises:
    InputError: unknown kind; none of its levels works here.
  """
  reasons = []
  for level in KINDS[one_of(kind, KINDS, key="config.reward.code.sandbox")]:
    sandbox = Sandbox(level, os.path.realpath(python or sys.executable))
    reason = fault(sandbox, limits)
    if not reason:
      if level != "bubblewrap":
        logging.warning(
          "programs of answers run in a weak sandbox: they can %s%s",
          unprotected(level),
          "".join(f"; {said}" for said in reasons),
        )
      return sandbox
    reasons.append(f"{level} does not work here: {reason}")
  raise InputError(
    f"config.reward.code.sandbox={kind!r}: {'; '.join(reasons)}. Install bubblewrap "
    "0.7 or newer, with the right to make namespaces, or choose another of "
    f"{', '.join(KINDS)}"
  )


def fault(sandbox: Sandbox, limits: Limits) -> str:
  """Why a sandbox does not work here; "" if it does."""
  tool = TOOLS.get(sandbox.level)
  if tool and shutil.which(tool) is None:
    return f"there is no command {tool!r}"
  if sandbox.level != "bubblewrap" and os.geteuid() == 0:
    for above in pathlib.Path(sandbox.python).parents:
      if not above.stat().st_mode & 0o001:
        return f"root has to become another user, and those may not enter {above}"
  test = {"args": [limits.processes], "kwargs": {}}
  try:
    [outcome] = run(_PROBE, [test], sandbox, limits, function="probe")
  except RuntimeError as e:
    return str(e)
  if outcome != Outcome("ok", b'"fine"'):
    return f"a small program under the limits of config.reward.code: {outcome.status}"
  return ""


def unprotected(level: str) -> str:
  """What a program can do in a level below bubblewrap."""
  whose = "every user" if os.geteuid() == 0 else "this user"
  can = [f"read what {whose} may read", f"write and delete what {whose} may"]
  if level == "limits":
    can.append("reach the network")
    if os.geteuid() != 0:
      can.append("signal and read this user's processes, and leave some of its own")
  return ", ".join(can)


def run(
  program: str,
  tests: Sequence[Mapping[str, Any]],
  sandbox: Sandbox,
  limits: Limits,
  *,
  function: str | None = None,
  stop: bool = False,
) -> list[Outcome]:
  """Runs a program on each test, each time anew, all within one start of the sandbox.

  Nothing of it is left running, also where this process is killed meanwhile (of the
  level "limits" see `unprotected`).

  Args:
    program: Python source.
    tests: records of `stdin`, or of `args` and `kwargs` for a call of `function`; what
      should come out does not belong here.
    function: a function of the program, or `Class.method` of a class that is made
      without arguments.
    stop: ends with the first test that is not "ok".

  Returns:
    An outcome for each test.

  Raises:
    InputError: the memory is more than this process may give.
    RuntimeError: the sandbox itself did not start.
  """
  memory, most = limits.memory_mb * 2**20, resource.getrlimit(resource.RLIMIT_AS)[1]
  if most != resource.RLIM_INFINITY and memory > most:
    raise InputError(
      f"config.reward.code.memory_mb={limits.memory_mb} is more than a reward worker "
      f"may have, {most // 2**20}; see config.reward.memory_limit_mb"
    )
  end = time.monotonic() + limits.total_s
  # Of the users that systemd keeps for processes without files.
  uid = 61_184 + os.getpid() % 4_000 if os.geteuid() == 0 else None
  request = {
    "program": program,
    "function": function,
    "tests": list(tests),
    "stop": stop,
    "end": end,
    "uid": uid,
    "level": sandbox.level,
    **dataclasses.asdict(limits),
  }
  most = (len(tests) + 1) * (limits.output_kb * 1024 + sandboxed.FRAME.size)
  with (
    os.fdopen(os.memfd_create("request"), "r+b") as stdin,
    Folder(sandbox, uid) as folder,
  ):
    stdin.write(json.dumps(request).encode())
    stdin.seek(0)
    process = subprocess.Popen(
      command(sandbox, limits),
      cwd=folder,
      # Sets of texts have one order, so that a program has one reward.
      env={"HOME": folder, "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},
      stdin=stdin,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
    )
    with process:
      try:
        sent = receive(process.stdout.fileno(), end + GRACE_S, most)
      finally:
        process.kill()
      if not sent.startswith(sandboxed.READY):
        os.set_blocking(process.stderr.fileno(), False)
        said = (process.stderr.read(2000) or b"").decode(errors="replace").strip()
        last = said.rpartition("\n")[2] or f"it was silent for {limits.total_s} s"
        raise RuntimeError(f"the sandbox did not start: {last}")
  outcomes = frames(sent[len(sandboxed.READY) :])[: len(tests)]
  return outcomes + [Outcome("unreached", b"")] * (len(tests) - len(outcomes))


class Folder:
  """The folder in which a program starts: of the sandbox, or one that is made here."""

  def __init__(self, sandbox: Sandbox, uid: int | None):
    self._made = sandbox.level != "bubblewrap"
    self._uid = uid
    self._path = "/tmp"

  def __enter__(self) -> str:
    if self._made:
      self._path = tempfile.mkdtemp(prefix="r1jax_program_")
      if self._uid is not None:
        os.chown(self._path, self._uid, self._uid)
    return self._path

  def __exit__(self, *_: object) -> None:
    if self._made:
      # A tree may be deeper than shutil.rmtree can go.
      subprocess.run(["rm", "-rf", self._path], check=False, capture_output=True)


def command(sandbox: Sandbox, limits: Limits) -> list[str]:
  """The sandbox's command line."""
  python = [sandbox.python, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", driver()]
  root = os.geteuid() == 0
  if sandbox.level == "limits":
    return python
  if sandbox.level == "namespaces":
    user = [] if root else ["--user", "--map-current-user"]
    own = ["--net", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return [shutil.which(TOOLS["namespaces"]), *user, *own, *python]
  # Root needs no namespace of users, and could not become another user in it, whose
  # processes alone are counted by RLIMIT_NPROC.
  user = (
    ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    if root
    else ["--unshare-user"]
  )
  home = pathlib.Path(sandbox.python).parents[1]
  files = []
  for path in LIBRARIES:
    files += ["--ro-bind-try", path, path]
  for above in reversed(home.parents[:-1]):
    files += ["--perms", "0755", "--dir", str(above)]
  return [
    *(shutil.which(TOOLS["bubblewrap"]), *user, "--die-with-parent"),
    *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
    "--unshare-cgroup-try",
    *files,
    *("--ro-bind", str(home), str(home), "--proc", "/proc", "--dev", "/dev"),
    *("--perms", "1777", "--size", str(limits.file_mb * 2**20), "--tmpfs", "/tmp"),
    *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"),
    *python,
  ]


@functools.cache
def driver() -> str:
  return pathlib.Path(sandboxed.__file__).read_text(encoding="utf-8")


def receive(fd: int, end: float, most: int) -> bytes:
  """Reads until the other side closes, the time is over, or it is too much."""
  received = bytearray()
  poll = select.poll()
  poll.register(fd, select.POLLIN)
  # What was sent in time counts, even if this process was not there to read it.
  while len(received) <= most and poll.poll(1000 * max(0, end - time.monotonic())):
    some = os.read(fd, 2**16)
    if not some:
      break
    received += some
  return bytes(received)


def frames(sent: bytes) -> list[Outcome]:
  """The outcomes in what came, up to the first that is not whole."""
  outcomes, at = [], 0
  while at + sandboxed.FRAME.size <= len(sent):
    status, length = sandboxed.FRAME.unpack_from(sent, at)
    at += sandboxed.FRAME.size + length
    if status >= len(sandboxed.STATUSES) or at > len(sent):
      break
    outcomes.append(Outcome(sandboxed.STATUSES[status], sent[at - length : at]))
  return outcomes
