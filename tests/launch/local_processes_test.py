"""Several processes on one machine: who is told what, and how they end."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "local_processes.sh"
# Stands for `python`: passes `-c` on, and plays r1jax.train by running act.sh.
PYTHON = f"""#!/usr/bin/env bash
if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
echo "$R1JAX_COORDINATOR $R1JAX_NUM_PROCESSES $JAX_PLATFORMS $*" >said.$R1JAX_PROCESS_ID
. ./act.sh
"""
WAIT = """
trap 'echo >saved.$R1JAX_PROCESS_ID; exit 0' TERM
echo >ready.$R1JAX_PROCESS_ID
while :; do sleep 0.1; done
"""


@pytest.fixture(name="start")
def _start(tmp_path, monkeypatch):
  python = tmp_path / "bin" / "python"
  python.parent.mkdir()
  python.write_text(PYTHON)
  python.chmod(0o755)
  monkeypatch.setenv("PATH", str(python.parent), prepend=":")

  def start(act, *args):
    (tmp_path / "act.sh").write_text(act)
    return subprocess.Popen(
      [shutil.which("bash"), SCRIPT, *args],
      cwd=tmp_path,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


def test_each_process_is_told_its_place(start, tmp_path):
  process = start("echo from $R1JAX_PROCESS_ID", "3", "--config=a b.py", "--workdir=w")
  out, err = process.communicate(timeout=30)
  assert process.returncode == 0, err
  assert out == "from 0\n"
  said = {(tmp_path / f"said.{id}").read_text() for id in range(3)}
  assert len(said) == 1
  coordinator, num, platform, *args = said.pop().split(maxsplit=3)
  host, port = coordinator.split(":")
  assert host == "localhost"
  assert int(port) > 0
  assert (num, platform) == ("3", "cpu")
  assert args == ["-m r1jax.train --config=a b.py --workdir=w\n"]


def test_one_failure_ends_all_with_its_code(start):
  process = start(f"[[ $R1JAX_PROCESS_ID == 1 ]] && exit 7{WAIT}", "2", "--config=c")
  process.communicate(timeout=30)
  assert process.returncode == 7


def test_sigterm_reaches_every_process(start, tmp_path):
  process = start(WAIT, "2", "--config=c")
  deadline = time.monotonic() + 30
  while len(list(tmp_path.glob("ready.*"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 0
  assert len(list(tmp_path.glob("saved.*"))) == 2


@pytest.mark.parametrize("args", [[], ["2"], ["0", "--config=c"], ["x", "--config=c"]])
def test_usage(start, args):
  process = start("", *args)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 2
  assert "usage" in err
