import json
import struct
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from r1jax import metrics
from r1jax.errors import InputError


def write(workdir, lines, **kwargs):
  with metrics.Writer(workdir, **kwargs) as writer:
    for step, stage, numbers in lines:
      writer.write(step, stage, numbers)


def raw(workdir):
  return (workdir / "metrics.jsonl").read_bytes()


def events_of(folder):
  """All events of a TensorBoard folder in the order a reader sees them."""
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack("<Q", data[:8])
      yield Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]


def test_numbers_of_every_kind_become_json(tmp_path):
  numbers = {
    "a": jnp.float32(0.1),
    "b": np.int64(3),
    "c": jnp.asarray([2.5], jnp.bfloat16),
    "d": True,
    "e": None,
    "f": float("inf"),
  }
  write(tmp_path, [(1, "zero", numbers)], tensorboard=False)
  (line,) = metrics.read(tmp_path)
  time = line.pop("time")
  assert 1e9 < time < 1e11
  want = {"a": float(np.float32(0.1)), "b": 3, "c": 2.5, "d": 1, "e": None, "f": None}
  assert line == {"step": 1, "stage": "zero"} | want
  assert "NaN" not in raw(tmp_path).decode()


@pytest.mark.parametrize("value", [np.zeros(2), "1.0", 1j, [1, 2]])
def test_what_is_no_number_is_refused_by_name(tmp_path, value):
  with pytest.raises(TypeError, match="reward/total"):
    write(tmp_path, [(1, "zero", {"reward/total": value})])
  assert raw(tmp_path) == b""


def test_own_keys_cannot_be_overwritten(tmp_path):
  with pytest.raises(ValueError, match="stage"):
    write(tmp_path, [(1, "zero", {"stage": 3})])


def test_a_line_is_on_disk_before_close(tmp_path):
  writer = metrics.Writer(tmp_path)
  writer.write(1, "zero", {"reward/total": 1.0})
  assert metrics.read(tmp_path)[0]["reward/total"] == 1.0
  writer.close()


def test_a_loss_that_is_not_finite_is_kept_then_raised_with_its_steps(tmp_path):
  writer = metrics.Writer(tmp_path)
  writer.write(6, "zero", {"loss/policy": 0.5, "reward/total": float("nan")})
  with pytest.raises(FloatingPointError, match=r"loss/policy is nan at step 7.*step 6"):
    writer.write(7, "zero", {"loss/policy": jnp.nan})
  writer.close()
  assert [line["loss/policy"] for line in metrics.read(tmp_path)] == [0.5, None]


def test_other_hosts_write_nothing_and_stop_on_the_same_nan(tmp_path):
  writer = metrics.Writer(tmp_path / "run", is_main=False)
  writer.write(1, "zero", {"optim/grad_norm": 1.0})
  with pytest.raises(FloatingPointError, match="optim/grad_norm"):
    writer.write(2, "zero", {"optim/grad_norm": np.inf})
  writer.close()
  assert not (tmp_path / "run").exists()


def test_truncate_goes_back_to_a_checkpoint(tmp_path):
  """R10: what lies beyond the restored step is dropped, other bytes are untouched."""
  lines = [(s, "base", {"loss/cross_entropy": 1.0 / (s + 1)}) for s in range(3)]
  lines += [(s, "zero", {"reward/total": s / 7}) for s in range(5)]
  lines += [(0, "distill", {"loss/cross_entropy": 1.0})]
  write(tmp_path, lines)
  before = raw(tmp_path).splitlines(keepends=True)
  with open(tmp_path / "metrics.jsonl", "ab") as f:
    f.write(b'{"step": 5, "stage": "ze')
  assert len(metrics.read(tmp_path)) == 9
  assert metrics.truncate(tmp_path, "zero", 2, ["distill"]) == 3
  assert raw(tmp_path) == b"".join(before[:6])
  assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_truncate_of_a_new_run_is_nothing(tmp_path):
  assert metrics.truncate(tmp_path, "zero", 3, []) == 0
  assert metrics.read(tmp_path) == []
  assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("rest", [b'{"step": 2, "st', b'{"step": 2, "stage": "a"}'])
def test_a_half_written_line_is_dropped_when_writing_goes_on(tmp_path, rest):
  write(tmp_path, [(1, "zero", {"x": 1})])
  with open(tmp_path / "metrics.jsonl", "ab") as f:
    f.write(rest)
  write(tmp_path, [(2, "zero", {"x": 2})])
  assert [line["x"] for line in metrics.read(tmp_path)] == [1, 2]


