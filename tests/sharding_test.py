"""Who holds which slice, decided before any array exists."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from r1jax import sharding, trees
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.sharding import MESH_AXES, SAMPLE_RULES, TRAIN_RULES, Partition
from r1jax.types import ParamSpec
from tests import tiny


def partition(rules=TRAIN_RULES, **sizes):
  """Over devices that are not there."""
  shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
  return Partition(AbstractMesh(shape, MESH_AXES), rules)


def specs_of(rules=TRAIN_RULES, c=None, **sizes):
  specs = parameters.param_specs(c or tiny.config())
  shardings = partition(rules, **sizes).of_specs(specs)
  return {path: leaf.spec for path, leaf in trees.flatten(shardings).items()}


def test_every_axis_of_the_decoder_has_its_place():
  got = specs_of(c=tiny.config(vocab=32, tied_head=False), fsdp=2, tp=2)
  fsdp, tp = ("fsdp",), ("tp",)
  assert got == {
    "embed": P(tp, fsdp),
    "head": P(fsdp, tp),
    "final_norm": P(None),
    "layers/attn_norm": P(None, None),
    "layers/mlp_norm": P(None, None),
    "layers/attn/q": P(None, fsdp, tp, None),
    "layers/attn/k": P(None, fsdp, tp, None),
    "layers/attn/v": P(None, fsdp, tp, None),
    "layers/attn/o": P(None, tp, None, fsdp),
    "layers/mlp/gate": P(None, fsdp, tp),
    "layers/mlp/up": P(None, fsdp, tp),
    "layers/mlp/down": P(None, tp, fsdp),
  }


def test_experts_have_an_axis_that_is_more_of_fsdp_for_other_weights():
  got = specs_of(c=tiny.config(experts=tiny.QWEN_EXPERTS), fsdp=2, ep=2)
  assert got["layers/moe/experts/gate"] == P(None, ("ep",), ("fsdp",), None)
  assert got["layers/moe/experts/down"] == P(None, ("ep",), None, ("fsdp",))
  assert got["layers/moe/router"] == P(None, ("fsdp", "ep"), None)
  assert got["layers/attn/q"] == P(None, ("fsdp", "ep"), None, None)
  assert partition(fsdp=2, ep=2).size("batch") == 4


def test_the_sampler_gathers_over_fsdp_and_keeps_tp():
  stored = specs_of(c=tiny.config(vocab=32), fsdp=2, tp=2)
  held = specs_of(SAMPLE_RULES, c=tiny.config(vocab=32), fsdp=2, tp=2)
  for path, spec in held.items():
    without = [None if part == "fsdp" else part for part in stored[path]]
    assert spec == P(*without)
  batch = partition(SAMPLE_RULES, data=2, fsdp=2).pspec(("batch", None))
  assert batch == P(("data", "fsdp"), None)


def test_unnamed_and_unruled_axes_are_whole():
  assert partition(tp=2).pspec(("layer", None, "heads")) == P(None, None, ("tp",))
  assert partition(data=2, fsdp=4).size("batch") == 8
  assert partition(data=2, fsdp=4).size("layer") == 1


@pytest.mark.parametrize(
  "axes", [("heads", "ffw"), ("batch", "embed"), ("embed", "embed")]
)
def test_a_mesh_axis_is_refused_on_two_dimensions(axes):
  with pytest.raises(ValueError, match="would use a mesh axis twice"):
    partition().pspec(axes)
  with pytest.raises(ValueError, match="would use a mesh axis twice"):
    partition().of_specs({"w": ParamSpec((4, 4), axes)})


@pytest.mark.parametrize(
  ("sizes", "said"),
  [
    ({"tp": 4}, r"kv_heads=2 .*over 4 devices \(mesh axes \('tp',\)\).*config\.mesh"),
    ({"fsdp": 3}, r"embed=16 of the model does not split over 3 devices"),
    ({"tp": 2}, r"vocab=33 of the model does not split over 2 devices"),
  ],
)
def test_dimensions_that_do_not_split_are_refused(sizes, said):
  c = tiny.config() if "vocab" in said else tiny.config(vocab=32)
  with pytest.raises(InputError, match=said):
    specs_of(c=c, **sizes)


@pytest.mark.parametrize(
  ("shape", "said"),
  [
    ({"dta": 1}, r"mesh\.dta is not an axis \(did you mean 'data'\?\)"),
    ({"data": jax.device_count() + 1}, r"does not multiply to the \d+ devices here"),
    ({"data": 0}, "does not multiply"),
    ({"data": 0, "fsdp": -1}, "does not multiply"),
    ({"data": -2, "fsdp": -1}, "does not multiply"),
    ({"data": -1, "fsdp": -1}, "does not multiply"),
    ({"data": -1, "tp": jax.device_count() + 1}, "does not multiply"),
  ],
  ids=str,
)
def test_meshes_that_cannot_be_are_refused(shape, said):
  with pytest.raises(InputError, match=said):
    sharding.make_mesh(shape)


def test_one_axis_takes_the_devices_that_are_left():
  mesh = sharding.make_mesh({"fsdp": -1})
  assert mesh.axis_names == MESH_AXES
  assert mesh.shape["fsdp"] == jax.device_count() and mesh.size == jax.device_count()


def test_constraints_keep_values():
  x = jnp.arange(6.0).reshape(2, 3)
  placed = jax.jit(lambda x: sharding.single_device().constrain(x, ("batch", None)))(x)
  np.testing.assert_array_equal(placed, x)
  assert sharding.LOCAL.constrain(x, ("batch", None)) is x


@pytest.mark.parametrize(
  ("platform", "capability", "want"),
  [
    ("gpu", "9.0", True),
    ("gpu", "10.0", True),
    ("gpu", "8.0", True),
    ("gpu", "7.5", False),  # Turing
    ("gpu", "gfx942", False),  # AMD
    ("tpu", None, False),
    ("cpu", None, False),
  ],
)
def test_which_devices_have_flash_kernels(platform, capability, want, monkeypatch):
  device = types.SimpleNamespace(platform=platform)
  if capability is not None:
    device.compute_capability = capability
  monkeypatch.setattr(jax, "devices", lambda: [device])
  assert sharding.LOCAL.platform == platform
  assert sharding.LOCAL.has_flash_kernels == want
