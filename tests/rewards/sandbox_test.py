"""Tests of the sandbox: what programs print, and that they do no harm.

Harm is tried at every level that works here. What a level cannot prevent is skipped
there, and must stand in its warning.
"""

import dataclasses
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import uuid

import pytest

from r1jax.errors import InputError
from r1jax.rewards import sandbox

LIMITS = sandbox.Limits(
  time_s=60.0, total_s=99.0, memory_mb=128, output_kb=64, file_mb=1, processes=9
)
SHORT = dataclasses.replace(LIMITS, time_s=0.4)
# A name for all processes of a program, by which tests find what is left of it.
HEAD = """
import ctypes, os, signal, socket, sys, time
ctypes.CDLL(None).prctl(15, {!r}.encode(), 0, 0, 0)
"""
LEVELS = ("bubblewrap", "namespaces", "limits")
ROOT = os.geteuid() == 0


@functools.cache
def at_level(level):
  """The sandbox of a level, or why there is none here."""
  # Root has to become another user, who may not be able to reach our interpreter.
  faults = []
  for python in (sys.executable, "/usr/bin/python3"):
    box = sandbox.Sandbox(level, os.path.realpath(python))
    faults.append(sandbox.fault(box, LIMITS))
    if not faults[-1]:
      return box
  return faults[0]


@functools.cache
def strongest():
  boxes = [box for box in map(at_level, LEVELS) if not isinstance(box, str)]
  if not boxes:
    pytest.skip(f"no sandbox here: {at_level(LEVELS[-1])}")
  return boxes[0]


@pytest.fixture(name="box", params=LEVELS)
def _box(request):
  box = at_level(request.param)
  if isinstance(box, str):
    pytest.skip(f"{request.param}: {box}")
  return box


@pytest.fixture(name="name")
def _name():
  """Name of a program, of which nothing may be left at the end of the test."""
  name = f"r1jax-{uuid.uuid4().hex[:9]}"
  yield name
  end = time.monotonic() + 10
  while left := named(name):
    assert time.monotonic() < end, f"left running: {left}"
    time.sleep(0.01)


@pytest.fixture(name="open_folder")
def _open_folder():
  """A folder such as /tmp: another user may reach it."""
  with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    os.chmod(folder, 0o1777)
    yield folder


def named(name):
  """Processes of a name, but for dead ones."""
  found = []
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      before, _, after = stat.read_text().rpartition(")")
    except OSError:
      continue
    if before.endswith(f"({name}") and after.split()[0] not in "ZX":
      found.append(int(before.split()[0]))
  return found


def one(program, box, name="", *, limits=LIMITS, stdin=""):
  [outcome] = sandbox.run(HEAD.format(name) + program, [{"stdin": stdin}], box, limits)
  return outcome


def cannot_prevent(box, what):
  assert what in sandbox.unprotected(box.level)
  pytest.skip(f"the level {box.level!r} warns that programs can {what}")


@pytest.mark.parametrize(
  ("program", "stdin", "output"),
  [
    ("print(sum(map(int, input().split())))", "1 2", b"3\n"),
    ("print(sys.stdin.read().upper(), end='')", "ä\nb", "Ä\nB".encode()),
    ("sys.stdout.buffer.write(b'\\xff\\x00')", "", b"\xff\x00"),
    ("print('x' * 60_000)", "", b"x" * 60_000 + b"\n"),
    ("print(1); sys.exit()", "", b"1\n"),
    ("print(1); exit(0)", "", b"1\n"),
    ("print(1); sys.exit(3)", "", None),
    ("print(1); sys.exit('why')", "", None),
    ("print(1, flush=True); os._exit(0)", "", b"1\n"),
    ("print(1); 1 / 0", "", None),
    ("print(1", "", None),
    ("print('\\udc80', '\0')", "", None),
    ("input(); input()", "one line", None),
    ("print(os.read(0, 9), os.read(0, 9))", "a", b"b'a' b''\n"),
    ("os.write(0, b'more')", "a", None),
    ("print(1, flush=True); sys.stdout.close(); os.close(1)", "", b"1\n"),
    ("import threading; threading.Thread(target=print, args=(5,)).start()", "", b"5\n"),
    ("print(__name__, sys.argv, sys.path[0][:1], sys.flags.no_site)", "",
     b"__main__ ['program.py'] / 1\n"),
    ("sys.setrecursionlimit(10**9)\ndef f(n): return n and f(n - 1)\nprint(f(10**4))",
     "", b"0\n"),
    ("ctypes.string_at(0)", "", None),
  ],
)  # fmt: skip
def test_what_a_program_prints(program, stdin, output):
  want = ("failed", b"") if output is None else ("ok", output)
  assert one(program, strongest(), stdin=stdin) == want


