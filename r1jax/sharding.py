"""The device mesh, and who holds which slice of an array.

An array names its axes logically ("embed", "heads", "batch"); a rules table says which
mesh axes each logical axis is split over. There are two tables: how weights are stored
and trained, and how the sampler holds them.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r1jax.errors import InputError, nearest
from r1jax.types import ParamSpec

MESH_AXES = ("data", "fsdp", "tp", "ep", "sp")

Rules = Mapping[str, tuple[str, ...]]

# Storage and training: batch over data, fsdp and ep, weights over fsdp and tp; experts
# over ep, which for all other weights is more of fsdp.
TRAIN_RULES: Rules = {
  "batch": ("data", "fsdp", "ep"),
  "vocab": ("tp",),
  "embed": ("fsdp", "ep"),
  "heads": ("tp",),
  "kv_heads": ("tp",),
  "ffw": ("tp",),
  "expert": ("ep",),
  "expert_embed": ("fsdp",),
}
# Sampling: the same batch, weights gathered over fsdp once per rollout.
SAMPLE_RULES: Rules = {**TRAIN_RULES, "embed": (), "expert_embed": ()}


def make_mesh(shape: Mapping[str, int]) -> Mesh:
  """The mesh over all devices of all processes.

  Args:
    shape: size of each named axis, 1 where absent; one axis may be -1 and takes the
      devices that are left.

  Raises:
    InputError: an unknown axis, or sizes that do not multiply to the device count.
  """
  for name in shape:
    if name not in MESH_AXES:
      raise InputError(
        f"mesh.{name} is not an axis{nearest(name, MESH_AXES)}; allowed: {MESH_AXES}"
      )
  sizes = [int(shape.get(name, 1)) for name in MESH_AXES]
  num_devices = jax.device_count()
  if sizes.count(-1) == 1:
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes[sizes.index(-1)] = max(num_devices // max(known, 1), 1)
  if min(sizes) < 1 or int(np.prod(sizes)) != num_devices:
    raise InputError(
      f"mesh {dict(zip(MESH_AXES, sizes, strict=True))} does not multiply to the "
      f"{num_devices} devices here; change config.mesh (-1 takes what is left)"
    )
  return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@dataclasses.dataclass(frozen=True)
class Partition:
  """A mesh with one rules table; without a mesh (`LOCAL`) nothing is split."""

  mesh: Mesh | None
  rules: Rules

  @property
  def _device(self) -> jax.Device:
    return jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]

  @property
  def platform(self) -> str:
    """What the devices are: "cpu", "gpu" or "tpu"."""
    return self._device.platform

  @property
  def has_flash_kernels(self) -> bool:
    """Whether cuDNN's and Triton's attention in 16 bits run here: NVIDIA, from Ampere
    (compute capability 8) on."""
    found = re.match(r"(\d+)\.", str(getattr(self._device, "compute_capability", "")))
    return self.platform == "gpu" and found is not None and int(found[1]) >= 8

  def pspec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
    """PartitionSpec of logical axes, over the mesh axes that have more than one device.

    Raises:
      ValueError: the rules would split two dimensions over one mesh axis.
    """
    parts = [self.rules.get(axis, ()) if axis is not None else () for axis in axes]
    used = [name for part in parts for name in part]
    if len(used) != len(set(used)):
      raise ValueError(f"axes {axes} would use a mesh axis twice: {parts}")
    sizes = self.mesh.shape
    split = [tuple(name for name in part if sizes[name] > 1) for part in parts]
    return PartitionSpec(*[part if part else None for part in split])

  def sharding(self, *axes: str | None) -> NamedSharding:
    return NamedSharding(self.mesh, self.pspec(axes))

  def constrain(self, array: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Pins an array of a compiled program to the mesh."""
    if self.mesh is None:
      return array
    return jax.lax.with_sharding_constraint(array, self.sharding(*axes))

  def fitting(
    self, shape: tuple[int, ...], axes: tuple[str | None, ...]
  ) -> NamedSharding:
    """`sharding` over those axes whose slices divide their dimension."""
    return self.sharding(*self._fitting(shape, axes))

  def constrain_fitting(
    self, array: jax.Array, axes: tuple[str | None, ...]
  ) -> jax.Array:
    """`constrain` of those axes whose slices divide their dimension."""
    return self.constrain(array, self._fitting(array.shape, axes))

  def _fitting(
    self, shape: tuple[int, ...], axes: tuple[str | None, ...]
  ) -> tuple[str | None, ...]:
    return tuple(
      axis if axis is not None and size % self.size(axis) == 0 else None
      for size, axis in zip(shape, axes, strict=True)
    )

  def size(self, axis: str) -> int:
    """Number of slices of a logical axis."""
    if self.mesh is None:
      return 1
    return int(np.prod([self.mesh.shape[name] for name in self.rules.get(axis, ())]))

  def of_specs(self, specs: Any) -> Any:
    """Shardings of a tree of ParamSpecs.

    Raises:
      InputError: a dimension that its mesh axes do not divide.
    """

    def one(spec: ParamSpec) -> NamedSharding:
      for size, axis in zip(spec.shape, spec.axes, strict=True):
        slices = self.size(axis) if axis is not None else 1
        if size % slices:
          raise InputError(
            f"{axis}={size} of the model does not split over {slices} devices "
            f"(mesh axes {self.rules[axis]}); change config.mesh"
          )
      return self.sharding(*spec.axes)

    return jax.tree.map(one, specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))


LOCAL = Partition(None, {})


def place(tree: Any, shardings: Any) -> Any:
  """Arrays on their devices from numpy arrays that every process holds whole.

  Args:
    shardings: one for all leaves, or a tree of them.
  """
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(
    lambda leaf, at: jax.make_array_from_callback(
      leaf.shape, at, lambda index: np.asarray(leaf[index])
    ),
    tree,
    shardings,
  )


def single_device() -> Partition:
  """The training rules on a mesh of one device (tests, notebooks)."""
  device = np.asarray(jax.devices()[:1]).reshape((1,) * len(MESH_AXES))
  axis_types = (AxisType.Auto,) * len(MESH_AXES)
  return Partition(Mesh(device, MESH_AXES, axis_types=axis_types), TRAIN_RULES)
