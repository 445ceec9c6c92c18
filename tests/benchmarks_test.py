"""The benchmark command counts what it says, and its limit holds what it says."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import sharding
from tests import tiny
from tests.benchmarks import limits, run

Q, G, P, T = 2, 3, 6, 4
SIZES = {
  "cpu_devices": 0,  # this process has made its devices
  "zero.rollout.prompts": Q,
  "zero.rollout.group_size": G,
  "zero.rollout.prompt_length": P,
  "zero.rollout.max_tokens": T,
  "zero.rollout.slots": 4,
  "zero.training.rows": 2,
  "zero.training.row_length": P + T + 3,
  "zero.training.minibatches": 2,
}
SET = [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(name="quick")
def _quick(monkeypatch):
  """Programs this small compile for far longer than they run."""
  before = jax.config.values["jax_disable_most_optimizations"]
  monkeypatch.setattr(limits, "SHORTEST_S", 0.005)
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
  ("name", "tokens"),
  [
    ("rollout", Q * G * T),
    ("score", Q * G * (P + T) / 2),  # two mini-batches
    ("update", Q * G * (P + T) / 2),
  ],
)
def test_fields_and_counts(name, tokens, tmp_path, capsys):
  argv = [name, "--model", "quickstart", "--repeats", "2", *SET]
  assert run.main([*argv, "--json", str(tmp_path)]) == 0
  (path,) = tmp_path.iterdir()
  assert path.name == f"{name}-quickstart-cpu.json"
  got = json.loads(path.read_text(encoding="utf-8"))
  assert f"{name}, quickstart, float32" in capsys.readouterr().out
  assert got["name"] == name
  assert got["command"].startswith(f"python tests/benchmarks/run.py {name} --model")
  assert got["versions"]["jax"] == jax.__version__
  assert "jax devices" in got["device"]
  assert got["settings"]["weights"].startswith("random")
  assert got["settings"]["rollout"]["prompts"] == Q
  assert len(got["seconds"]) == 2
  assert got["median_s"] == pytest.approx(np.mean(got["seconds"]))
  assert got["tokens"] == tokens
  assert got["tokens_per_s"] == pytest.approx(tokens / got["median_s"])
  assert 0 < got["tokens_per_s"] < got["limit_tokens_per_s"]
  ratio = got["tokens_per_s"] / got["limit_tokens_per_s"]
  assert got["fraction_of_limit"] == pytest.approx(ratio)
  assert 0.05 < got["peak_rss_gib"] < 100


def test_all_runs_each_in_a_process_of_its_own(monkeypatch):
  commands = []

  def started(command, **_):
    commands.append(command[2:])
    return run.subprocess.CompletedProcess(command, returncode=len(commands) == 2)

  monkeypatch.setattr(run.subprocess, "run", started)
  assert run.main(["all", "--repeats", "1"]) == 1
  names = ["rollout", "score", "update"]
  assert commands == [[name, "--repeats", "1"] for name in names]


def test_an_unknown_setting_is_named(capsys):
  argv = ["score", "--model", "quickstart", "--set", "zero.rollout.promts=2"]
  assert run.main(argv) == 2
  assert "promts" in capsys.readouterr().err


@pytest.mark.parametrize("backward", [False, True])
def test_no_product_is_left_out(backward):
  """The compiler sees that the results are not read, and computes them all the same."""
  rows, sizes, num_matrices = 8, (16, 24), 5
  program = limits.products(sharding.single_device(), backward=backward)
  weights = [jnp.ones(sizes)] * num_matrices
  sides = [jnp.ones((rows, size)) for size in sizes]
  compiled = program.lower(1, *sides, weights).compile()
  num_kinds = 3 if backward else 1
  assert compiled.as_text().count(" dot(") == num_matrices * num_kinds
  # The first numbers of x @ w, y @ w.T and x.T @ y; two passes over the matrices.
  want = 2 * num_matrices * sum([sizes[0], sizes[1], rows][:num_kinds])
  assert compiled(2, *sides, weights) == want


@pytest.mark.parametrize("num_matrices", [1, 2])
def test_every_pass_computes(num_matrices):
  program = limits.products(sharding.single_device(), backward=False)
  arrays = jnp.ones((256, 512)), jnp.ones((256, 512)), [jnp.ones((512, 512))]

  def seconds(passes):
    began = time.perf_counter()
    program(passes, *arrays[:2], arrays[2] * num_matrices).block_until_ready()
    return time.perf_counter() - began

  seconds(1)
  assert min(seconds(40) for _ in range(3)) > 4 * min(seconds(2) for _ in range(5))


def test_bytes_of_a_decode_step():
  c = tiny.config(depth=1, width=8, heads=2, kv_heads=1, head_dim=4, ffw=4, vocab=16)
  matrices = 8 * (8 + 4 + 4 + 8) + 3 * 8 * 4 + 16 * 8 + 3 * 8
  read = limits.decode_bytes(c, tiny.params(c), slots=6, samples=3, prompt=10, own=2.5)
  assert read == 4 * (matrices + 2 * 4 * (6 * 2.5 + 2 * 10))
