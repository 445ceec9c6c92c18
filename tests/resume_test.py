"""R10: a run that was stopped, at whatever moment, ends as one that was not."""

import json
import os
import re
import shutil
import signal

import numpy as np
import orbax.checkpoint as ocp
import pytest

from r1jax.checkpoints import Checkpoints
from tests.small_run import numbers

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

# Runs the command; sends this process a signal, some seconds after a stage has entered
# a phase for the n-th time.
STOPPED = """
import os, runpy, sys, threading
from r1jax.watchdog import Watchdog

stage, phase, nth, number, delay_s = sys.argv[1:6]
enter, entered = Watchdog.phase, []

def phase_of(watchdog, name):
  entered.append(name)
  own = entered[entered.index(stage):] if stage in entered else []
  if name == phase and own.count(phase) == int(nth):
    strike = lambda: os.kill(os.getpid(), int(number))
    threading.Timer(float(delay_s), strike).start() if float(delay_s) else strike()
  return enter(watchdog, name)

Watchdog.phase = phase_of
sys.argv[1:6] = []
runpy.run_module("r1jax.train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(name="stop")
def _stop(train, tmp_path):
  """Runs the command in a folder until it is stopped; (exit code, what it said)."""

  def stop(
    stage,
    phase,
    nth,
    number=signal.SIGKILL,
    delay_s=0.0,
    *,
    args=(),
    folder=tmp_path,
  ):
    words = map(str, (stage, phase, nth, int(number), delay_s))
    process = train(f"--workdir={folder}", *args, program=("-c", STOPPED, *words))
    out, errors = process.communicate(timeout=300)
    return process.returncode, out + errors

  return stop


@pytest.fixture(name="finish")
def _finish(train, tmp_path):
  """Runs the command in a folder to its end; what it said."""

  def finish(*args, folder=tmp_path):
    process = train(f"--workdir={folder}", *args)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out

  return finish


def base_of(small_run, folder):
  """Makes `folder` a run in which the stage `base` is done and `zero` never began."""
  shutil.copytree(small_run, folder, dirs_exist_ok=True)
  shutil.rmtree(folder / "checkpoints" / "zero")
  shutil.rmtree(folder / "samples")


def arrays(folder, stage):
  """{path: bytes} of the last checkpoint: parameters, moments, reference, counters."""
  checkpoints = folder / "checkpoints" / stage
  step = Checkpoints(checkpoints).latest()
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    state = reader.restore(checkpoints / str(step) / "state")
  return {path: (x.dtype, np.asarray(x).tobytes()) for path, x in state.items()}


def assert_same_run(got, want):
  assert numbers(got) == numbers(want)
  for stage in ("base", "zero"):
    ours, theirs = arrays(got, stage), arrays(want, stage)
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []
  samples = [
    {path.name: path.read_bytes() for path in run.glob("samples/zero/*.jsonl")}
    for run in (got, want)
  ]
  assert samples[0] == samples[1]


def test_what_is_compared_is_worth_it(small_run):
  state = arrays(small_run, "zero")
  parts = {path.rpartition("/")[0].split("/params")[0] for path in state}
  assert {path.split("/")[0] for path in state} == {"train", "ref"}, parts
  assert any("opt_state" in path and "mu" in path for path in state)
  assert state["ref/embed"] != state["train/params/embed"]
  steps = [line for line in numbers(small_run) if "loss/policy" in line]
  assert all(line["optim/grad_norm"] > 0 for line in steps)
  assert len({line["loss/kl"] for line in steps}) == len(steps)


AHEAD = (
  "--config.zero.rollout.lag=1",
  "--config.zero.rollout.oversample=1",
  "--config.zero.loss.correction=truncate",
  "--config.checkpoint.save_every=1",
)


@pytest.mark.slow
def test_rows_on_their_way_are_kept(stop, finish, small_run, tmp_path):
  """Groups that go on in the next rollout, which is drawn ahead by older weights."""
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  for folder in (whole, broken):
    base_of(small_run, folder)
  finish(*AHEAD, folder=whole)
  code, _ = stop("zero", "pack", 5, args=AHEAD, folder=broken)
  assert code == -signal.SIGKILL
  assert re.search("zero: goes on from step [34]\n", finish(*AHEAD, folder=broken))
  assert_same_run(broken, whole)
  left = [line.get("rollout/groups_left") for line in numbers(whole)]
  assert left.count(1) == 5


REMEMBERS = (
  "--config.zero.filter.kind=mixed",
  "--config.zero.filter.max_rounds=2",
  "--config.zero.curriculum.kind=pass_rate",
  "--config.zero.advantage.estimator=gae",
  "--config.zero.advantage.kl_coef=0.1",
  "--config.zero.loss.kl_coef=0.0",
  "--config.zero.reference.kl_target=0.1",
  "--config.zero.reference.kl_horizon=100.0",
  "--config.zero.training.epochs=2",
  "--config.checkpoint.save_every=1",
)


@pytest.mark.slow
def test_all_that_a_stage_remembers_is_kept(stop, finish, small_run, tmp_path):
  """Problems asked, pass rates, the critic, the coefficient of the KL."""
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  for folder in (whole, broken):
    base_of(small_run, folder)
  finish(*REMEMBERS, folder=whole)
  code, _ = stop("zero", "pack", 5, args=REMEMBERS, folder=broken)
  assert code == -signal.SIGKILL
  assert re.search("zero: goes on from step [34]\n", finish(*REMEMBERS, folder=broken))
  assert_same_run(broken, whole)
  kept = {path.split("/")[0] for path in arrays(whole, "zero")}
  assert kept == {"train", "ref", "critic", "kl", "asked", "rates"}
  steps = [line for line in numbers(whole) if "loss/policy" in line]
  assert len({line["policy/kl_coef"] for line in steps}) > 2
  assert len({line["critic/loss"] for line in steps}) == 5
  assert max(line["filter/rounds"] for line in steps) == 2


def test_killed_and_then_stopped(stop, finish, small_run, tmp_path):
  """In an update, then by a cluster that wants its machine back."""
  base_of(small_run, tmp_path)
  code, _ = stop("zero", "update", 5)
  assert code == -signal.SIGKILL
  code, said = stop("zero", "rollout", 1, signal.SIGTERM)
  assert code == 143
  assert "SIGTERM: stops after this step and saves\n" in said
  # After step 4, if the save of step 3 was through when the process was killed.
  stopped = re.search(r"zero: stopped after step (\d), which is saved; the same", said)
  assert f"zero: goes on from step {stopped[1]}\n" in finish()
  assert_same_run(tmp_path, small_run)


@pytest.mark.slow
def test_killed_in_every_phase(stop, finish, small_run, tmp_path):
  """One run with all these accidents; a delay in seconds hits the middle of a phase."""
  for place in (
    ("base", "update", 1, 0.2),
    ("base", "update", 20),
    ("base", "save", 3, 0.01),
    ("base", "save", 20),
    ("zero", "eval", 1, 0.1),
    ("zero", "rollout", 1, 0.3),
    ("zero", "reward", 2, 0.001),
    ("zero", "score", 3),
    ("zero", "save", 3, 0.01),
    ("zero", "rollout", 1),
    ("zero", "update", 2, 0.005),
    ("zero", "eval", 2),
    ("zero", "save", 2, 0.02),
  ):
    code, said = stop(*place[:3], delay_s=place[3] if len(place) > 3 else 0.0)
    assert code == -signal.SIGKILL, (place, said)
  finish()
  assert_same_run(tmp_path, small_run)


@pytest.mark.slow
def test_ctrl_c(stop, finish, small_run, tmp_path):
  code, said = stop("base", "update", 7, signal.SIGINT)
  assert code == 130
  assert "base: stopped after step 7, which is saved; the same command" in said
  code, said = stop("zero", "eval", 2, signal.SIGINT, 0.002)
  assert code == 130
  assert "base: goes on from step 7\n" in said
  assert "zero: stopped after step 3, which is saved; the same command" in said
  finish()
  assert_same_run(tmp_path, small_run)


def damage(checkpoint):
  largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", "zero"])
def test_damaged_last_checkpoint(stage, stop, train, finish, small_run, tmp_path):
  """Of the stage under way, and of one that is done and needed by the next."""
  base_of(small_run, tmp_path)
  last = 40
  if stage == "zero":
    stop("zero", "rollout", 4, signal.SIGTERM)
    last = 4
  damage(tmp_path / "checkpoints" / stage / str(last))
  process = train(f"--workdir={tmp_path}")
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 2
  (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
  assert f"checkpoints/{stage}/{last} is damaged" in line
  assert "--config.checkpoint.skip_damaged=True" in line
  said = finish("--config.checkpoint.skip_damaged=True")
  assert f"{stage}: goes on from step {39 if stage == 'base' else 3}\n" in said
  if stage == "base":  # its repeated line stands behind, and is the same
    assert sorted(numbers(tmp_path), key=json.dumps) == sorted(
      numbers(small_run), key=json.dumps
    )
  assert_same_run(tmp_path, small_run)


@pytest.mark.slow
@pytest.mark.parametrize("room_kb", [0, 8, 120, 300])
def test_full_disk(room_kb, train, small_run, small_disk):
  """Whatever does not fit any more; with room, the same command goes on."""
  run = small_disk / "run"
  base_of(small_run, run)
  free_kb = shutil.disk_usage(small_disk).free // 1024
  (small_disk / "fill").write_bytes(bytes(1024 * (free_kb - room_kb)))
  process = train(f"--workdir={run}")
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 2, errors
  (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
  assert "ake room" in line and "no space left on device" in line.lower()
  (small_disk / "fill").unlink()
  process = train(f"--workdir={run}")
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  assert_same_run(run, small_run)
