"""The tiny R1 recipe at its smallest, from the command: killed, continued, changed."""

import random
import signal
import time

import pytest

from configs import r1_pipeline_tiny
from r1jax.stages.run import DATA_KINDS
from tests import learners, small_run

CONFIG = "configs/r1_pipeline_tiny.py:small"
# Enough for every kind of arrow: weights, examples, an evaluation.
FIRST = ("base", "zero", "cold_answers", "cold_start", "at_cold_start")
QUICKLY = ("--config.log.tensorboard=False", "--config.cpu_devices=0")

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def products(folder, stages):
  """{stage: what it has made}: bytes of files, arrays of weights."""
  c = r1_pipeline_tiny.get_config("small")
  found = {}
  for name in stages:
    if c[name].kind in DATA_KINDS:
      found[name] = (folder / "data" / name / "made.jsonl").read_bytes()
      continue
    arrays = learners.arrays(folder, name)
    found[name] = {path: (x.dtype, x.tobytes()) for path, x in arrays.items()}
  return found


def finished(train, folder, *args):
  process = train(f"--workdir={folder}", *args, *QUICKLY, config=CONFIG)
  out, errors = process.communicate(timeout=3000)
  assert process.returncode == 0, errors
  return out


def test_a_part_of_it_is_kept_and_made_again_where_something_changed(train, tmp_path):
  stages = f"--config.stages={FIRST}"
  finished(train, tmp_path, stages)
  made = products(tmp_path, FIRST)
  assert made["cold_answers"].count(b"\n") > 10
  lines = small_run.numbers(tmp_path)
  assert {line["stage"] for line in lines} == {*FIRST}
  assert (tmp_path / "report.html").read_text().count("cold_answers") > 1
  # The last stage alone depends on this.
  again = "--config.at_cold_start.eval.temperature=1.0"
  process = train(f"--workdir={tmp_path}", stages, again, *QUICKLY, config=CONFIG)
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 2
  assert "eval.temperature was 0.0 and is now 1.0" in errors
  out = finished(train, tmp_path, stages, again, "--config.on_change=rerun")
  assert "at_cold_start: runs again, since eval.temperature was 0.0" in out
  assert out.count("done before with these settings, kept") == len(FIRST) - 1
  after = products(tmp_path, FIRST)
  assert [name for name in FIRST if after[name] != made[name]] in ([], [FIRST[-1]])


@pytest.mark.slow
def test_killed_at_three_random_moments_it_ends_with_the_same_products(train, tmp_path):
  stages = r1_pipeline_tiny.get_config("small").stages
  began = time.monotonic()
  finished(train, tmp_path / "whole")
  took_s = time.monotonic() - began
  # What is compiled lies in a cache by now: the second run is quicker.
  rng = random.Random(0)
  for _ in range(3):
    process = train(f"--workdir={tmp_path / 'killed'}", *QUICKLY, config=CONFIG)
    time.sleep(rng.uniform(0.1, 0.25) * took_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  finished(train, tmp_path / "killed")
  whole, killed = (products(tmp_path / name, stages) for name in ("whole", "killed"))
  assert [name for name in stages if whole[name] != killed[name]] == []
  numbers = [small_run.numbers(tmp_path / name) for name in ("whole", "killed")]
  assert numbers[0] == numbers[1]
