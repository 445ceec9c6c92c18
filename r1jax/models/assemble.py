"""Between stored tensors, one a layer and [out, in], and ours, stacked and [in, out].

Letters: Z depth, D width, N query heads, K kv heads, H head width, F ffw width,
V vocabulary.

Torch and GGUF files hold a linear map as [out, in] with heads folded into one axis. Of
each of our matrices it is therefore enough to know how many leading axes are inputs.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import trees
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.models.config import ModelConfig

Put = Callable[[str, np.ndarray], jax.Array]

# Leading input axes of one layer's matrix; what is not here is stored as we hold it.
_INPUT_AXES = {
  "layers/attn/q": 1,
  "layers/attn/k": 1,
  "layers/attn/v": 1,
  "layers/attn/o": 2,
  "layers/mlp/gate": 1,
  "layers/mlp/up": 1,
  "layers/mlp/down": 1,
  "head": 1,
}


def put_default(path: str, array: np.ndarray) -> jax.Array:
  """Onto the default device, whole."""
  del path
  return jnp.asarray(array)


def stored_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape in a file of what we hold as `shape`, without the layer axis."""
  inputs = _INPUT_AXES.get(path, 0)
  if not inputs:
    return shape
  return math.prod(shape[inputs:]), math.prod(shape[:inputs])


def from_stored(path: str, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  return stored.T.reshape(shape) if path in _INPUT_AXES else stored


def to_stored(path: str, ours: np.ndarray) -> np.ndarray:
  if path not in _INPUT_AXES:
    return ours
  out_size, in_size = stored_shape(path, ours.shape)
  return np.ascontiguousarray(ours.reshape(in_size, out_size).T)


def slices(
  c: ModelConfig, names: Mapping[str, str]
) -> dict[str, list[tuple[str, int | None, tuple[int, ...]]]]:
  """{path: [(stored name, layer or None, shape without layer axis)]} of a model.

  Args:
    names: {path: stored name}, with "{z}" for the layer.
  """
  listed = {}
  for path, spec in trees.flatten(parameters.param_specs(c)).items():
    if path.startswith("layers/"):
      listed[path] = [
        (names[path].format(z=z), z, spec.shape[1:]) for z in range(c.depth)
      ]
    else:
      listed[path] = [(names[path], None, spec.shape)]
  return listed


def gather(
  c: ModelConfig,
  *,
  names: Mapping[str, str],
  found: Mapping[str, tuple[int, ...]],
  read: Callable[[str], np.ndarray],
  dtype: jax.typing.DTypeLike,
  put: Put,
  source: str,
) -> dict:
  """Parameters from a store of tensors; the host holds one stacked array at a time.

  Args:
    names: {path: stored name}, with "{z}" for the layer.
    found: {stored name: stored shape}, everything that the store has.
    read: stored name -> array of its stored shape.
    put: (path, stacked array) -> array on devices, as the caller wants it placed.
    source: the path of the store, for errors.

  Raises:
    InputError: tensors that are missing, unknown or of another shape, all named,
      before any is read.
  """
  listed = slices(c, names)
  wanted = {
    name: stored_shape(path, shape)
    for path, parts in listed.items()
    for name, _, shape in parts
  }
  faults = [f"missing {name}" for name in wanted if name not in found]
  faults += [f"unknown {name}" for name in found if name not in wanted]
  faults += [
    f"{name} is {tuple(found[name])}, the config says {shape}"
    for name, shape in wanted.items()
    if name in found and tuple(found[name]) != shape
  ]
  if faults:
    more = f", and {len(faults) - 8} more" if len(faults) > 8 else ""
    raise InputError(
      f"{source}: tensors do not fit the model: {'; '.join(faults[:8])}{more}"
    )
  params = {}
  for path, spec in trees.flatten(parameters.param_specs(c)).items():
    array = np.empty(spec.shape, np.dtype(dtype))
    for name, z, shape in listed[path]:
      array[... if z is None else z] = from_stored(path, read(name), shape)
    params[path] = put(path, array)
    del array  # before the next is made
  return trees.unflatten(params)
