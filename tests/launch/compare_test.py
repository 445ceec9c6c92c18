"""launch/compare.sh: which commands it gives, and when it stops."""

import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "compare.sh"
# Stands for `python`: notes what it is given, and plays a run by running act.sh.
PYTHON = """#!/usr/bin/env bash
echo "$JAX_COMPILATION_CACHE_DIR: $*" >>commands
. ./act.sh
"""


@pytest.fixture(name="compare")
def _compare(tmp_path, monkeypatch):
  python = tmp_path / "bin" / "python"
  python.parent.mkdir()
  python.write_text(PYTHON)
  python.chmod(0o755)
  monkeypatch.setenv("PATH", str(python.parent), prepend=":")

  def run(act, *args):
    (tmp_path / "act.sh").write_text(act)
    process = subprocess.run(
      [shutil.which("bash"), SCRIPT, *args],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=30,
      check=False,
    )
    commands = tmp_path / "commands"
    return process, commands.read_text().splitlines() if commands.exists() else []

  return run


def test_three_seeds_then_the_figure(compare, tmp_path):
  process, commands = compare("echo said; echo wrong >&2", "a folder", "--config.x=1")
  assert process.returncode == 0, process.stderr
  runs = [
    "a folder/compiled: -m r1jax.train --config=configs/comparison.py "
    f"--workdir=a folder/seed{seed} --config.seed={seed} --config.x=1"
    for seed in range(3)
  ]
  figure = "a folder/seed0 a folder/seed1 a folder/seed2 --out=a folder"
  assert commands == [*runs, f"a folder/compiled: -m r1jax.compare {figure}"]
  log = (tmp_path / "a folder" / "log.txt").read_text()
  assert log == process.stdout
  assert sorted(log.split()) == ["said"] * 4 + ["wrong"] * 4


def test_a_run_that_fails_ends_all_with_its_code(compare):
  process, commands = compare('[[ "$*" == *seed1* ]] && exit 7; true', "runs")
  assert process.returncode == 7
  assert len(commands) == 2


def test_the_log_goes_on(compare, tmp_path):
  for _ in range(2):
    compare("echo said", "runs")
  assert (tmp_path / "runs" / "log.txt").read_text().split() == ["said"] * 8


def test_usage(compare):
  process, commands = compare("", "--config.x=1")
  assert process.returncode == 2
  assert "usage" in process.stderr
  assert not commands
