"""One device and eight: the same loss, gradient, parameters and tokens."""

import numpy as np
import pytest

from tests import tiny
from tests.multidevice.launch import MESHES

pytestmark = pytest.mark.multidevice

SPLIT = [name for name in MESHES if name != "one"]
ROLLOUTS = [name for name in SPLIT if "rollout" in MESHES[name][1]]


@pytest.mark.parametrize("mesh", SPLIT)
def test_loss_and_gradient_are_those_of_one_device(eight, mesh):
  """R5: any mesh; shardings of the new state are checked where it is made."""
  want, got = eight["one"], eight[mesh]
  metrics = [key for key in want if key.startswith("metric/")]
  assert "metric/loss/policy" in metrics and "metric/optim/grad_norm" in metrics
  for key in metrics:
    np.testing.assert_allclose(got[key], want[key], rtol=2e-5, err_msg=key)
  gradients = [key for key in want if key.startswith("gradient/")]
  assert len(gradients) == 11
  for key in gradients:
    largest = np.abs(want[key]).max()
    assert largest > 1e-3
    np.testing.assert_allclose(got[key], want[key], atol=1e-5 * largest, err_msg=key)


@pytest.mark.parametrize("mesh", SPLIT)
def test_the_checksum_does_not_depend_on_the_sharding(eight, mesh):
  """R2."""
  assert eight[mesh]["checksum"] == eight["one"]["checksum"]


@pytest.mark.parametrize("mesh", SPLIT)
def test_the_work_is_split(eight, mesh):
  """R11: no device does the layers or the vocabulary's product for all of them."""
  share = eight[mesh]["flops"] / eight["one"]["flops"]
  assert share < 0.25, share


@pytest.mark.parametrize("mesh", SPLIT)
def test_weights_are_gathered_and_activations_are_not(eight, mesh):
  """R11: the largest array gathered is a matrix of the model; the states of all rows
  are larger, even a quarter of their width."""
  assert eight[mesh]["gathered"] <= 32 * 24 < 8 * 30 * 4
  assert (eight[mesh]["gathered"] > 0) == (mesh != "data")


@pytest.mark.parametrize("mesh", ROLLOUTS)
def test_sampling_is_that_of_one_device_token_for_token(eight, mesh):
  """R21: other devices, and in one case another number of slots."""
  want, got = eight["one"], eight[mesh]
  np.testing.assert_array_equal(got["rollout/length"], want["rollout/length"])
  np.testing.assert_array_equal(got["rollout/tokens"], want["rollout/tokens"])
  np.testing.assert_allclose(got["rollout/logp"], want["rollout/logp"], atol=2e-5)
  assert got["rollout/checksum"] == want["rollout/checksum"] == want["checksum"]
  assert len(set(want["rollout/length"])) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.FAMILY)
def test_every_architecture_is_that_of_one_device(family, name):
  """R5: fsdp, tp and experts over ep, in loss and gradient."""
  want, got = family["one"], family["experts"]
  keys = [key for key in want if key.startswith(f"family/{name}/")]
  assert len(keys) > 11
  for key in keys:
    largest = np.abs(want[key]).max()
    assert largest > 0 or key.endswith("/bias")
    np.testing.assert_allclose(got[key], want[key], atol=2e-5 * largest, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, c in tiny.FAMILY.items() if c.experts])
def test_experts_and_latents_are_sampled_from_as_on_one_device(family, name):
  """R21: token for token, 6 slots over 4 devices."""
  want, got = family["one"], family["experts"]
  own = f"family_{name}_rollout"
  np.testing.assert_array_equal(got[f"{own}/tokens"], want[f"{own}/tokens"])
  np.testing.assert_allclose(got[f"{own}/logp"], want[f"{own}/logp"], atol=5e-5)
  assert len(set(want[f"{own}/length"])) > 2


def test_no_token_is_lost_when_all_go_to_the_same_experts(eight):
  """R5: eight times an even load on one device."""
  want, got = eight["one"], eight["ep"]
  keys = [key for key in want if key.startswith("uneven/")]
  assert len(keys) > 5 and np.abs(want["uneven/out"]).max(axis=-1).min() > 0
  for key in keys:
    largest = np.abs(want[key]).max()
    np.testing.assert_allclose(got[key], want[key], atol=1e-5 * largest, err_msg=key)


def test_fresh_parameters_are_those_of_one_device(eight):
  """R10: each device draws its own slices of the same arrays."""
  fresh = [key for key in eight["one"] if key.startswith("fresh/")]
  assert len(fresh) == 11
  for key in fresh:
    np.testing.assert_array_equal(eight["all"][key], eight["one"][key])
