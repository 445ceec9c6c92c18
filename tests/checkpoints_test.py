"""Checkpoints: exact, atomic, and clear about what is wrong with them."""

import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.checkpoints import SEAL, Checkpoints, write_json
from r1jax.errors import InputError


def make_state(seed=0, size=6):
  """Parameters, optimizer and counters, as a training state has them."""
  rng = np.random.default_rng(seed)
  params = {
    "embed": jnp.asarray(rng.normal(size=(7, size)), jnp.float32),
    "layers": {"attn": {"q": jnp.asarray(rng.normal(size=(2, size, 3)), jnp.bfloat16)}},
  }
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  return {
    "params": params,
    "opt_state": optimizer.init(params),
    "step": jnp.asarray(seed, jnp.int32),
  }


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(folder, steps=(10, 20), **settings):
  with Checkpoints(folder, **settings) as checkpoints:
    for step in steps:
      assert checkpoints.save(step, make_state(step), {"position": 3 * step})
  return folder


def restore(folder, step=None, **settings):
  return Checkpoints(folder).restore(abstract(make_state()), step, **settings)


def test_round_trip_is_bit_exact(tmp_path):
  """float32, bfloat16 and int32; NaN with a payload, -0, denormals and infinities."""
  odd = np.array([0x7FC01234, 0x80000000, 0x00000001, 0x7F800000], np.uint32)
  state = make_state() | {"odd": jnp.asarray(odd.view(np.float32))}
  extra = {"fingerprint": "0a1b", "data": {"position": 7, "names": ["a"]}, "x": 0.1}
  with Checkpoints(tmp_path / "c") as checkpoints:
    checkpoints.save(5, state, extra)
  got, got_extra, step = Checkpoints(tmp_path / "c").restore(abstract(state))
  assert_same_bits(got, state)
  assert (got_extra, step) == (extra, 5)


def test_layout_and_what_is_kept(tmp_path):
  saved(tmp_path, steps=(10, 20, 30, 40, 50), keep=2, keep_every=20)
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.steps() == [20, 40, 50]
  assert checkpoints.latest() == 50
  assert sorted(p.name for p in tmp_path.iterdir()) == ["20", "40", "50"]
  assert {"state", "extra", SEAL} <= {p.name for p in (tmp_path / "50").iterdir()}
  for step in (20, 40, 50):
    state, extra, _ = restore(tmp_path, step)
    assert_same_bits(state, make_state(step))
    assert extra == {"position": 3 * step}


def test_save_every_and_force(tmp_path):
  with Checkpoints(tmp_path, save_every=10, keep=9) as checkpoints:
    did = [checkpoints.save(step, make_state(), {}) for step in range(1, 21)]
    assert [step for step, done in enumerate(did, start=1) if done] == [10, 20]
    assert checkpoints.save(23, make_state(), {}, force=True)
    assert not checkpoints.save(23, make_state(), {}, force=True)
    checkpoints.wait()
    assert not checkpoints.save(23, make_state(), {}, force=True)
  assert Checkpoints(tmp_path).steps() == [10, 20, 23]


def test_state_may_be_donated_at_once(tmp_path):
  """The next step reuses the buffers while the save is still being written."""
  state = {"w": jnp.ones((2000, 1000)), "b": jnp.ones(10)}
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: 7 * x, s), donate_argnums=0)
  overwrite = overwrite.lower(state).compile()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    changed = jax.block_until_ready(overwrite(state))
    assert float(changed["w"][0, 0]) == 7.0
  got, _, _ = Checkpoints(tmp_path).restore(abstract(changed))
  assert all(bool((x == 1).all()) for x in jax.tree.leaves(got))


