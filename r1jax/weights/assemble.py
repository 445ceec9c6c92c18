"""Between stored tensors, one a layer or an expert and [out, in], and ours, stacked
and [in, out].

Torch and GGUF files hold a linear map as [out, in] with heads folded into one axis. So
of each of our matrices it is enough to know how many axes are inputs, and for each
layer (and expert) of a parameter the stored tensor, or the part of one, that it is.

Nothing larger than a block is held on the host: threads read blocks from the stored
tensors, turn them and write them to the parameter where it lies, on its devices. A
process serves its own devices and reads no more than they hold. So its peak beyond the
parameters is a few blocks a thread, whatever the size of the model and its tensors.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from r1jax import trees
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.types import ParamSpec

BLOCK_SIZE = 1 << 21  # numbers in a block: 8 MiB in float32
_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Piece:
  """Where one layer (and expert) of a parameter lies in a store.

  Attributes:
    name: of the stored tensor.
    at: index into its leading axes, where it holds all experts.
    first_row: where the matrix begins in one that holds two, one below the other.
  """

  name: str
  at: tuple[int, ...] = ()
  first_row: int = 0


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a model lies in a store.

  Attributes:
    locate: (path, layer of its stack and expert, where it has them) -> Piece.
    orders: {path: for each entry of our last axis, which stored one it is}, where the
      two differ.
  """

  locate: Callable[[str, tuple[int, ...]], Piece]
  orders: Mapping[str, np.ndarray]


def _folds(path: str, ndim: int) -> tuple[range, range]:
  """Axes of a layer's array that make the rows of what is stored, and its columns."""
  if path == "embed":
    return range(1), range(1, 2)
  inputs = parameters.num_inputs(path)
  return range(inputs, ndim), range(inputs)


def stored_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape in a store of a layer's array."""
  folds = [axes for axes in _folds(path, len(shape)) if axes]
  return tuple(math.prod(shape[axis] for axis in axes) for axes in folds)


def to_stored(path: str, ours: np.ndarray, order: np.ndarray | None) -> np.ndarray:
  """A layer's array as it is stored, a view where that may be.

  Args:
    order: see `Layout`.
  """
  if order is not None:
    ours = ours[..., np.argsort(order)]
  rows, columns = _folds(path, ours.ndim)
  turned = ours.transpose(*rows, *columns)
  return turned.reshape(stored_shape(path, ours.shape))


def pieces(
  c: ModelConfig, layout: Layout
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], Piece]]:
  """(path, index, shape of the layer's array, piece) of all that makes a model."""
  for path, spec in trees.flatten(parameters.param_specs(c)).items():
    leading = parameters.num_stacked(spec)
    for index in itertools.product(*map(range, spec.shape[:leading])):
      yield path, index, spec.shape[leading:], layout.locate(path, index)


