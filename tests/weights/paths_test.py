"""Which reader a path goes to, and what is said where there is none."""

import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.weights import hf, paths
from tests import tiny

C = tiny.config(depth=1)


def test_a_folder_with_config_json(tmp_path):
  params = tiny.params(C)
  hf.save_hf(tmp_path, C, params)
  c, got = paths.load_model(str(tmp_path))
  assert c == paths.read_config(tmp_path) == C
  np.testing.assert_array_equal(np.asarray(got["embed"]), np.asarray(params["embed"]))


@pytest.mark.parametrize("name", ["m.gguf", "."])
def test_a_gguf_file_or_the_only_one_in_a_folder(tmp_path, name):
  (tmp_path / "m.gguf").write_text("")
  with pytest.raises(InputError, match=r"m.gguf: not a GGUF file"):
    paths.load_model(tmp_path / name)


@pytest.mark.parametrize("path", ["models/absent.gguf", ""])
def test_a_missing_model_says_how_to_get_one(path):
  with pytest.raises(InputError, match=r"hf://org/name.*launch/fetch_smollm2\.sh"):
    paths.load_model(path)


def test_paths_that_are_not_models(tmp_path):
  with pytest.raises(InputError, match=r"no config.json and no .gguf"):
    paths.load_model(tmp_path)
  for name in ("a.gguf", "b.gguf"):
    (tmp_path / name).write_text("")
  with pytest.raises(InputError, match=r"a.gguf, b.gguf"):
    paths.read_config(tmp_path)
  (tmp_path / "c.bin").write_text("")
  with pytest.raises(InputError, match="is not a model"):
    paths.load_model(tmp_path / "c.bin")
