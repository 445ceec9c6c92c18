"""Checkpoints and models to folders: what is taken, what is written and refused."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from r1jax import export
from r1jax.checkpoints import Checkpoints
from r1jax.data.tokenizer import load_tokenizer, train_sentencepiece
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.weights import hf, paths
from tests import tiny
from tests.weights.stored import MODELS, assert_equal

QUIET = Console(quiet=True)


def write(source, out, **settings):
  settings = {
    "dtype": "float32",
    "max_shard_gb": 5.0,
    "overwrite": False,
    "console": QUIET,
    **settings,
  }
  export.export(source, out, **settings)
  return out


def saved(workdir, stage, step, model):
  """Parameters as the checkpoint has them."""
  abstract = parameters.abstract_params(model, jnp.float32)
  with Checkpoints(workdir / "checkpoints" / stage) as checkpoints:
    state, _, _ = checkpoints.restore(
      {"train": {"params": abstract}}, step, partial=True
    )
  return state["train"]["params"]


@pytest.mark.parametrize(
  ("below", "step", "want"),
  [
    ("", None, ("zero", 5)),
    ("checkpoints", None, ("zero", 5)),
    ("", 3, ("zero", 3)),
    ("checkpoints/zero", None, ("zero", 5)),
    ("checkpoints/base", None, ("base", 40)),
    ("checkpoints/base/39", None, ("base", 39)),
  ],
)
def test_a_run_s_checkpoint_becomes_a_folder(small_run, tmp_path, below, step, want):
  """By default the last step of the last stage."""
  source = export.of_checkpoint(str(small_run / below), step)
  out = write(source, tmp_path / "out")
  model, params = paths.load_model(out)
  assert model == source.model
  assert_equal(params, saved(small_run, *want, model))
  made = json.loads((out / export.MARK).read_text())
  assert (made["made_from"]["stage"], made["made_from"]["step"]) == want
  assert made["versions"]["jax"] == jax.__version__
  (kept,) = (small_run / "tokenizer").iterdir()
  assert load_tokenizer(out).fingerprint == load_tokenizer(kept).fingerprint


def test_the_command(train, small_run, tmp_path):
  out = tmp_path / "a folder"
  words = (f"--checkpoint={small_run}", f"--out={out}", "--dtype=bfloat16")
  process = train(*words, config=None, program=("-m", "r1jax.export"))
  said, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  for part in ("zero", "bfloat16", "r1jax.chat", "a folder"):
    assert part in said
  model, params = paths.load_model(out, dtype=jnp.bfloat16)
  want = saved(small_run, "zero", 5, model)
  assert_equal(params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), want))
  process = train(*words, config=None, program=("-m", "r1jax.export"))
  said, errors = process.communicate(timeout=300)
  assert (process.returncode, said) == (2, "")
  assert re.fullmatch(
    "error: --out=.* holds an earlier export; --overwrite .*\n", errors
  )


def test_bad_input_is_one_line_and_exit_code_2(train, tmp_path):
  """Both started at once."""
  refused = {
    "--chekpoint=a": "chekpoint",
    "--model=absent": "'absent' does not exist",
  }
  started = {
    words: train(
      words, f"--out={tmp_path}/out", config=None, program=("-m", "r1jax.export")
    )
    for words in refused
  }
  for words, process in started.items():
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 2, (words, errors)
    assert re.fullmatch(f"error: .*{refused[words]}.*\n", errors), (words, errors)
    assert not out
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({}, "one of --checkpoint=RUN and --model=PATH is needed"),
    ({"checkpoint": "a", "model": "b", "out": "c"}, "one of --checkpoint=RUN"),
    ({"checkpoint": "a"}, "--out=FOLDER is needed"),
    ({"model": "a", "out": "b", "step": 1}, "--step=1 goes with --checkpoint"),
  ],
)
def test_flags_that_do_not_go_together(given, message):
  names = ("checkpoint", "model", "out", "step")
  with pytest.raises(InputError, match=message):
    export.check_flags(**dict.fromkeys(names) | given)


@pytest.mark.parametrize(
  ("below", "step", "message"),
  [
    ("", 4, r"--step=4: stage 'zero' has no such checkpoint; there are: 3, 5"),
    ("checkpoints/base/39", 40, "--step=40, and --checkpoint=.*39 is step 39"),
    ("samples", None, r"samples/config.json does not exist"),
    ("absent", None, r"absent is not a folder; name the folder of a run"),
  ],
)
def test_checkpoints_that_are_not_there(small_run, below, step, message):
  with pytest.raises(InputError, match=message):
    export.of_checkpoint(str(small_run / below), step)


def test_the_vocabulary_must_be_the_one_that_the_stage_had(small_run, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(small_run, workdir)
  kept = workdir / "tokenizer"
  train_sentencepiece(["another text"], path=kept / "0.model")
  tokenizer = export.of_checkpoint(str(workdir), None).tokenizer
  (own,) = (small_run / "tokenizer").iterdir()
  assert tokenizer.fingerprint == load_tokenizer(own).fingerprint
  (kept / own.name).unlink()
  with pytest.raises(InputError, match=r"fingerprint .*, which is none of: .*0\.model"):
    export.of_checkpoint(str(workdir), None)


def test_a_run_without_checkpoints(small_run, tmp_path):
  (tmp_path / "config.json").write_text((small_run / "config.json").read_text())
  with pytest.raises(InputError, match=r"no checkpoints yet; the stages .* base, zero"):
    export.of_checkpoint(str(tmp_path), None)
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(InputError, match="is not the config of a run"):
    export.of_checkpoint(str(tmp_path), None)


# ------------------------------------------------------------------------ other models


@pytest.fixture(name="source")
def _source(small_run, tmp_path):
  """A folder of an architecture that is not the small run's."""
  (kept,) = (small_run / "tokenizer").iterdir()
  c = MODELS["deepseek_v3"]
  hf.save_hf(tmp_path / "model", c, tiny.params(c), load_tokenizer(kept))
  return export.of_model(str(tmp_path / "model"))


