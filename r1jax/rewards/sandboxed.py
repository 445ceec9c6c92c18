"""What runs inside the sandbox: a program, once per test, each time as a process.

`sandbox.py` gives this text to a bare interpreter, so it needs the standard library
alone. It reads a request from its stdin and writes READY and then, as each test ends, a
frame to its stdout. What a test should have printed or returned never comes in here, so
that a program that takes this process over still cannot know what to answer.
"""

import builtins
import fcntl
import io
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import time
import types

READY = b"+"
FRAME = struct.Struct(">BI")  # the status as an index of STATUSES, bytes that follow
# Exit code 0, with what it printed or returned; any other end of its own; stopped after
# its time; stopped at the limit of its output.
STATUSES = ("ok", "failed", "timeout", "output")
OPEN_FILES = 64
RESULT_FD = 3
# Of prctl(2).
CHILD_SUBREAPER = 36
NO_NEW_PRIVILEGES = 38


def serve(request):
  """Runs one test after another. Returns None, or the test in a process that is to run.

  Args:
    request: `program`; `function`, a name or None; `tests`, of `stdin` or of `args` and
      `kwargs`; `stop`, whether the first failure is the end; `end`, by the monotonic
      clock; `level` of the sandbox; `uid` to change to or None; and the limits of
      `sandbox.Limits`.
  """
  if request["uid"] is not None:
    os.setgroups([])
    os.setresgid(*[request["uid"]] * 3)
    os.setresuid(*[request["uid"]] * 3)
  if request["level"] != "bubblewrap":  # which has seen to it
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    for option in (NO_NEW_PRIVILEGES, CHILD_SUBREAPER):
      prctl(option, 1, 0, 0, 0)
  # In a namespace, whose first process may be bubblewrap's own, or as a user of its own
  # all that it can signal is of the program. Elsewhere `-1` would be a disaster.
  inside = request["level"] != "limits" and os.getpid() <= 2
  alone = inside or request["uid"] is not None
  os.write(1, READY)
  for test in request["tests"]:
    end = min(request["end"], time.monotonic() + request["time_s"])
    if time.monotonic() >= request["end"]:
      break
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
      become(test, theirs, request)
      return test
    os.close(theirs)
    status, output = watch(pid, ours, end, request["output_kb"] * 1024)
    clear(alone)
    os.close(ours)
    frame = FRAME.pack(STATUSES.index(status), len(output)) + output
    while frame:
      frame = frame[os.write(1, frame) :]
    if request["stop"] and status != "ok":
      break
  return None


def watch(pid, pipe, end, limit):
  """Reads what a test sends until it has ended; returns its status and the bytes."""
  os.set_blocking(pipe, False)
  ended = os.pidfd_open(pid)
  poll = select.poll()
  poll.register(pipe, select.POLLIN)
  poll.register(ended, select.POLLIN)
  poll.register(1, 0)  # an error there: nobody reads any more
  output, status = bytearray(), None
  while status is None:
    left = end - time.monotonic()
    ready = dict(poll.poll(max(0, math.ceil(1000 * left))))
    if ended in ready and pipe not in ready:
      _, code = os.waitpid(pid, 0)
      status = "ok" if code == 0 else "failed"
    elif left <= 0 or 1 in ready:
      status = "timeout"
    elif pipe in ready:
      some = os.read(pipe, 2**16)
      output += some
      if not some:
        poll.unregister(pipe)
      elif len(output) > limit:
        status = "output"
  os.close(ended)
  return status, bytes(output) if status == "ok" else b""


def clear(alone):
  """Ends whatever a test has left running."""
  while True:
    try:
      if alone:
        os.kill(-1, signal.SIGKILL)
      else:
        for pid, state in processes():
          if int(state["PPid"]) == os.getpid():
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    try:
      if os.waitpid(-1, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    except ChildProcessError:
      return


def processes():
  """(pid, fields of its status) of every process in sight."""
  for name in os.listdir("/proc"):
    if name.isdigit():
      try:
        with open(f"/proc/{name}/status", errors="replace") as f:
          yield int(name), dict(line.split(":", 1) for line in f if ":" in line)
      except OSError:  # it has ended, or is not to be seen
        pass


def become(test, pipe, request):
  """Makes this process the one of a test: files, limits, no way back."""
  stdin = os.memfd_create("stdin", os.MFD_ALLOW_SEALING)
  text = test.get("stdin", "").encode("utf-8", "surrogatepass")
  while text:
    text = text[os.write(stdin, text) :]
  fixed = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
  fcntl.fcntl(stdin, fcntl.F_ADD_SEALS, fixed | fcntl.F_SEAL_SEAL)
  os.lseek(stdin, 0, os.SEEK_SET)
  os.dup2(stdin, 0)
  null = os.open(os.devnull, os.O_RDWR)
  os.dup2(null, 2)
  if "stdin" in test:
    os.dup2(pipe, 1)
    os.closerange(3, OPEN_FILES)
  else:
    os.dup2(null, 1)
    os.dup2(pipe, RESULT_FD)
    os.closerange(RESULT_FD + 1, OPEN_FILES)
  for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
    raw = io.FileIO(fd, mode, closefd=False)
    buffered = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    file = io.TextIOWrapper(buffered, encoding="utf-8", errors="surrogateescape")
    setattr(sys, name, file)
    setattr(sys, f"__{name}__", file)
  sys.argv = ["program.py"]
  # `site`, which is left out, makes these.
  builtins.exit = builtins.quit = sys.exit

  own = [
    state for _, state in processes() if int(state["Uid"].split()[0]) == os.getuid()
  ]
  for name, limit in (
    ("AS", request["memory_mb"] * 2**20),
    ("FSIZE", request["file_mb"] * 2**20),
    ("NOFILE", OPEN_FILES),
    ("CPU", math.ceil(request["time_s"])),
    ("CORE", 0),
    # Counted over all that this user runs.
    ("NPROC", sum(int(state["Threads"]) for state in own) - 1 + request["processes"]),
  ):
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def run(program, function, test):
  """Runs the program as its main module, or calls one of its functions.

  The interpreter's own end then waits for threads, flushes and sets the exit code.
  """
  module = types.ModuleType("__main__" if "stdin" in test else "program")
  sys.modules[module.__name__] = module
  exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
  if "stdin" in test:
    return
  call = module
  for name in function.split("."):
    call = getattr(call() if isinstance(call, type) else call, name)
  result = json.dumps(call(*test["args"], **test["kwargs"])).encode()
  while result:
    result = result[os.write(RESULT_FD, result) :]


if __name__ == "__main__":
  request = json.loads(sys.stdin.buffer.read())
  try:
    test = serve(request)
  except BrokenPipeError:  # nobody is left out there to tidy up
    if request["level"] != "bubblewrap":
      os.execv("/bin/rm", ["rm", "-rf", os.environ["HOME"]])
    raise
  if test is not None:
    run(request["program"], request["function"], test)
