"""What one process with eight devices sees, shared by the tests of this folder."""

import pytest

from tests.multidevice import launch


@pytest.fixture(scope="session", name="eight")
def _eight(tmp_path_factory):
  """{mesh: {quantity: array}} of one process with eight devices."""
  return run(launch.MESHES, tmp_path_factory.mktemp("eight"))


@pytest.fixture(scope="session", name="family")
def _family(tmp_path_factory):
  """The same, of every architecture."""
  return run(launch.FAMILY, tmp_path_factory.mktemp("family"))


def run(meshes, folder):
  out = folder / "out.npz"
  launch.finish([launch.start(out, meshes, devices=8)], limit_s=900)
  return {name: launch.load(out, name) for name in meshes}
