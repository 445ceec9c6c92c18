"""hf://org/name: what the library is asked for, and what is said where it fails."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from huggingface_hub import errors

from r1jax.errors import InputError
from r1jax.weights import hf, hub, paths
from tests import tiny

C = tiny.config(depth=1)


@pytest.fixture(name="asked")
def _asked(monkeypatch, tmp_path):
  """What snapshot_download is called with; it returns a folder with a model."""
  hf.save_hf(tmp_path / "cached", C, tiny.params(C))
  calls = []

  def download(name, **settings):
    calls.append((name, settings))
    return str(tmp_path / "cached")

  monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
  return calls


@pytest.mark.parametrize(
  ("path", "name", "revision"),
  [
    ("hf://org/name", "org/name", None),
    ("hf://Org-1/n.a_m-e@v1.0", "Org-1/n.a_m-e", "v1.0"),
    ("hf://org/name@refs/pr/3", "org/name", "refs/pr/3"),
  ],
)
def test_a_name_becomes_a_folder(asked, path, name, revision):
  c, params = paths.load_model(path)
  assert c == C
  for got, want in zip(
    jax.tree.leaves(params), jax.tree.leaves(tiny.params(C)), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
  ((asked_name, settings),) = asked
  assert (asked_name, settings["revision"]) == (name, revision)
  assert "*.safetensors" in settings["allow_patterns"]
  assert settings["etag_timeout"] <= 10


def test_only_what_is_read_is_downloaded(asked):
  from huggingface_hub.utils import filter_repo_objects

  paths.read_config("hf://org/name")
  patterns = asked[0][1]
  names = ("config.json", "generation_config.json", "model-00001-of-00002.safetensors")
  names += ("model.safetensors.index.json", "tokenizer.json", "tokenizer.model")
  names += ("tokenizer_config.json", "chat_template.jinja", "added_tokens.json")
  others = ("pytorch_model.bin", "original/params.json", "onnx/model.onnx", "a.gguf")
  others += ("consolidated.safetensors", "README.md", "original/tokenizer.model")
  kept = filter_repo_objects(
    [*names, *others],
    allow_patterns=patterns["allow_patterns"],
    ignore_patterns=patterns["ignore_patterns"],
  )
  assert set(kept) == set(names)


@pytest.mark.parametrize("path", ["hf://", "hf://name", "hf://a/b/c", "hf://a/b@"])
def test_what_is_no_name_is_refused(asked, path):
  with pytest.raises(InputError, match=r"must read hf://org/name"):
    paths.load_model(path)
  assert not asked


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    (errors.RepositoryNotFoundError, "no such model or revision.*HF_TOKEN"),
    (errors.GatedRepoError, "no such model or revision.*HF_TOKEN"),
    (errors.RevisionNotFoundError, "no such model or revision"),
    (errors.LocalEntryNotFoundError, "cannot be downloaded.*HF_HOME"),
    (errors.HfHubHTTPError, "cannot be downloaded.*give the folder"),
    (ConnectionError, "cannot be downloaded.*give the folder"),
  ],
)
def test_failures_say_what_to_do(monkeypatch, kind, message):
  def fail(*_, **__):
    error = kind.__new__(kind)
    error.args = ("it failed\nand more",)
    raise error

  monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fail)
  with pytest.raises(InputError, match=message) as caught:
    paths.local_path("hf://org/name")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "settings", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_without_a_network_it_fails_at_once(tmp_path, settings):
  """The library itself, against a closed port, and told to be offline."""
  code = """
import time
from r1jax.errors import InputError
from r1jax.weights import paths
began = time.monotonic()
try:
  paths.load_model("hf://org/name")
except InputError as e:
  print(time.monotonic() - began, e)
"""
  out = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "HF_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", **settings},
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  ).stdout
  seconds, _, said = out.partition(" ")
  assert float(seconds) < 10
  assert "hf download org/name --local-dir FOLDER" in said
