"""The import benchmark measures what it says."""

import json

import jax
import numpy as np
import pytest

from r1jax.weights import hf_config
from tests.benchmarks import imports, run

SMALL = ("gb=0.02", "width=128", "file_gb=0.005")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fields(tmp_path, capsys, dtype):
  words = [f"--set={change}" for change in (*SMALL, f'dtype="{dtype}"')]
  argv = ["import", "--repeats", "2", *words]
  assert run.main([*argv, "--json", str(tmp_path)]) == 0
  (path,) = tmp_path.iterdir()
  assert path.name == "import-synthetic-cpu.json"
  got = json.loads(path.read_text(encoding="utf-8"))
  assert f"import, synthetic, {dtype}" in capsys.readouterr().out
  assert got["command"].startswith("python tests/benchmarks/run.py import --repeats")
  assert got["versions"]["jax"] == jax.__version__
  assert got["bytes"] == pytest.approx(2e7, rel=0.1)
  assert got["largest_tensor_bytes"] == 2 * 32 * 128 * 128
  assert len(got["seconds"]) == len(got["read_seconds"]) == 2
  assert got["median_s"] == pytest.approx(np.mean(got["seconds"]))
  ratio = np.mean(got["read_seconds"]) / np.mean(got["seconds"])
  assert got["rate_over_reading"] == pytest.approx(ratio)
  over = got["peak_beyond_params_bytes"] / got["largest_tensor_bytes"]
  assert got["peak_over_largest_tensor"] == pytest.approx(over)


def test_the_folder_is_of_about_the_size_asked_for(tmp_path):
  c = imports.shape_of(128, 0.02)
  sizes = imports.write_folder(tmp_path, c, 5e6)
  files = list(tmp_path.glob("*.safetensors"))
  assert len(files) > 3
  assert sum(sizes) <= sum(path.stat().st_size for path in files) < 1.1 * sum(sizes)
  assert hf_config.read_config(tmp_path) == c


def test_the_peak_is_what_was_held_beyond_the_start():
  with imports.sampled_peak() as peak:
    held = np.ones(5_000_000)
    for _ in range(50):
      held += 1  # the sampler gets its turns
  assert 35e6 < peak[0] < 80e6


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("gbs=1", "no such setting (did you mean 'gb'"),
    ("gb=x", "the value is JSON"),
    ('dtype="int8"', "allowed: bfloat16, float32"),
  ],
)
def test_an_unknown_setting_is_named(capsys, change, message):
  assert run.main(["import", "--set", change]) == 2
  assert message in capsys.readouterr().err