def test_small_states_save_without_blocking(tmp_path):
  """10 MB, as in the quick start: well under a second, most of it in the background."""
  rng = np.random.default_rng(0)
  state = {f"w{i}": jnp.asarray(rng.normal(size=(256, 1024))) for i in range(10)}
  blocked, whole = [], []
  with Checkpoints(tmp_path) as checkpoints:
    for step in range(4):
      start = time.monotonic()
      checkpoints.save(step, state, {})
      blocked.append(time.monotonic() - start)
      checkpoints.wait()
      whole.append(time.monotonic() - start)
  assert sorted(blocked)[1] < 0.3
  assert sorted(whole)[1] < 1.0


def test_nothing_is_logged(tmp_path, caplog, capfd):
  saved(tmp_path)
  restore(tmp_path)
  assert not caplog.records
  assert capfd.readouterr() == ("", "")


def test_inside_a_loop_that_forbids_transfers(tmp_path):
  state = make_state()
  with jax.transfer_guard("disallow"), Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    got, _, _ = checkpoints.restore(abstract(state))
  assert_same_bits(got, state)


def test_part_of_the_state(tmp_path):
  saved(tmp_path)
  state = make_state(20)
  only = {"params": {"embed": state["params"]["embed"]}}
  got, extra, step = Checkpoints(tmp_path).restore(abstract(only), partial=True)
  assert_same_bits(got, only)
  assert (extra, step) == ({"position": 60}, 20)
  with pytest.raises(InputError, match="opt_state/1/0/count is only in it"):
    Checkpoints(tmp_path).restore(abstract(only))


class TestWrongModel:
  def message(self, folder, state, **settings):
    with pytest.raises(InputError) as caught:
      Checkpoints(folder).restore(abstract(state), **settings)
    return str(caught.value)

  def test_other_shape(self, tmp_path):
    text = self.message(saved(tmp_path), make_state(size=8))
    assert "params/embed is float32[7,6] there and float32[7,8] here" in text
    assert "of another model" in text and "config" in text

  def test_other_dtype(self, tmp_path):
    state = make_state()
    state["params"]["embed"] = state["params"]["embed"].astype(jnp.bfloat16)
    text = self.message(saved(tmp_path), state)
    assert "params/embed is float32[7,6] there and bfloat16[7,6] here" in text

  def test_missing_and_extra_paths(self, tmp_path):
    state = make_state()
    state["params"]["head"] = state["params"].pop("embed")
    text = self.message(saved(tmp_path), state)
    assert "params/head is not in it" in text and "params/embed is only in it" in text
    text = self.message(tmp_path, {"params": state["params"]}, partial=True)
    assert "params/head is not in it" in text and "only in it" not in text

  def test_long_lists_are_cut(self, tmp_path):
    text = self.message(saved(tmp_path), {"x": jnp.zeros(1)})
    num_paths = 1 + len(jax.tree.leaves(make_state()))
    assert f"; and {num_paths - 5} more. Use the config" in text
    assert text.count(" in it") == 5


