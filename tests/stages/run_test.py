"""What a step leaves is written while the next one runs, and nothing gets lost."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from r1jax import limits, metrics
from r1jax.checkpoints import Checkpoints
from r1jax.stages.run import Run, Stage, Stopped
from r1jax.types import Max, Mean
from r1jax.watchdog import PhaseClock, Watchdog

WORK = {"update": limits.Work(tokens=12, least_s=1e-3)}


@pytest.fixture(name="run")
def _run(tmp_path):
  """What a stage reads of a Run; the rest of it is None."""
  watchdog = Watchdog(None, limit_s=None)
  given = {
    "workdir": tmp_path,
    "stages": ("base",),
    "writer": metrics.Writer(tmp_path, tensorboard=False),
    "clock": PhaseClock(watchdog),
    "watchdog": watchdog,
    "console": Console(file=io.StringIO(), width=200),
    "checkpoint": {"save_every": 2, "keep": 9},
    "profile_steps": (),
    "sample_every": 0,
    "stop_asked": lambda: False,
  }
  run = Run(**dict.fromkeys(field.name for field in dataclasses.fields(Run)) | given)
  run.__dict__["machine"] = limits.Machine(2, 1.0, 1.0, "measured")
  return run


def state_of(step):
  return {"x": jnp.full(3, float(step))}


def walk(run, *, num_steps=5, is_donated=True, after=lambda step: None):
  """A stage whose steps do nothing but end; `after` looks at each."""
  with Stage(run, "base", num_steps=num_steps) as stage:
    stage.take_up(state_of(0))
    for step in stage.steps():
      with run.clock("update"):
        value = jnp.asarray(step / 2)  # on the device
        stage.settle()
      stage.end_step(
        step,
        {"optim/lr": value},
        state_of(step),
        statistics=[
          {"loss/a": Mean(value, jnp.asarray(1.0)), "b": Max(value)},
          {"loss/a": Mean(3 * value, jnp.asarray(3.0)), "b": Max(value + 1)},
        ],
        work=WORK,
        is_donated=is_donated,
      )
      after(step)


def on_disk(run):
  """Steps with a line, and those with a checkpoint."""
  lines = [line["step"] for line in metrics.read(run.workdir)]
  checkpoints = Checkpoints(run.folder("base"))
  return lines, checkpoints.steps()


def test_a_step_is_written_when_the_next_has_begun(run):
  """Saves that cannot wait come at once; they are behind the line of their step."""
  seen = {}
  walk(run, after=lambda step: seen.update({step: on_disk(run)[0]}))
  assert seen == {1: [], 2: [1, 2], 3: [1, 2], 4: [1, 2, 3, 4], 5: [1, 2, 3, 4, 5]}
  assert on_disk(run) == ([1, 2, 3, 4, 5], [2, 4, 5])


def test_a_save_waits_where_the_state_does(run):
  seen = {}
  walk(run, is_donated=False, after=lambda step: seen.update({step: on_disk(run)[0]}))
  assert seen == {1: [], 2: [1], 3: [1, 2], 4: [1, 2, 3], 5: [1, 2, 3, 4, 5]}
  assert on_disk(run) == ([1, 2, 3, 4, 5], [2, 4, 5])
  for step in (2, 4, 5):
    got, *_ = Checkpoints(run.folder("base")).restore(state_of(0), step)
    np.testing.assert_array_equal(got["x"], state_of(step)["x"])


def test_lines_hold_merged_numbers_and_speeds(run):
  walk(run, num_steps=3)
  for line in metrics.read(run.workdir):
    value = line["step"] / 2
    assert line["optim/lr"] == value
    assert line["loss/a"] == pytest.approx((value + 3 * value) / 4)
    assert line["b"] == value + 1
    seconds = line["time/update_s"]
    assert 0 < seconds <= line["time/step_s"]
    assert line["update/tokens_per_s"] == pytest.approx(12 / seconds)
    assert line["update/tokens_per_s_per_device"] == pytest.approx(6 / seconds)
    assert line["update/share_of_limit"] == pytest.approx(1e-3 / seconds)


def test_a_run_that_is_stopped_has_written_and_saved_all(run):
  asked = []
  run = dataclasses.replace(run, stop_asked=lambda: bool(asked))
  run.__dict__["machine"] = limits.Machine(1, 1.0, 1.0, "measured")
  with pytest.raises(Stopped, match="base: stopped after step 3, which is saved"):
    walk(run, after=lambda step: step == 2 and asked.append(step))
  assert on_disk(run) == ([1, 2, 3], [2, 3])
  asked.clear()
  walk(run)
  assert on_disk(run) == ([1, 2, 3, 4, 5], [2, 3, 4, 5])


def test_what_is_killed_between_a_step_and_its_line_does_that_step_again(run):
  """Neither line nor checkpoint of it is there, and none of them without the other."""

  def kill(step):
    if step == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    walk(run, is_donated=False, after=kill)
  assert on_disk(run) == ([1, 2], [2])
  walk(run)
  assert on_disk(run)[0] == [1, 2, 3, 4, 5]


def test_an_evaluation_stands_behind_the_line_of_its_step(run):
  with Stage(run, "base", num_steps=2) as stage:
    stage.take_up(state_of(0))
    for step in stage.steps():
      evaluate = (lambda: {"eval/a/n": 1}) if step == 1 else None
      with run.clock("update"):
        stage.settle()
      stage.end_step(step, {}, state_of(step), work=WORK, evaluate=evaluate)
      assert len(metrics.read(run.workdir)) == 1 + step
  kinds = [("eval/a/n" in line, line["step"]) for line in metrics.read(run.workdir)]
  assert kinds == [(False, 1), (True, 1), (False, 2)]


def test_only_the_steps_asked_for_are_traced(run):
  run = dataclasses.replace(run, profile_steps=(2,))
  run.__dict__["machine"] = limits.Machine(1, 1.0, 1.0, "measured")
  walk(run, num_steps=3, after=lambda step: jax.block_until_ready(jnp.ones(3) + step))
  folder = run.workdir / "profile" / "base"
  assert [path.name for path in folder.iterdir()] == ["step_000002"]
  (trace,) = folder.rglob("*.trace.json.gz")
  assert trace.stat().st_size > 0
  said = run.console.file.getvalue()
  assert f"base: profile in {folder}/step_000002: open the .trace.json.gz there" in said
  assert on_disk(run)[0] == [1, 2, 3]


def test_a_number_that_is_not_finite_stops_before_its_save(run):
  with Stage(run, "base", num_steps=4) as stage:
    stage.take_up(state_of(0))
    steps = stage.steps()
    for step in (1, 2):
      next(steps)
      with run.clock("update"):
        stage.settle()
      bad = {"loss/a": Mean(jnp.asarray(jnp.nan), jnp.asarray(1.0))}
      statistics = [bad] if step == 2 else []
      stage.end_step(
        step, {}, state_of(step), statistics=statistics, work=WORK, is_donated=False
      )
    with pytest.raises(FloatingPointError, match="loss/a is nan at step 2"):
      stage.settle()
  assert on_disk(run) == ([1, 2], [])
