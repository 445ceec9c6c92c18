"""A fresh head says nothing; it computes in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import sharding
from r1jax.models import heads, parameters
from tests import tiny

C = tiny.config()


def test_a_fresh_head_is_zero_and_the_first_to_learn():
  head = parameters.draw(heads.head_specs(C), jax.random.key(0))
  assert {path: leaf.shape for path, leaf in head.items()} == {
    "weight": (C.width,),
    "bias": (1,),
  }
  hidden_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, C.width)))
  assert not np.asarray(heads.scalars(head, hidden_BLD)).any()

  def total(head, hidden_BLD):
    return heads.scalars(head, hidden_BLD).sum()

  of_head, of_states = jax.grad(total, argnums=(0, 1))(head, hidden_BLD)
  np.testing.assert_allclose(of_head["weight"], hidden_BLD.sum((0, 1)), rtol=1e-6)
  assert of_head["bias"] == 6
  assert not np.asarray(of_states).any()


def test_a_number_is_a_float32_product_of_whatever_states():
  """A sum that bfloat16 would round away: 256 and sixteen times 2^-4."""
  width = 17
  head = {"weight": jnp.ones(width), "bias": jnp.asarray([0.5])}
  states_D = jnp.asarray([256.0] + [2.0**-4] * 16, jnp.bfloat16)
  scalar_BL = jax.jit(heads.scalars)(head, states_D[None, None])
  assert scalar_BL.dtype == jnp.float32
  assert scalar_BL.shape == (1, 1)
  assert float(scalar_BL[0, 0]) == 257.5


def test_a_head_is_split_like_the_width_of_the_decoder():
  partition = sharding.single_device()
  specs = heads.head_specs(C)
  assert specs["weight"].axes == parameters.param_specs(C)["embed"].axes[1:]
  assert partition.of_specs(specs).keys() == specs.keys()