def test_recursion_without_end():
  limits = dataclasses.replace(LIMITS, memory_mb=40)
  program = "sys.setrecursionlimit(10**9)\ndef f(): f()\nf()"
  assert one(program, strongest(), limits=limits).status == "failed"


def test_tests_are_apart_and_in_order(box, name):
  program = (
    "n = int(input())\nif n == 1: sys.exit(1)\nif n == 2: time.sleep(9)\nprint(n)"
  )
  tests = [{"stdin": str(n)} for n in (0, 1, 2, 3)]
  program, limits = HEAD.format(name) + program, dataclasses.replace(LIMITS, time_s=1.0)
  got = sandbox.run(program, tests, box, limits)
  assert got == [("ok", b"0\n"), ("failed", b""), ("timeout", b""), ("ok", b"3\n")]
  got = sandbox.run(program, tests, box, limits, stop=True)
  assert [outcome.status for outcome in got] == ["ok", "failed", *["unreached"] * 2]


def test_the_time_of_all_tests_ends(name):
  start = time.monotonic()
  limits = dataclasses.replace(LIMITS, total_s=1.0)
  program = HEAD.format(name) + "if input(): time.sleep(99)"
  tests = [{"stdin": stdin} for stdin in ("\n", "sleep", "\n")]
  got = sandbox.run(program, tests, strongest(), limits)
  assert [outcome.status for outcome in got][1:] == ["timeout", "unreached"]
  assert time.monotonic() - start < 10


CALLS = """
import dataclasses, typing
print("noise")

@dataclasses.dataclass
class Pair:
  a: "int"

def back(*args, **kwargs): return [args, kwargs]
def nothing(): pass
def strange(): return {1, 2}
def deep():
  x = []
  for _ in range(10**5): x = [x]
  return x
def forged(): __import__("os").write(3, b'"forged"'); raise SystemExit
class Always:
  def __eq__(self, other): return True
def equal(): return Always()
class Solution:
  def __init__(self): self.one = 1
  def add(self, n: "typing.List"): return self.one + n
"""


@pytest.mark.parametrize(
  ("function", "args", "kwargs", "want"),
  [
    ("back", [1, [2.5, None]], {"k": True}, [[1, [2.5, None]], {"k": True}]),
    ("Solution.add", [2], {}, 3),
    ("nothing", [], {}, None),
    # What a program writes of its own is no more than its result.
    ("forged", [], {}, "forged"),
    ("nothing", [1], {}, "failed"),
    ("strange", [], {}, "failed"),
    ("deep", [], {}, "failed"),
    ("equal", [], {}, "failed"),
    ("missing", [], {}, "failed"),
    ("Solution", [], {}, "failed"),
  ],
)
def test_calls(function, args, kwargs, want):
  tests = [{"args": args, "kwargs": kwargs}]
  [got] = sandbox.run(CALLS, tests, strongest(), LIMITS, function=function)
  if want == "failed":
    assert got == ("failed", b"")
  else:
    assert (got.status, json.loads(got.output)) == ("ok", want)


