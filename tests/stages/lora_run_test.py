"""Adapters through both stages, over a resume, and into the stage that follows."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from r1jax import export, prng, trees
from r1jax.checkpoints import Checkpoints
from r1jax.models import lora, parameters
from r1jax.models.config import ModelConfig
from tests.small_run import numbers

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def finish(train, folder):
  process = train(f"--workdir={folder}", config="tests/small_lora.py")
  out, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  return out


@pytest.fixture(scope="module", name="lora_run")
def _lora_run(train, tmp_path_factory):
  """The folder of small_lora.py run to its end; not to be written to."""
  folder = tmp_path_factory.mktemp("lora")
  finish(train, folder)
  return folder


def settings(folder, stage):
  """(shape of the model, adapter or None)."""
  made_from = folder / "checkpoints" / stage / "settings.json"
  found = json.loads(made_from.read_text())
  del found["model"]["compute_dtype"]
  return ModelConfig(**found["model"]), lora.of_section(found["lora"])


def arrays(folder, stage):
  """{path: array} of the last checkpoint."""
  checkpoints = folder / "checkpoints" / stage
  step = Checkpoints(checkpoints).latest()
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    flat = reader.restore(checkpoints / str(step) / "state")
  return {path: np.asarray(array) for path, array in flat.items()}


def trained(folder, stage):
  """The trained tree."""
  start = "train/params/"
  return trees.unflatten(
    {
      path.removeprefix(start): array
      for path, array in arrays(folder, stage).items()
      if path.startswith(start)
    }
  )


def lines_of(folder, key):
  return [line for line in numbers(folder) if key in line]


def test_a_checkpoint_holds_adapter_moments_and_reference_and_no_more(lora_run):
  for stage, copies in (("base", 3), ("zero", 4)):
    specs = trees.flatten(lora.adapter_specs(*settings(lora_run, stage)))
    state = arrays(lora_run, stage)
    of_adapter = {path: x for path, x in state.items() if x.ndim}
    assert len(of_adapter) == copies * len(specs)
    for path, array in of_adapter.items():
      (spec,) = (specs[end] for end in specs if path.endswith(f"/{end}"))
      assert array.shape == spec.shape
  assert any(path.startswith("ref/") for path in state)


def test_the_stage_that_follows_begins_with_base_and_adapters_merged(lora_run):
  """Two adapters on fresh weights; its own learning rate is 0."""
  model, _ = settings(lora_run, "base")
  key = prng.at(prng.root(0), "init")
  want = trees.flatten(jax.jit(parameters.init, static_argnums=0)(model, key))
  want = {path: np.asarray(array, np.float64) for path, array in want.items()}
  changed = {"base": 0, "zero": 0}
  for stage in changed:
    _, how = settings(lora_run, stage)
    adapter = trees.flatten(trained(lora_run, stage))
    for path in want:
      if f"{path}/a" in adapter:
        a, b = adapter[f"{path}/a"][0], adapter[f"{path}/b"][0]
        update = how.scale * np.tensordot(a.astype(np.float64), b, 1)
        assert np.abs(update).max() > 1e-3
        want[path] = want[path] + update
        changed[stage] += 1
  assert changed == {"base": 7, "zero": 3}
  got = trees.flatten(trained(lora_run, "after"))
  assert got.keys() == want.keys()
  for path, array in got.items():
    np.testing.assert_allclose(array, want[path], atol=2e-6, err_msg=path)


def test_an_export_has_the_adapters_merged(lora_run):
  source = export.of_checkpoint(str(lora_run / "checkpoints" / "zero"), None)
  got, want = trees.flatten(source.load()), trees.flatten(trained(lora_run, "after"))
  assert got.keys() == want.keys()
  for path, array in got.items():
    np.testing.assert_allclose(array, want[path], atol=2e-6, err_msg=path)


def test_the_sampler_follows_the_adapter(lora_run):
  steps = lines_of(lora_run, "rollout/weights_checksum")
  assert len({line["rollout/weights_checksum"] for line in steps}) == len(steps) == 4
  assert max(line["policy/logp_gap_max"] for line in steps) < 1e-4
  assert all(line["optim/grad_norm"] > 0 for line in steps)
  assert all(line["loss/kl"] > 0 for line in steps)
  assert len(lines_of(lora_run, "eval/heldout/accuracy")) == 3


def test_a_resumed_run_is_the_same(train, lora_run, tmp_path):
  """From step 3 of 4: adapter, moments and reference are read, the base made anew."""
  shutil.copytree(lora_run, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / "zero" / "4")
  shutil.rmtree(tmp_path / "checkpoints" / "after")
  out = finish(train, tmp_path)
  assert "zero: goes on from step 3" in out and "base: done before" in out
  assert numbers(tmp_path) == numbers(lora_run)
  for stage in ("zero", "after"):
    got, want = arrays(tmp_path, stage), arrays(lora_run, stage)
    assert got.keys() == want.keys()
    for path, array in got.items():
      np.testing.assert_array_equal(array, want[path], err_msg=path)
