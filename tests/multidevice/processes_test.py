"""Two processes under jax.distributed and one: the same loss and gradient."""

import socket

import numpy as np
import pytest

from tests.multidevice.launch import MESHES, finish, load, start

pytestmark = pytest.mark.multidevice

# Batch and weights are split over the processes, heads inside of one.
MESH = "tp"
USED = {MESH: (MESHES[MESH][0], {"rollout": 8})}


def free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


@pytest.fixture(scope="module", name="pair")
def _pair(tmp_path_factory):
  """{quantity: array} of each of two processes with four devices."""
  folder, port = tmp_path_factory.mktemp("pair"), free_port()
  outs = [folder / f"{process}.npz" for process in range(2)]
  finish(
    [
      start(out, USED, devices=4, arguments=(process, 2, port))
      for process, out in enumerate(outs)
    ]
  )
  return [load(out, MESH) for out in outs]


def test_two_processes_are_one(eight, pair):
  """R18, R5: each process gives its own half of the rows."""
  want = eight[MESH]
  sums = [key for key in want if key.split("/")[0] in ("gradient", "metric")]
  assert len(sums) > 11
  for got in pair:
    assert got["checksum"] == want["checksum"]
    for key in sums:
      np.testing.assert_allclose(
        got[key], want[key], rtol=1e-5, atol=1e-6 * np.abs(want[key]).max(), err_msg=key
      )


def test_processes_agree_bit_for_bit(pair):
  """R18: or their weights would drift apart."""
  for key, value in pair[0].items():
    np.testing.assert_array_equal(pair[1][key], value, err_msg=key)


def test_two_processes_sample_what_one_samples(eight, pair):
  """R21."""
  want, got = eight["one"], pair[0]
  np.testing.assert_array_equal(got["rollout/tokens"], want["rollout/tokens"])
  np.testing.assert_allclose(got["rollout/logp"], want["rollout/logp"], atol=2e-5)