BOMB = "\nwhile True:\n  try: os.fork()\n  except OSError: pass"
HARM = {
  "forks": (BOMB, "timeout"),
  "allocates": ("held = []\nwhile True: held.append(bytearray(2**22))", "failed"),
  "prints": ("while True: print('x' * 1000)", "output"),
  "prints one line": ("while True: sys.stdout.write('x')", "output"),
  "prints errors": ("while True: sys.stderr.write('x' * 1000)", "timeout"),
  "sleeps": ("signal.signal(15, signal.SIG_IGN); time.sleep(99)", "timeout"),
  "spins": ("while True: pass", "timeout"),
  "stops": ("os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
  "closes and sleeps": ("os.closerange(0, 99); time.sleep(99)", "timeout"),
  "writes": ("f = open('f', 'wb')\nwhile True: f.write(bytes(2**16))", "failed"),
  "stays": ("if os.fork() == 0: os.setsid(); time.sleep(99)", "ok"),
  "stays and prints": (
    "if os.fork() == 0:\n  while True: print('x' * 99, flush=True)",
    "output",
  ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARM)
def test_harm_ends_with_the_test(kind, box, name):
  program, status = HARM[kind]
  limits = SHORT if status == "timeout" else LIMITS
  assert one(program, box, name, limits=limits).status == status


def test_processes_that_flee_are_caught(box, name):
  """Each forks and exits at once, so that none is there for long."""
  if box.level == "limits" and not ROOT:
    cannot_prevent(box, "leave some of its own")
  chain = "while True:\n  try:\n    if os.fork(): os._exit(0)\n  except OSError: pass"
  assert one(chain, box, name).status == "ok"


KILLS = {
  "its parent": "os.kill(os.getppid(), 9)",
  "everything": "os.kill(-1, 9)",
  "what it sees": "for p in os.listdir('/proc'):\n"
  "  try: int(p) != os.getpid() and os.kill(int(p), 9)\n"
  "  except (ValueError, OSError): pass",
}


@pytest.mark.parametrize("whom", KILLS)
def test_kills_only_its_own(whom, box, name):
  if box.level == "limits" and not ROOT:
    cannot_prevent(box, "signal")
  with subprocess.Popen(["sleep", "99"]) as bystander:
    tests = [{"stdin": "kill"}, {"stdin": "print"}]
    program = f"if input() == 'kill':\n  {KILLS[whom].replace(chr(10), chr(10) + '  ')}"
    got = sandbox.run(HEAD.format(name) + program + "\nprint(1)", tests, box, LIMITS)
    assert bystander.poll() is None
    bystander.kill()
  # It may end the whole sandbox, and then has passed nothing that it did not print.
  assert got[1] in [("ok", b"1\n"), ("unreached", b"")]


def test_files_of_others_stay_closed(box, tmp_path, name, monkeypatch):
  secret = tmp_path / "secret"
  secret.write_text("hidden")
  secret.chmod(0o600)
  monkeypatch.setenv("SECRET", "hidden")
  look = f"""
said = [repr(os.environ)]
for path in [{str(secret)!r}, *(f"/proc/{{p}}/environ" for p in os.listdir("/proc"))]:
  try: said.append(open(path).read())
  except OSError as e: said.append(type(e).__name__)
for path in {str(secret)!r}, {str(tmp_path / "new")!r}:
  try: open(path, "a").write("written")
  except OSError: pass
  try: os.remove(path)
  except OSError: pass
print(said)
"""
  if box.level != "bubblewrap" and not ROOT:
    cannot_prevent(box, "read what this user may")
  outcome = one(look, box, name)
  assert outcome.status == "ok"
  assert b"hidden" not in outcome.output
  assert secret.read_text() == "hidden"
  assert os.listdir(tmp_path) == ["secret"]


def test_only_its_own_files_can_be_written(box, name):
  """In bubblewrap; the others say what they cannot prevent."""
  if box.level != "bubblewrap":
    cannot_prevent(box, "write and delete what")
  look = """
here = []
for folder, folders, _ in os.walk("/"):
  if folder.startswith("/proc"): folders.clear()
  else:
    try: open(f"{folder}/NAME", "w").close(); here.append(folder)
    except OSError: pass
size = 0
try:
  while True:
    with open(str(size), "wb") as f: f.write(bytes(2**16))
    size += 2**16
except OSError: pass
print(here, size <= 2**20, os.path.exists("/home"), os.path.exists("/etc/passwd"))
""".replace("NAME", name)
  assert one(look, box, name) == ("ok", b"['/tmp'] True False False\n")
  assert not os.path.exists(f"/tmp/{name}")


def test_no_network(box, name):
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    outcome = one(f"socket.create_connection(('127.0.0.1', {port}), 5)", box, name)
  if outcome.status == "ok":
    cannot_prevent(box, "reach the network")
  assert outcome.status == "failed"


def test_no_open_files_of_ours(box):
  look = """
for fd in range(3, 99):
  try: os.fstat(fd); print(fd)
  except OSError: pass
"""
  with open(os.devnull) as ours:
    os.set_inheritable(ours.fileno(), True)
    assert one(look, box) == ("ok", b"")


def test_nothing_outlives_a_killed_worker(box, name, open_folder):
  program = "for _ in range(3): os.fork()\nos.setsid()\ntime.sleep(99)"
  program = HEAD.format(name) + program
  worker = f"""
from r1jax.rewards.sandbox import Limits, Sandbox, run
run({program!r}, [{{"stdin": ""}}], {box!r}, {LIMITS!r})
"""
  environment = os.environ | {"TMPDIR": open_folder}
  with subprocess.Popen([sys.executable, "-c", worker], env=environment) as process:
    while len(named(name)) < 8:
      assert process.poll() is None
      time.sleep(0.01)
    process.kill()
  end = time.monotonic() + 10
  while os.listdir(open_folder):
    assert time.monotonic() < end
    time.sleep(0.01)


def test_a_worker_cannot_give_more_memory_than_it_has(monkeypatch):
  monkeypatch.setattr(sandbox.resource, "getrlimit", lambda _: (2**26, 2**26))
  with pytest.raises(InputError, match=r"code\.memory_mb=128 .* 64; .*memory_limit_mb"):
    one("print(1)", strongest())


def test_a_sandbox_that_does_not_start_is_an_error():
  box = sandbox.Sandbox("limits", "/bin/false")
  with pytest.raises(RuntimeError, match="did not start"):
    sandbox.run("print(1)", [{"stdin": ""}], box, LIMITS)


@pytest.fixture(name="choose")
def _choose(monkeypatch):
  """`sandbox.choose` where levels have the faults that a test gives them."""

  def choose(kind, **faults):
    monkeypatch.setattr(sandbox, "fault", lambda box, _: faults.get(box.level, ""))
    sandbox.choose.cache_clear()
    return sandbox.choose(kind, LIMITS).level

  yield choose
  sandbox.choose.cache_clear()


def test_choice_of_a_level(choose, caplog):
  broken = {"bubblewrap": "no bwrap", "namespaces": "no unshare"}
  assert choose("auto") == choose("bubblewrap") == "bubblewrap"
  assert not caplog.records
  assert choose("subprocess") == choose("auto", bubblewrap="no bwrap") == "namespaces"
  assert choose("auto", **broken) == "limits"
  sandbox.choose("auto", LIMITS)
  # once for each choice, and not again
  assert len(caplog.records) == 3
  said = caplog.records[-1].getMessage()
  assert "network" in said
  assert "no bwrap" in said
  assert "no unshare" in said
  assert "network" not in caplog.records[0].getMessage()


def test_no_level_is_an_input_error(choose):
  with pytest.raises(InputError, match=r"config\.reward\.code\.sandbox.*no bwrap"):
    choose("bubblewrap", bubblewrap="no bwrap")
  with pytest.raises(InputError, match="did you mean 'bubblewrap'"):
    choose("bubblewarp")


def test_a_missing_command_is_a_fault(monkeypatch):
  monkeypatch.setenv("PATH", "/nowhere")
  box = sandbox.Sandbox("bubblewrap", sys.executable)
  assert sandbox.fault(box, LIMITS) == "there is no command 'bwrap'"


def test_limits_that_nothing_can_run_in_are_a_fault():
  limits = dataclasses.replace(LIMITS, memory_mb=4)
  assert "config.reward.code: failed" in sandbox.fault(strongest(), limits)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(LIMITS)])
def test_settings_are_checked(key):
  with pytest.raises(InputError, match=f"config.reward.code.{key}=0"):
    dataclasses.replace(LIMITS, **{key: 0})