def damage(path, how):
  data = bytearray(path.read_bytes())
  if how == "remove":
    path.unlink()
  elif how == "truncate":
    path.write_bytes(data[: len(data) // 2])
  else:
    data[len(data) // 2] ^= 0x41
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["remove", "truncate", "flip"])
def test_any_damage_is_found(tmp_path, how):
  """Every file of the last step in turn: an error or the exact state, no third."""
  whole = saved(tmp_path / "whole")
  found = 0
  for path in sorted(p for p in (whole / "20").rglob("*") if p.is_file()):
    shutil.copytree(whole, tmp_path / "copy")
    damage(tmp_path / "copy" / path.relative_to(whole), how)
    try:
      state, extra, _ = restore(tmp_path / "copy")
      assert_same_bits(state, make_state(20))
      assert extra == {"position": 60}
    except InputError as error:
      found += 1
      assert "20 is damaged: " in str(error)
      assert "Before it there are: 10" in str(error)
    shutil.rmtree(tmp_path / "copy")
  assert found >= 8


class TestDamagedLast:
  """R10: a damaged last checkpoint is named, and the one before is used when asked."""

  @pytest.fixture
  def folder(self, tmp_path):
    saved(tmp_path, steps=(10, 20, 30), keep=3)
    largest = max((tmp_path / "30/state").rglob("*"), key=lambda p: p.stat().st_size)
    damage(largest if largest.is_file() else tmp_path / "30" / SEAL, "truncate")
    return tmp_path

  def test_message(self, folder):
    with pytest.raises(InputError) as caught:
      restore(folder)
    text = str(caught.value)
    assert f"{folder}/30 is damaged" in text
    assert "there are: 10, 20" in text
    assert "--config.checkpoint.step=20" in text
    assert "--config.checkpoint.skip_damaged=True" in text

  def test_the_one_before_by_number(self, folder):
    state, _, step = restore(folder, 20)
    assert step == 20
    assert_same_bits(state, make_state(20))

  def test_the_one_before_by_skipping(self, folder, caplog):
    (folder / "20" / SEAL).unlink()
    state, _, step = restore(folder, skip_damaged=True)
    assert step == 10
    assert_same_bits(state, make_state(10))
    assert "30 is damaged" in caplog.text and "20 is damaged" in caplog.text

  def test_none_before(self, folder):
    shutil.rmtree(folder / "20")
    shutil.rmtree(folder / "10")
    with pytest.raises(InputError, match=r"30 is damaged.*There is none before it"):
      restore(folder, skip_damaged=True)

  def test_the_run_goes_on_over_it(self, folder):
    """Saved again under the same number; a reader that goes back deletes nothing."""
    with Checkpoints(folder, keep=2) as checkpoints:
      checkpoints.restore(abstract(make_state()), skip_damaged=True)
      assert checkpoints.steps() == [10, 20, 30]
      assert checkpoints.save(30, make_state(33), {})
    state, _, step = restore(folder)
    assert step == 30
    assert_same_bits(state, make_state(33))


def test_going_back_leaves_no_later_steps(tmp_path):
  saved(tmp_path, steps=(10, 20, 30), keep=9)
  with Checkpoints(tmp_path, keep=9) as checkpoints:
    checkpoints.restore(abstract(make_state()), 10)
    assert not checkpoints.save(10, make_state(), {}, force=True)
    checkpoints.save(15, make_state(15), {})
    checkpoints.restore(abstract(make_state()), 15)
    checkpoints.save(20, make_state(21), {})
  assert Checkpoints(tmp_path).steps() == [10, 15, 20]
  assert_same_bits(restore(tmp_path)[0], make_state(21))


def test_another_run_is_not_overwritten(tmp_path):
  saved(tmp_path)
  for step in (5, 20):
    with pytest.raises(InputError, match=r"steps 10, 20, .*another --workdir"):
      Checkpoints(tmp_path).save(step, make_state(), {})
  assert Checkpoints(tmp_path).steps() == [10, 20]


def test_missing_checkpoints(tmp_path):
  with pytest.raises(InputError, match="there is no checkpoint in"):
    restore(tmp_path / "nothing")
  assert Checkpoints(tmp_path / "nothing").latest() is None
  assert not (tmp_path / "nothing").exists()
  saved(tmp_path)
  (tmp_path / "notes").mkdir()
  with pytest.raises(InputError, match=r"checkpoint\.step=15: .*there are: 10, 20"):
    restore(tmp_path, 15)


@pytest.mark.parametrize("name", ["keep", "save_every", "keep_every"])
def test_settings_out_of_range_name_their_key(tmp_path, name):
  with pytest.raises(InputError, match=rf"config\.checkpoint\.{name}=0"):
    Checkpoints(tmp_path, **{name: 0})


def test_extra_must_be_json(tmp_path):
  with pytest.raises(TypeError, match="JSON"):
    Checkpoints(tmp_path).save(1, make_state(), {"x": object()})
  assert Checkpoints(tmp_path).latest() is None


# ---------------------------------------------------------------- killed, full disk


def python(code, *args, devices=1, **options):
  """A child process that runs `code` with this file's helpers in reach."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": os.pathsep.join(
      [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]
    ),
  }
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
    env=environment,
    text=True,
    **options,
  )


@pytest.mark.parametrize(
  "stall", ["ocp.PyTreeCheckpointHandler.finalize", "checkpoints._sizes_and_sums"]
)
def test_kill_in_the_middle_of_a_save(tmp_path, stall):
  """R10: kill -9 with arrays half written, and with all written but the rename."""
  code = f"""
    import sys, time
    import orbax.checkpoint as ocp
    from r1jax import checkpoints
    from checkpoints_test import make_state

    c = checkpoints.Checkpoints(sys.argv[1])
    c.save(10, make_state(10), {{"position": 30}})
    c.wait()
    def stall(*args):
      print("saving", flush=True)
      time.sleep(600)
    {stall} = stall
    c.save(20, make_state(20), {{}})
    c.wait()
  """
  child = python(code, tmp_path, stdout=subprocess.PIPE)
  assert child.stdout.readline() == "saving\n"
  child.send_signal(signal.SIGKILL)
  child.wait()
  child.stdout.close()

  left = {p.name for p in tmp_path.iterdir()}
  assert "10" in left and "20" not in left and len(left) == 2
  assert Checkpoints(tmp_path).steps() == [10]
  with Checkpoints(tmp_path) as checkpoints:
    state, extra, step = checkpoints.restore(abstract(make_state()))
    assert (step, extra) == (10, {"position": 30})
    assert_same_bits(state, make_state(10))
    checkpoints.save(20, make_state(20), {})
  assert {p.name for p in tmp_path.iterdir()} == {"10", "20"}
  assert_same_bits(restore(tmp_path)[0], make_state(20))


def check_failed_save(folder, state, checkpoints):
  """Step 20 cannot be saved: that is said in one line, and nothing is left of it."""
  start = time.monotonic()
  with pytest.raises(InputError) as caught:
    checkpoints.save(20, state, {})
    while time.monotonic() < start + 30:
      checkpoints.check()
      time.sleep(0.01)
  text = str(caught.value)
  assert "step 20 could not be written" in text and "no space left on device" in text
  assert "there are: 10" in text and "--workdir" in text and "MB free" in text
  assert "\n" not in text
  assert {p.name for p in folder.iterdir()} == {"10"}


def test_full_disk(small_disk):
  """A file system that holds one checkpoint and not two."""
  rng = np.random.default_rng(0)
  state = {"w": jnp.asarray(rng.normal(size=(600, 1000)), jnp.float32)}
  folder = small_disk / "c"
  checkpoints = Checkpoints(folder)
  checkpoints.save(10, state, {})
  check_failed_save(folder, state, checkpoints)
  checkpoints.close()
  assert_same_bits(Checkpoints(folder).restore(abstract(state))[0], state)


def test_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"not be written to .*file/c .*--workdir"):
    Checkpoints(tmp_path / "file/c").save(1, make_state(), {})


def test_errors_of_the_program_are_not_dressed_up(tmp_path, monkeypatch):
  def fail(*_):
    raise ZeroDivisionError("a fault of ours")

  checkpoints = Checkpoints(tmp_path)
  monkeypatch.setattr("zlib.crc32", fail)
  checkpoints.save(1, make_state(), {})
  with pytest.raises(ZeroDivisionError, match="of ours"):
    checkpoints.close()


@pytest.mark.parametrize(
  "place",
  ["orbax.checkpoint.PyTreeCheckpointHandler.finalize", "zlib.crc32"],
)
def test_write_that_fails_in_the_background(tmp_path, monkeypatch, place, caplog):
  state = make_state()
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(10, state, {})
  checkpoints.wait()

  def fail(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(place, fail)
    check_failed_save(tmp_path, state, checkpoints)
  assert_same_bits(restore(tmp_path)[0], state)
  assert checkpoints.save(20, state, {})
  checkpoints.close()
  assert Checkpoints(tmp_path).steps() == [10, 20]
  assert not caplog.records


# ------------------------------------------------------------------------- sharding


@pytest.mark.multidevice
def test_shards_restore_to_another_mesh(tmp_path):
  """Saved from 8 devices as 4 x 2, read as 2 x 4, as other axes, and on one device."""
  code = """
    import sys
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from checkpoints_test import assert_same_bits, make_state
    from r1jax.checkpoints import Checkpoints

    def on(shape, rule):
      mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
      def sharding(x):
        return NamedSharding(mesh, rule if x.shape == (8, 8) else P())
      return sharding

    state = make_state(size=8) | {"w": np.arange(64, dtype=np.float32).reshape(8, 8)}
    place = on((4, 2), P("a", "b"))
    state = jax.tree.map(lambda x: jax.device_put(x, place(x)), state)
    assert state["w"].addressable_shards[7].data.shape == (2, 4)
    with Checkpoints(sys.argv[1]) as c:
      c.save(1, state, {})
    for shape, rule in (((2, 4), P("a", "b")), ((8, 1), P("b", "a")), ((2, 4), P())):
      place = on(shape, rule)
      target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), state)
      got, _, _ = Checkpoints(sys.argv[1]).restore(target)
      assert_same_bits(got, state)
      for g, t in zip(jax.tree.leaves(got), jax.tree.leaves(target), strict=True):
        assert g.sharding == t.sharding
  """
  child = python(code, tmp_path, devices=8, stderr=subprocess.PIPE)
  _, errors = child.communicate(timeout=240)
  assert child.returncode == 0, errors
  state = make_state(size=8) | {"w": jnp.arange(64.0).reshape(8, 8)}
  got, _, _ = Checkpoints(tmp_path).restore(abstract(state))
  assert_same_bits(got, state)
  assert all(len(x.devices()) == 1 for x in jax.tree.leaves(got))


@pytest.mark.multidevice
def test_two_processes_save_one_checkpoint(tmp_path):
  """Each holds half of an array; then both go back, and the later steps go."""
  code = """
    import sys
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from r1jax.checkpoints import Checkpoints

    folder, port, rank = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("a"))

    def state(step):
      rows = np.arange(12, dtype=np.float32).reshape(4, 3) + step
      return {"w": jax.make_array_from_callback((4, 3), split, lambda at: rows[at])}

    checkpoints = Checkpoints(folder, keep=5)
    for step in (10, 20, 30):
      checkpoints.save(step, state(step), {"step": step})
    got, extra, step = checkpoints.restore(state(0), 10)
    assert (extra, step) == ({"step": 10}, 10)
    (mine,), (want,) = got["w"].addressable_shards, state(10)["w"].addressable_shards
    assert mine.index == want.index and (np.asarray(mine.data) == want.data).all()
    checkpoints.save(15, state(15), {})
    checkpoints.close()
    assert Checkpoints(folder).steps() == [10, 15]
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  children = [
    python(code, tmp_path, port, rank, stderr=subprocess.PIPE) for rank in range(2)
  ]
  for child in children:
    _, errors = child.communicate(timeout=240)
    assert child.returncode == 0, errors
  got, _, _ = Checkpoints(tmp_path).restore({"w": jnp.zeros((4, 3))})
  np.testing.assert_array_equal(got["w"], np.arange(12).reshape(4, 3) + 15)


# ----------------------------------------------------------------------------- JSON


def test_write_json_is_all_or_nothing(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  write_json(path, {"a": [1, 2.5, None]})
  assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
  with pytest.raises(TypeError, match="JSON"):
    write_json(path, {"a": object()})

  def stop(*_):
    raise OSError("killed")

  monkeypatch.setattr("etils.epath.gpath.PosixGPath.replace", stop)
  with pytest.raises(OSError, match="killed"):
    write_json(path, {"b": 1})
  assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
