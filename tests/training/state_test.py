"""A training state is described before it exists, and born where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from r1jax import prng, sharding, trees
from r1jax.models import parameters
from r1jax.models.presets import PRESETS
from r1jax.optim import make_optimizer
from r1jax.sharding import MESH_AXES, TRAIN_RULES, Partition
from r1jax.training import state
from tests import tiny

C = tiny.config(vocab=32)
SPECS = parameters.param_specs(C)
SPLIT = Partition(AbstractMesh((1, 2, 2, 1, 1), MESH_AXES), TRAIN_RULES)


def leaves_by_place(tree):
  """[(path, leaf)], a path being the dict keys of a leaf joined by "/"."""
  found, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [
    ("/".join(entry.key for entry in path if hasattr(entry, "key")), leaf)
    for path, leaf in found
  ]


def test_adam_moments_lie_where_their_parameters_lie():
  optimizer, _ = make_optimizer(learning_rate=1e-3)
  got = state.state_shardings(SPECS, optimizer, SPLIT, jnp.float32)
  params = trees.flatten(got.params)
  moments = [leaf for leaf in leaves_by_place(got.opt_state) if leaf[0] in params]
  assert len(moments) == 2 * len(params)
  for path, leaf in moments:
    assert leaf == params[path], path
  assert params["layers/attn/q"].spec == P(None, "fsdp", "tp", None)
  assert got.step.spec == P()


def test_factored_moments_are_whole():
  """Adafactor's rows and columns have paths of parameters but not their shapes."""
  optimizer = optax.adafactor(1e-3, min_dim_size_to_factor=8)
  shardings = state.state_shardings(SPECS, optimizer, SPLIT, jnp.float32)
  shapes = jax.eval_shape(optimizer.init, parameters.abstract_params(C, jnp.float32))
  params = {
    leaf.shape: path
    for path, leaf in trees.flatten(parameters.abstract_params(C, jnp.float32)).items()
  }
  factored = 0
  for (path, at), (_, leaf) in zip(
    leaves_by_place(shardings.opt_state), leaves_by_place(shapes), strict=True
  ):
    assert len(at.spec) <= len(leaf.shape), path
    if leaf.shape not in params:
      assert at.spec == P()
      factored += len(leaf.shape) > 1
  assert factored


def test_abstract_state_is_the_state_to_be():
  optimizer, _ = make_optimizer(learning_rate=1e-3)
  one = sharding.single_device()
  abstract = state.abstract_state(SPECS, optimizer, one, jnp.float32)
  real = state.state_of(tiny.params(C), SPECS, optimizer, one)
  assert jax.tree.structure(abstract) == jax.tree.structure(real)
  jax.tree.map(
    lambda a, r: (
      np.testing.assert_equal((a.shape, a.dtype), (r.shape, r.dtype)),
      np.testing.assert_(a.sharding.is_equivalent_to(r.sharding, r.ndim)),
    ),
    abstract,
    real,
  )
  assert int(real.step) == 0
  assert real.params is not None and real.params["embed"] is tiny.params(C)["embed"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_abstract_states_of_large_models_keep_the_dtype(dtype):
  optimizer, _ = make_optimizer(learning_rate=1e-3)
  specs = parameters.param_specs(PRESETS["smollm2-135m"])
  abstract = state.abstract_state(specs, optimizer, sharding.single_device(), dtype)
  assert trees.count(abstract.params) == 134_515_008
  assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(abstract.params))


def test_fresh_parameters_are_a_function_of_the_seed():
  """R10: the key is derived by purpose, so nothing else that is drawn shifts them."""
  key = jax.random.key(1, impl="unsafe_rbg")  # compiles faster
  one = sharding.single_device()
  got = state.init_params(SPECS, key, one, jnp.float32)
  want = jax.jit(parameters.init, static_argnums=0)(C, prng.at(key, "init"))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  shardings = one.of_specs(SPECS)
  jax.tree.map(
    lambda leaf, at: np.testing.assert_(leaf.sharding.is_equivalent_to(at, leaf.ndim)),
    got,
    shardings,
  )