def stored_shapes(c: ModelConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
  """{stored name: shape} of all tensors that make a model."""
  shapes: dict[str, tuple[int, ...]] = {}
  for path, _, shape, piece in pieces(c, layout):
    rows, *columns = stored_shape(path, shape)
    here = (*(i + 1 for i in piece.at), piece.first_row + rows, *columns)
    shapes[piece.name] = tuple(map(max, shapes.get(piece.name, here), here))
  return shapes


def gather(
  c: ModelConfig,
  layout: Layout,
  *,
  found: Mapping[str, tuple[int, ...]],
  read: Callable[[str, tuple], np.ndarray],
  dtype: jax.typing.DTypeLike,
  shardings: Any = None,
  source: str,
) -> dict:
  """Parameters on their devices, from a store of tensors.

  Args:
    found: {stored name: shape}, everything that the store has.
    read: (stored name, a number or slice for each of its axes) -> that part of it; it
      is called by several threads.
    dtype: of the parameters; what is read is rounded to it.
    shardings: a tree of them; None is the first local device.
    source: the path of the store, for errors.

  Raises:
    InputError: tensors that are missing, unknown or of another shape, all named,
      before any is read.
  """
  _check(stored_shapes(c, layout), found, source)
  specs = trees.flatten(parameters.param_specs(c))
  if shardings is None:
    placed = dict.fromkeys(specs, SingleDeviceSharding(jax.local_devices()[0]))
  else:
    placed = trees.flatten(shardings)
  shards = {
    path: [
      _Shard(path, spec, layout, bounds, devices, np.dtype(dtype))
      for bounds, devices in _parts(placed[path], spec.shape)
    ]
    for path, spec in specs.items()
  }
  jobs = [
    (shard, *block)
    for own in shards.values()
    for shard in own
    for block in shard.blocks()
  ]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for _ in pool.map(lambda job: job[0].fill(*job[1:], read), jobs):
      pass
  flat = {}
  for path, own in shards.items():
    arrays = [array for shard in own for array in shard.arrays]
    flat[path] = jax.make_array_from_single_device_arrays(
      specs[path].shape, placed[path], arrays
    )
  return trees.unflatten(flat)


def _check(
  wanted: Mapping[str, tuple[int, ...]],
  found: Mapping[str, tuple[int, ...]],
  source: str,
) -> None:
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


def _parts(
  sharding: Sharding, shape: tuple[int, ...]
) -> list[tuple[tuple[slice, ...], list[jax.Device]]]:
  """The parts of an array that devices of this process hold, and which hold them."""
  parts: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    bounds = tuple(
      part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
    )
    parts.setdefault(bounds, []).append(device)
  return [
    (tuple(slice(*pair) for pair in bounds), devices)
    for bounds, devices in parts.items()
  ]


class _Shard:
  """A part of a parameter, filled block by block.

  A small one is made on the host and then put on the devices that hold it; so is a
  large one where the device is a CPU, which takes the memory over. On other devices it
  has its place from the start, and a compiled program updates it there. (That program
  would not do on a CPU: to change a part of a bfloat16 array, XLA rewrites all of it.)
  """

  def __init__(
    self,
    path: str,
    spec: ParamSpec,
    layout: Layout,
    bounds: tuple[slice, ...],
    devices: list[jax.Device],
    dtype: np.dtype,
  ):
    leading = parameters.num_stacked(spec)
    self._path, self._layout = path, layout
    self._order = layout.orders.get(path)
    self._leading, inner = bounds[:leading], bounds[leading:]
    shape = [part.stop - part.start for part in bounds]
    self._shape = shape[leading:]
    self._rows, self._columns = _folds(path, len(inner))
    whole = spec.shape[leading:]
    self._stored = [
      _folded(axes, inner, whole, path) for axes in (self._rows, self._columns) if axes
    ]
    self._devices, self._lock = devices, threading.Lock()
    self._is_small = math.prod(shape) <= BLOCK_SIZE
    self._on_host = self._is_small or _shares_memory(devices[0])
    self._make = functools.partial(_aligned, shape, dtype)
    self._host: np.ndarray | None = None
    self._left = sum(1 for _ in self.blocks())
    self.arrays: list[jax.Array] = []  # on each of the devices, once all is written
    if not self._on_host:
      self.arrays = [jnp.zeros(shape, dtype, device=device) for device in devices]

  def blocks(self) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """(index into the leading axes of the parameter, rows of this part from, to)."""
    rows, *columns = (part.stop - part.start for part in self._stored)
    # Rows come in whole heads, and in the whole runs that are ordered anew.
    unit = math.prod(self._shape[axis] for axis in self._rows[1:])
    unit = max(unit, 1 if self._order is None else len(self._order))
    step = max(BLOCK_SIZE // (math.prod(columns) * unit), 1) * unit
    leading = [range(part.start, part.stop) for part in self._leading]
    for index in itertools.product(*leading):
      for first in range(0, rows, step):
        yield index, first, min(first + step, rows)

  def fill(
    self,
    index: tuple[int, ...],
    first: int,
    last: int,
    read: Callable[[str, tuple], np.ndarray],
  ) -> None:
    """Reads a block and writes it where it belongs."""
    piece = self._layout.locate(self._path, index)
    rows, *columns = self._stored
    start = piece.first_row + rows.start
    block = read(piece.name, (*piece.at, slice(start + first, start + last), *columns))
    if self._order is not None:
      runs = block.reshape(-1, len(self._order), *block.shape[1:])
      block = runs[:, self._order].reshape(block.shape)
    unit = math.prod(self._shape[axis] for axis in self._rows[1:])
    rows_shape = [(last - first) // unit, *(self._shape[i] for i in self._rows[1:])]
    columns_shape = [self._shape[i] for i in self._columns]
    block = block.reshape(*rows_shape, *columns_shape)
    # From (rows, columns) to the order of our axes.
    block = block.transpose(np.argsort([*self._rows, *self._columns]))
    at = [i - part.start for i, part in zip(index, self._leading, strict=True)]
    at += [first // unit if i == self._rows[0] else 0 for i in range(len(self._shape))]
    self._write(block, at, len(index))

  def _write(self, block: np.ndarray, at: list[int], leading: int) -> None:
    if not self._on_host:
      block = block.reshape((1,) * leading + block.shape)
      for place, device in enumerate(self._devices):
        there = jax.device_put(block, device).block_until_ready()
        with self._lock:
          self.arrays[place] = _updated(self.arrays[place], there, at)
      return
    with self._lock:
      if self._host is None:
        self._host = self._make()
    if not self._is_small:  # jax turns an array several times as fast as numpy
      block = np.asarray(jax.device_put(block, self._devices[0]))
    inner = zip(at[leading:], block.shape, strict=True)
    self._host[(*at[:leading], *(slice(i, i + size) for i, size in inner))] = block
    with self._lock:
      self._left -= 1
      if not self._left:
        self.arrays = [jax.device_put(self._host, device) for device in self._devices]
        self._host = None


def _folded(
  axes: range, bounds: tuple[slice, ...], whole: tuple[int, ...], path: str
) -> slice:
  """Bounds along the axis of a stored tensor that folds some of ours."""
  first, *rest = axes
  if any(bounds[axis] != slice(0, whole[axis]) for axis in rest):
    raise ValueError(f"{path}: a sharding may split heads, not what lies within one")
  width = math.prod(whole[axis] for axis in rest)
  return slice(bounds[first].start * width, bounds[first].stop * width)


def _shares_memory(device: jax.Device) -> bool:
  """Whether its arrays may lie in memory that numpy has made."""
  return device.platform == "cpu"


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
  """An array that jax takes over on a CPU, where it asks for 64 bytes, uncopied."""
  size = math.prod(shape) * dtype.itemsize
  room = np.empty(size + 63, np.uint8)
  start = -room.ctypes.data % 64
  return room[start : start + size].view(dtype).reshape(shape)


@functools.partial(jax.jit, donate_argnums=0)
def _updated(array: jax.Array, block: jax.Array, at: list[int]) -> jax.Array:
  return jax.lax.dynamic_update_slice(array, block.astype(array.dtype), at)
