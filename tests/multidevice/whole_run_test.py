"""The command in two processes and in one: the same run."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import small_run

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [pytest.mark.multidevice, pytest.mark.slow]


def run(workdir, command, devices):
  """Runs the small run; its numbers, and what it said."""
  bin = pathlib.Path(sys.executable).parent
  result = subprocess.run(
    [
      *command,
      "--config=tests/small_run.py",
      f"--config.cpu_devices={devices}",
      f"--workdir={workdir}",
    ],
    cwd=ROOT,
    env={
      **os.environ,
      "PATH": f"{bin}:{os.environ['PATH']}",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    },
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  return small_run.numbers(workdir), result.stdout


def test_two_processes_are_one(tmp_path):
  """R18, with rewards judged by each process for its own rows."""
  train = (sys.executable, "-m", "r1jax.train")
  want, _ = run(tmp_path / "one", train, devices=2)
  launch = ("bash", "launch/local_processes.sh", "2")
  got, said = run(tmp_path / "two", launch, devices=1)
  assert said.count("done in") == 1
  assert len(got) == len(want) > 40
  for ours, theirs in zip(got, want, strict=True):
    assert ours.keys() == theirs.keys()
    assert ours["stage"] == theirs["stage"]
    for key in ours.keys() - {"stage", "rollout/weights_checksum"}:
      np.testing.assert_allclose(
        ours[key], theirs[key], rtol=1e-3, atol=1e-5, err_msg=f"{key} of {theirs}"
      )
  for path in sorted((tmp_path / "one" / "samples").rglob("*.jsonl")):
    twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
    pairs = zip(path.open(), twin.open(), strict=True)
    for ours, theirs in pairs:
      assert json.loads(ours)["completion"] == json.loads(theirs)["completion"]
