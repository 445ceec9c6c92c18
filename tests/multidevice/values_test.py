"""Values, scores and their gradient: one device and eight, heads split like widths."""

import functools
import sys

import jax
import numpy as np
import pytest

from r1jax import sharding, trees
from r1jax.models import heads, parameters
from r1jax.training.values import token_values
from tests import tiny
from tests.multidevice import launch, programs

pytestmark = [pytest.mark.multidevice, pytest.mark.slow]
MESHES = {"one": {}, "all": {"data": 2, "fsdp": 2, "tp": 2}, "fsdp": {"fsdp": 8}}


def program(sizes):
  """{path: gradient}, and the values and scores."""
  c = programs.C
  partition = programs.partition_of(sizes)
  specs = {"model": parameters.param_specs(c), "head": heads.head_specs(c)}
  shardings, rows_at = partition.of_specs(specs), partition.sharding("batch")
  weight = np.random.default_rng(1).normal(size=c.width).astype(np.float32)
  head = {"weight": weight, "bias": np.float32([0.3])}
  params = programs.place(shardings, {"model": tiny.params(c), "head": head})
  rows = sharding.place(tiny.experience(c).rows, rows_at)

  @functools.partial(
    jax.jit,
    in_shardings=(shardings, rows_at),
    out_shardings=(shardings, partition.sharding()),
  )
  @functools.partial(jax.grad, has_aux=True)
  def run(params, rows):
    found = token_values(c, params, rows, partition=partition)
    both = (found.values_BL, found.scores_BL)
    return sum((x_BL**2).sum() for x_BL in both), both

  gradient, (values_BL, scores_BL) = run(params, rows)
  flat = trees.flatten(programs.fetch(partition, gradient))
  return flat | {"values": np.asarray(values_BL), "scores": np.asarray(scores_BL)}


def test_eight_devices_are_one(tmp_path):
  out = tmp_path / "out.npz"
  launch.run("tests.multidevice.values_test", out, devices=8)
  want = launch.load(out, "one")
  assert np.abs(want["values"]).max() > 0.1
  for mesh in ("all", "fsdp"):
    got = launch.load(out, mesh)
    assert got.keys() == want.keys() > {"head/weight", "values", "scores"}
    for key, array in want.items():
      bound = 1e-5 * np.abs(array).max()
      np.testing.assert_allclose(got[key], array, atol=bound, err_msg=f"{mesh} {key}")


if __name__ == "__main__":
  found = {
    f"{name}/{key}": array
    for name, sizes in MESHES.items()
    for key, array in program(sizes).items()
  }
  np.savez(sys.argv[1], **found)
