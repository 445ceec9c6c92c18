"""A training state is described before it exists, and born where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from r1jax import prng, sharding, trees
from r1jax.checkpoints import Checkpoints
from r1jax.models import parameters
from r1jax.models.presets import PRESETS
from r1jax.optim import make_optimizer
from r1jax.sharding import MESH_AXES, TRAIN_RULES, Partition
from r1jax.stages.trainable import matrices
from r1jax.training import state, step
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


def test_factored_moments_are_split_as_far_as_they_go():
  """Rows lie where the inputs of their matrix lie, columns where the outputs do."""
  optimizer, _ = make_optimizer(
    matrices(SPECS), kind="adafactor", learning_rate=1e-3, b1=0.0
  )
  got = state.state_shardings(SPECS, optimizer, SPLIT, jnp.float32)
  by_path = {}
  for path, at in leaves_by_place(got.opt_state):
    by_path.setdefault(path, []).append(at.spec)
  assert by_path["layers/attn/q"] == [
    P(None, "fsdp", None, None),
    P(None, None, "tp", None),
  ]
  assert by_path["layers/attn/o"] == [
    P(None, "tp", None, None),
    P(None, None, None, "fsdp"),
  ]
  assert by_path["embed"] == [P("tp", None), P(None, "fsdp")]
  assert by_path["layers/attn_norm"] == [P(None, None)]


def test_moments_of_another_shape_are_whole():
  """optax's own factored moments have the paths of parameters alone."""
  optimizer = optax.adafactor(1e-3, min_dim_size_to_factor=8)
  got = state.state_shardings(SPECS, optimizer, SPLIT, jnp.float32)
  specs = [at.spec for path, at in leaves_by_place(got.opt_state) if path == "embed"]
  assert len(specs) == 3 and set(specs) == {P()}


def start_of(optimizer):
  """A state around copies of the parameters, and an update of it."""
  one = sharding.single_device()
  update = step.make_update(
    lambda params, frozen, scale: (scale * optax.tree.norm(params, squared=True), {}),
    optimizer,
    state.state_shardings(SPECS, optimizer, one, jnp.float32),
    one.sharding(),
  )
  params = jax.tree.map(jnp.copy, tiny.params(C))
  start = state.state_of(params, SPECS, optimizer, one)
  return start, lambda now: update(now, None, jnp.ones((1,)), 1, 1.0)[0]


def test_an_offloaded_state_lies_on_the_host_and_steps_alike():
  """Between updates; what it is computed with lies on the device."""
  ends = []
  for offload in (False, True):
    optimizer, _ = make_optimizer(learning_rate=1e-2, offload=offload)
    now, update = start_of(optimizer)
    for _ in range(2):
      now = update(now)
    moments = [leaf for leaf in jax.tree.leaves(now.opt_state) if leaf.ndim]
    kinds = {leaf.sharding.memory_kind for leaf in moments}
    assert kinds == {"pinned_host" if offload else "device"}
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(now.params)}
    assert kinds == {"device"}
    ends.append(now)
  jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(
  "settings",
  [
    {"kind": "adafactor", "moment_dtype": "bfloat16", "offload": True},
    {"kind": "muon", "moment_dtype": "bfloat16"},
  ],
  ids=str,
)
def test_a_state_of_another_kind_goes_on_bit_for_bit(settings, tmp_path):
  """R10: from a checkpoint, placed where it was."""
  optimizer, _ = make_optimizer(matrices(SPECS), learning_rate=1e-2, **settings)
  now, update = start_of(optimizer)
  now = update(now)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, now, {})
    abstract = state.abstract_state(
      SPECS, optimizer, sharding.single_device(), jnp.float32
    )
    again, _, _ = checkpoints.restore(abstract)
  jax.tree.map(
    lambda leaf, other: np.testing.assert_equal(
      leaf.sharding.memory_kind, other.sharding.memory_kind
    ),
    now,
    again,
  )
  jax.tree.map(np.testing.assert_array_equal, update(again), update(now))


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
