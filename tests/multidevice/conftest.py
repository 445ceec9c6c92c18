"""What one process with eight devices sees, shared by the tests of this folder."""

import pytest

from tests.multidevice import launch


@pytest.fixture(scope="session", name="eight")
def _eight(tmp_path_factory):
  """{mesh: {quantity: array}} of one process with eight devices."""
  out = tmp_path_factory.mktemp("eight") / "out.npz"
  launch.finish([launch.start(out, launch.MESHES, devices=8)])
  return {name: launch.load(out, name) for name in launch.MESHES}
