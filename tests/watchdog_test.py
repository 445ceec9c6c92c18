import json
import os
import time

from r1jax.watchdog import PhaseClock, Watchdog


def wait_for(condition, limit_s=20.0):
  end = time.monotonic() + limit_s
  while not condition():
    assert time.monotonic() < end, "nothing happened"
    time.sleep(0.02)


def stuck_in_verifier(is_told):
  wait_for(is_told)


def test_a_stage_that_sleeps_is_named_with_its_stacks_once(tmp_path):
  """R24: after the limit the phase and the stacks of all threads are printed."""
  path = tmp_path / "stacks.txt"
  with open(path, "w") as f, Watchdog(tmp_path, limit_s=0.2, stream=f) as dog:
    dog.beat(step=7)
    with dog.phase("reward"):
      stuck_in_verifier(lambda: "most recent call" in path.read_text())
      time.sleep(0.6)
      once = path.read_text()
  assert once.count("phase 'reward' of step 7 has made no progress") == 1
  assert "stuck_in_verifier" in once
  assert "watchdog.py" in once


def test_progress_inside_a_phase_keeps_it_quiet(tmp_path):
  path = tmp_path / "stacks.txt"
  with (
    open(path, "w") as f,
    Watchdog(None, limit_s=1.0, stream=f) as dog,
    dog.phase("step"),
  ):
    for _ in range(8):
      with dog.phase("rollout"):
        time.sleep(0.1)
      dog.beat()
      time.sleep(0.1)
  assert path.read_text() == ""
  assert os.listdir(tmp_path) == ["stacks.txt"]


def test_heartbeat_says_where_the_run_is(tmp_path):
  path = tmp_path / "heartbeat.json"
  with Watchdog(tmp_path, limit_s=None) as dog:
    dog.beat(step=3)
    with dog.phase("update"):
      wait_for(path.exists)
      beat = json.loads(path.read_text())
      first = path.stat().st_mtime_ns
      assert beat.keys() == {"phase", "step", "time", "phase_s", "pid"}
      assert (beat["phase"], beat["step"], beat["pid"]) == ("update", 3, os.getpid())
      assert abs(beat["time"] - time.time()) < 30
      wait_for(lambda: path.stat().st_mtime_ns != first)
      assert path.stat().st_mtime_ns - first > 0.9e9, "more than once a second"
  assert json.loads(path.read_text())["phase"] == "end"


def test_a_folder_that_refuses_does_not_stop_the_watch(tmp_path):
  path = tmp_path / "stacks.txt"
  folder = tmp_path / "absent"
  with (
    open(path, "w") as f,
    Watchdog(folder, limit_s=1.5, stream=f) as dog,
    dog.phase("save"),
  ):
    wait_for(lambda: "'save'" in path.read_text())


def test_clock_adds_up_phases_and_starts_again(tmp_path):
  clock = PhaseClock(Watchdog(tmp_path, limit_s=None))
  began = time.perf_counter()
  for _ in range(2):
    with clock("rollout"):
      time.sleep(0.05)
      with clock("update", shown="waits for the update"):
        time.sleep(0.1)
  passed = time.perf_counter() - began
  taken = clock.take()
  assert taken.keys() == {"time/rollout_s", "time/update_s"}
  assert taken["time/rollout_s"] >= 0.1 and taken["time/update_s"] >= 0.2
  assert sum(taken.values()) <= passed
  assert clock.take() == {}


def test_clock_may_be_taken_within_a_phase():
  clock = PhaseClock()
  with clock("rollout"):
    time.sleep(0.05)
    assert clock.take()["time/rollout_s"] >= 0.05
  assert clock.take()["time/rollout_s"] < 0.05


def test_clock_counts_a_phase_that_raises():
  clock = PhaseClock()
  try:
    with clock("rollout"):
      raise KeyError
  except KeyError:
    pass
  assert clock.take()["time/rollout_s"] >= 0
