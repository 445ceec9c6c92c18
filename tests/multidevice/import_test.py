"""Import onto eight devices, in one process and in two: each reads what it holds.

Started as a program, with FOLDER MESH OUT [PROCESS PORT], it loads a folder and writes
what it got.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import sharding, trees
from r1jax.models import parameters
from r1jax.models.config import Experts
from r1jax.sharding import TRAIN_RULES, Partition
from r1jax.weights import assemble, hf, hf_config, tensor_files
from tests import tiny

pytestmark = pytest.mark.multidevice

ROOT = pathlib.Path(__file__).parents[2]
C = tiny.config(
  vocab=40, tied_head=False, qk_norm=True, experts=Experts(count=8, per_token=2, ffw=6)
)
MESHES = {"fsdp": {"fsdp": 8}, "tp": {"tp": 2, "fsdp": 4}, "ep": {"ep": 4, "data": 2}}


def main(folder, mesh, out, process="0", port=None):
  if port is not None:
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
  numbers, lock, read = [], threading.Lock(), tensor_files.TensorFiles.read

  def reading(self, name, index):
    part = read(self, name, index)
    with lock:
      numbers.append(part.size)
    return part

  tensor_files.TensorFiles.read = reading
  assemble.BLOCK_SIZE = 100
  partition = Partition(sharding.make_mesh(json.loads(mesh)), TRAIN_RULES)
  specs = parameters.param_specs(hf_config.read_config(folder))
  shardings = partition.of_specs(specs)
  _, params = hf.load_hf(folder, shardings=shardings)
  jax.tree.map(lambda x, at: np.testing.assert_(x.sharding == at), params, shardings)
  whole = NamedSharding(partition.mesh, PartitionSpec())
  fetched = jax.jit(lambda tree: tree, out_shardings=whole)(params)
  found = {path: np.asarray(leaf) for path, leaf in trees.flatten(fetched).items()}
  np.savez(out, num_read=sum(numbers), **found)


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  hf.save_hf(folder, C, tiny.params(C))
  return folder


def loaded(folder, mesh, outs, devices):
  """What each process got, {path: array}."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  environment = os.environ | {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  }
  started = []
  for process, out in enumerate(outs):
    words = [folder, json.dumps(mesh), out, *([process, port] if outs[1:] else [])]
    started.append(
      subprocess.Popen(
        [sys.executable, "-m", "tests.multidevice.import_test", *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  try:
    said = [process.communicate(timeout=240)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  for process, text in zip(started, said, strict=True):
    assert process.returncode == 0, text[-3000:]
  return [dict(np.load(out)) for out in outs]


def assert_whole(got):
  want = trees.flatten(tiny.params(C))
  assert got.keys() - {"num_read"} == want.keys()
  for path, array in want.items():
    np.testing.assert_array_equal(got[path], np.asarray(array), path)


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_hold_what_one_does(folder, tmp_path, name):
  (got,) = loaded(folder, MESHES[name], [tmp_path / "one.npz"], devices=8)
  assert_whole(got)
  # What several devices hold is read once for all of them.
  assert got["num_read"] == parameters.num_params(C)


def test_a_process_reads_what_its_devices_hold(folder, tmp_path):
  """R18: here each holds half of the experts and of every split matrix."""
  outs = [tmp_path / f"{process}.npz" for process in range(2)]
  for got in loaded(folder, {"ep": 8}, outs, devices=4):
    assert_whole(got)
    shared = sum(
      leaf.size
      for path, leaf in trees.flatten(tiny.params(C)).items()
      if "norm" in path
    )
    assert got["num_read"] == (parameters.num_params(C) - shared) / 2 + shared


if __name__ == "__main__":
  main(*sys.argv[1:])