@pytest.mark.parametrize("bad", [b"{\n", b"[1]\n", b'{"step": 1}\n'])
def test_a_damaged_line_is_named(tmp_path, bad):
  write(tmp_path, [(1, "zero", {"x": 1})])
  (tmp_path / "metrics.jsonl").write_bytes(raw(tmp_path) + bad + raw(tmp_path))
  with pytest.raises(InputError, match=r"metrics\.jsonl:2"):
    metrics.read(tmp_path)


def test_tensorboard_has_the_same_numbers_and_forgets_repeated_steps(tmp_path):
  """A restart marks its first step, from where a reader purges what came before."""
  write(tmp_path, [(s, "zero", {"reward/total": s / 4}) for s in range(4)])
  metrics.truncate(tmp_path, "zero", 1, [])
  write(tmp_path, [(s, "zero", {"reward/total": s / 4}) for s in range(2, 5)])
  curve = {}
  for event in events_of(tmp_path / "tensorboard" / "zero"):
    if event.HasField("session_log"):
      assert event.session_log.status == SessionLog.START
      curve = {step: v for step, v in curve.items() if step < event.step}
    for value in event.summary.value:
      assert event.step not in curve
      curve[event.step] = value.simple_value
  assert curve == {
    line["step"]: line["reward/total"] for line in metrics.read(tmp_path)
  }
  assert list(curve) == [0, 1, 2, 3, 4]


def test_wandb_that_is_absent_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match=r"--config\.log\.wandb.*pip install wandb"):
    metrics.Writer(tmp_path, wandb="r1")
  assert list(tmp_path.iterdir()) == []


def test_wandb_gets_the_same_numbers_and_one_run_over_restarts(tmp_path, monkeypatch):
  logged, started, axes = [], [], {}
  run = types.SimpleNamespace(
    log=logged.append,
    finish=lambda: None,
    define_metric=lambda name, step_metric: axes.update({name: step_metric}),
  )
  fake = types.SimpleNamespace(init=lambda **kw: started.append(kw) or run)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  write(tmp_path, [(1, "base", {"x": 1}), (1, "zero", {"x": 2, "y": None})], wandb="r1")
  write(tmp_path, [(2, "zero", {"x": 3})], wandb="r1")
  assert started[0] == started[1]
  assert started[0]["project"] == "r1"
  assert axes == {"base/*": "base/step", "zero/*": "zero/step"}
  assert logged[:2] == [
    {"base/step": 1, "base/x": 1},
    {"zero/step": 1, "zero/x": 2},
  ]


def test_samples_are_written_whole_under_their_name(tmp_path):
  """R22: every rollout kept is in JSONL."""
  record = {"completion": "\ud800<think>", "reward": {"total": np.float32(0.5)}}
  path = metrics.write_samples(
    tmp_path, "zero", "eval_sums", 40, [record | {"advantage": jnp.nan}] * 2
  )
  assert path == tmp_path / "samples" / "zero" / "eval_sums_000040.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  want = {"completion": "\ud800<think>", "reward": {"total": 0.5}, "advantage": None}
  assert lines == [want] * 2
  assert [p.name for p in path.parent.iterdir()] == [path.name]


FULL_DISK = """
import resource, signal, sys
from r1jax import metrics
from r1jax.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
writer = metrics.Writer(sys.argv[1], tensorboard=sys.argv[3] == "tensorboard")
try:
  for step in range(1000):
    writer.write(step, "zero", {"reward/total": step / 3})
except InputError as e:
  print(step, e)
"""


@pytest.mark.parametrize("tensorboard", ["tensorboard", "alone"])
def test_a_disk_that_fills_up_names_the_folder_and_keeps_whole_lines(
  tmp_path, tensorboard
):
  done = subprocess.run(
    [sys.executable, "-c", FULL_DISK, str(tmp_path), "2000", tensorboard],
    check=True,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert str(tmp_path) in done.stdout, done.stderr
  assert "run the same command again" in done.stdout
  last = int(done.stdout.split()[0])
  assert raw(tmp_path).endswith(b"\n")
  steps = [line["step"] for line in metrics.read(tmp_path)]
  assert steps[:last] == list(range(last))
  assert last > 5
