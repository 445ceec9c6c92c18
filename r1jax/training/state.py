"""The training state: born sharded, described before it exists."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import optim, prng, trees
from r1jax.models import parameters
from r1jax.sharding import Partition
from r1jax.types import TrainState


def state_shardings(
  specs: dict, optimizer: optax.GradientTransformation, partition: Partition, dtype
) -> TrainState:
  """Shardings of a TrainState: optimizer moments lie where their parameters lie.

  A factored moment, whose shape is its parameter's with 1 for some axes, is split along
  the others as its parameter is. Those of an `Offloaded` lie in the host's memory.

  Args:
    specs: nested dict of ParamSpec of what is trained.
  """
  params = partition.of_specs(specs)
  replicated = NamedSharding(partition.mesh, PartitionSpec())
  shapes = parameters.abstract(specs, dtype, params)
  by_path = trees.flatten(shapes)
  abstract = jax.eval_shape(optimizer.init, shapes)

  def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    keys = [
      str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)
    ]
    # A moment's dict keys end with its parameter's path; its shape must agree too.
    for start in range(len(keys)):
      found = by_path.get("/".join(keys[start:]))
      if found is None or leaf.ndim != len(found.shape):
        continue
      pairs = list(zip(leaf.shape, found.shape, strict=True))
      if all(own in (whole, 1) for own, whole in pairs):
        parts = zip(pairs, found.sharding.spec, strict=True)
        kept = [part if own == whole else None for (own, whole), part in parts]
        return NamedSharding(partition.mesh, PartitionSpec(*kept))
    return replicated

  def place_in_memory(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    at = place(path, leaf)
    is_offloaded = isinstance(optimizer, optim.Offloaded) and leaf.ndim
    return at.with_memory_kind(optim.HOST_MEMORY) if is_offloaded else at

  return TrainState(
    step=replicated,
    params=params,
    opt_state=jax.tree_util.tree_map_with_path(place_in_memory, abstract),
  )


def abstract_state(
  specs: dict, optimizer: optax.GradientTransformation, partition: Partition, dtype
) -> TrainState:
  """ShapeDtypeStructs with shardings: what a checkpoint is restored into."""
  shapes = jax.eval_shape(
    lambda params: new_state(params, optimizer), parameters.abstract(specs, dtype)
  )
  shardings = state_shardings(specs, optimizer, partition, dtype)
  return jax.tree.map(
    lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
    shapes,
    shardings,
  )


def new_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  return TrainState(jnp.asarray(0, jnp.int32), params, optimizer.init(params))


def state_of(
  params: Any,
  specs: dict,
  optimizer: optax.GradientTransformation,
  partition: Partition,
) -> TrainState:
  """A fresh state around parameters that are already on their devices."""
  dtype = jax.tree.leaves(params)[0].dtype
  shardings = state_shardings(specs, optimizer, partition, dtype)
  make = jax.jit(optimizer.init, out_shardings=shardings.opt_state)
  step = jax.device_put(jnp.asarray(0, jnp.int32), shardings.step)
  return TrainState(step, params, make(params))


def init_params(specs: dict, key: jax.Array, partition: Partition, dtype) -> Any:
  """Fresh parameters, each device making its own slices."""
  shardings = partition.of_specs(specs)
  make = jax.jit(
    lambda key: parameters.draw(specs, key, dtype), out_shardings=shardings
  )
  return make(prng.at(key, "init"))
