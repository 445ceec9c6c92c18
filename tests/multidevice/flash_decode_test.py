"""The kernel for GPUs on four devices: each has its slots, prompts and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import sharding
from r1jax.models import flash_decode
from r1jax.models.cache import BLOCK
from r1jax.sharding import LOCAL, SAMPLE_RULES, Partition
from tests.multidevice import launch

pytestmark = [pytest.mark.multidevice, pytest.mark.slow]
MESH = {"data": 2, "tp": 2}
Q, G, K, R, H = 4, 2, 2, 3, 64
W = P = BLOCK


def run(partition: Partition):
  """Of slots in the order of their prompts."""
  rng = np.random.default_rng(0)
  slots = Q * G

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

  new = normal(slots, K, R, H), normal(slots, K, H), normal(slots, K, H)
  held = normal(slots, K, H, W), normal(slots, K, W, H)
  held += normal(Q, K, H, P), normal(Q, K, P, H)
  # Prompts are numbered on their own device.
  prompt_S = jnp.arange(slots) // G % (Q // partition.size("batch"))
  length_S = jnp.asarray([3, 70, 0, W - 1] * G)

  def attend(new, held):
    return flash_decode.attend(
      *(*new, held, prompt_S, jnp.full((slots,), P - 7), length_S, jnp.asarray(5)),
      scale=0.1,
      partition=partition,
      interpret=True,
    )

  return [np.asarray(x, np.float32) for x in jax.jit(attend)(new, held)]


def test_four_devices_are_one():
  launch.run("tests.multidevice.flash_decode_test", devices=4)


if __name__ == "__main__":
  on_four = run(Partition(sharding.make_mesh(MESH), SAMPLE_RULES))
  for got, want in zip(on_four, run(LOCAL), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-2)