def test_a_model_becomes_a_folder(source, tmp_path):
  out = write(source, tmp_path / "out", max_shard_gb=2e-5)
  assert len(list(out.glob("*.safetensors"))) > 1
  assert paths.read_config(out) == source.model
  assert_equal(paths.load_model(out)[1], tiny.params(source.model))
  assert load_tokenizer(out).fingerprint == source.tokenizer.fingerprint


def test_what_is_in_the_way_is_kept(source, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  write(source, out)  # an empty folder is as good as none
  with pytest.raises(InputError, match="holds an earlier export; --overwrite"):
    write(source, out)
  (out / ".model.safetensors.1.part").write_text("of a process that was killed")
  write(source, out, overwrite=True, dtype="bfloat16")
  assert not list(out.glob(".*.part"))
  want = np.asarray(tiny.params(source.model)["embed"].astype(jnp.bfloat16))
  got = paths.load_model(out, dtype=jnp.bfloat16)[1]["embed"]
  np.testing.assert_array_equal(np.asarray(got), want)
  (out / export.MARK).unlink()
  with pytest.raises(InputError, match="is not empty, and no earlier export"):
    write(source, out, overwrite=True)
  with pytest.raises(InputError, match="is a file; name a folder"):
    write(source, out / "config.json")


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"dtype": "float16"}, "--dtype='float16' is not known"),
    ({"max_shard_gb": 0.0}, "--max_shard_gb=0.0: must be above 0"),
  ],
)
def test_settings_that_make_no_sense(source, tmp_path, settings, message):
  with pytest.raises(InputError, match=message):
    write(source, tmp_path / "out", **settings)
  assert not (tmp_path / "out").exists()
