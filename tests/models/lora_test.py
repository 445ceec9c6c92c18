"""Adapters: which layers they are of, computing with them, and merging them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from configs import common
from r1jax import trees
from r1jax.errors import InputError
from r1jax.models import cache as caches
from r1jax.models import lora, parameters, transformer
from r1jax.models.lora import Lora
from r1jax.sharding import MESH_AXES, TRAIN_RULES, Partition
from r1jax.types import ParamSpec
from tests import tiny

FAMILY = pytest.mark.parametrize("name", tiny.FAMILY)
ALL = Lora(rank=2, alpha=3.0, paths=(".*",))
DEFAULT = tuple(common.adapter().paths)
TOKENS = np.random.default_rng(0).integers(0, 33, (2, 7))
POSITIONS = np.broadcast_to(np.arange(7, dtype=np.int32), (2, 7))


@functools.cache
def base_of(c):
  """Flatter than `tiny.params`, so that rounding errors stay what they are."""
  return jax.tree.map(
    lambda leaf: 0.7 * leaf if leaf.ndim > 2 else leaf, tiny.params(c)
  )


def adapter_of(c, how, *, fresh=False):
  """An adapter whose b is not 0, unless it is to be fresh; no compilation."""
  rng = np.random.default_rng(1)

  def draw(path: str, spec: ParamSpec):
    size = 0.0 if fresh and path.endswith("/b") else 0.2
    return jnp.asarray(rng.normal(0, size, spec.shape), jnp.float32)

  return trees.map_with_path(draw, lora.adapter_specs(c, how))


def merged(c, how):
  return jax.jit(functools.partial(lora.merge, lora=how))(
    base_of(c), adapter_of(c, how)
  )


def attached(c, how):
  return lora.attach(base_of(c), adapter_of(c, how), how)


def forward(c, params):
  """Logits of all tokens, and those of the module further on where there is one."""
  hidden_BLD, _, _ = transformer.forward(c, params, TOKENS, POSITIONS)
  states = [hidden_BLD]
  if c.mtp_depth:
    further = transformer.predict_further(c, params, hidden_BLD, TOKENS, POSITIONS)
    states.append(further[0])
  return transformer.unembed(params, jnp.stack(states))


@functools.cache
def compiled(c):
  return jax.jit(functools.partial(forward, c))


def assert_near(got, want):
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


# ------------------------------------------------------------------- what is described


SHAPES = {
  "attn/q_down": (
    ((1, 16, 2), ("layer", "embed", None)),
    ((1, 2, 10), ("layer", None, None)),
  ),
  "attn/kv_up": (
    ((1, 12, 2), ("layer", None, None)),
    ((1, 2, 4, 14), ("layer", None, "heads", None)),
  ),
  "attn/o": (
    ((1, 4, 8, 2), ("layer", "heads", None, None)),
    ((1, 2, 16), ("layer", None, "embed")),
  ),
  "moe/router": (
    ((1, 16, 2), ("layer", "embed", None)),
    ((1, 2, 8), ("layer", None, None)),
  ),
  "moe/experts/down": (
    ((1, 8, 8, 2), ("layer", "expert", "ffw", None)),
    ((1, 8, 2, 16), ("layer", "expert", None, "expert_embed")),
  ),
}


@pytest.mark.parametrize("path", SHAPES)
def test_a_has_the_inputs_and_b_the_outputs(path):
  c = tiny.config(kv_heads=4, head_dim=10, latent=tiny.LATENT, experts=tiny.V3_EXPERTS)
  specs = trees.flatten(lora.adapter_specs(c, ALL))
  a, b = specs[f"layers/{path}/a"], specs[f"layers/{path}/b"]
  assert ((a.shape, a.axes), (b.shape, b.axes)) == SHAPES[path]
  stacked = 2 if "experts" in path else 1
  assert a.fan_in == 3 * math.prod(a.shape[stacked:-1])
  assert (b.fan_in, b.fill) == (0, 0.0)


def test_an_adapter_lies_where_its_matrices_lie():
  shape = {"fsdp": 2, "tp": 2, "ep": 2}
  mesh = AbstractMesh(tuple(shape.get(axis, 1) for axis in MESH_AXES), MESH_AXES)
  c = tiny.config(experts=tiny.QWEN_EXPERTS)
  placed = Partition(mesh, TRAIN_RULES).of_specs(lora.adapter_specs(c, ALL))
  got = {path: at.spec for path, at in trees.flatten(placed).items()}
  assert got["layers/attn/q/a"] == P(None, ("fsdp", "ep"), None)
  assert got["layers/attn/q/b"] == P(None, None, ("tp",), None)
  assert got["layers/attn/o/a"] == P(None, ("tp",), None, None)
  assert got["layers/moe/experts/gate/a"] == P(None, ("ep",), ("fsdp",), None)
  assert got["layers/moe/experts/gate/b"] == P(None, ("ep",), None, ("tp",))


@FAMILY
def test_by_default_all_linear_layers_but_router_and_mtp(name):
  """And never norms, biases, embedding or head."""
  c = tiny.FAMILY[name]
  every = lora.linear_layers(c)
  assert {path.rpartition("/")[2] for path in every} <= {
    *("q", "k", "v", "o", "q_down", "q_up", "kv_down", "kv_up"),
    *("gate", "up", "down", "router", "proj"),
  }
  got = lora.adapter_specs(c, Lora(rank=1, alpha=1.0, paths=DEFAULT))
  chosen = {path.rpartition("/")[0] for path in trees.flatten(got)}
  left_out = {p for p in every if p.startswith("mtp/") or p.endswith("router")}
  assert chosen == every.keys() - left_out
  assert len(chosen) >= 7


def test_numbers_of_an_adapter_by_hand():
  """Of q, k and v: inputs 16, outputs 32, 16, 16; rank 3 and two layers."""
  how = Lora(rank=3, alpha=1.0, paths=("layers/attn/[qkv]",))
  specs = lora.adapter_specs(tiny.config(), how)
  assert trees.count(specs) == 2 * 3 * (3 * 16 + 32 + 16 + 16)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"rank": -1}, r"config\.lora\.rank=-1: must be 1 or more, or 0"),
    ({"rank": 1.5}, r"config\.lora\.rank=1\.5"),
    ({"rank": 17}, r"rank=17: layers/attn/q is a matrix of 16 by 32, whose rank.*16"),
    ({"alpha": 0.0}, r"config\.lora\.alpha=0\.0: must be above 0"),
    ({"paths": ()}, r"config\.lora\.paths=\(\): name one"),
    ({"paths": ("layers/(",)}, r"config\.lora\.paths: 'layers/\(': .*unterminated"),
    (
      {"paths": ("attn/q",)},
      r"'attn/q' matches no parameter; there are: layers/attn/q",
    ),
    ({"paths": (".*/q", "embed")}, r"'embed' matches embed, and none of these is"),
    ({"paths": (".*norm",)}, r"matches .*mlp_norm.* none of these is a linear layer"),
  ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
  section = {"rank": 2, "alpha": 4.0, "paths": [".*"]} | changes
  with pytest.raises(InputError, match=said):
    lora.adapter_specs(tiny.config(), lora.of_section(section))


def test_rank_0_is_off():
  assert lora.of_section({"rank": 0, "alpha": 4.0, "paths": ()}) is None


# ------------------------------------------------------------------ what is computed


@FAMILY
def test_a_fresh_adapter_is_the_base_bit_for_bit(name):
  """So the reference is the base: no ratio but 1, no divergence but 0."""
  c = tiny.FAMILY[name]
  fresh = adapter_of(c, ALL, fresh=True)
  got = compiled(c)(lora.attach(base_of(c), fresh, ALL))
  np.testing.assert_array_equal(got, compiled(c)(base_of(c)))


@FAMILY
def test_attached_is_merged(name):
  c = tiny.FAMILY[name]
  want = compiled(c)(merged(c, ALL))
  assert_near(compiled(c)(attached(c, ALL)), want)
  base = np.asarray(compiled(c)(base_of(c)))
  assert np.abs(base - want).max() > 0.05 * np.abs(want).max()


def test_some_layers_attached_are_those_merged():
  c = tiny.FAMILY["deepseek_v3"]
  how = Lora(rank=3, alpha=6.0, paths=(".*/attn/.*", ".*/experts/down"))
  assert len(trees.flatten(adapter_of(c, how))) == 2 * (3 * 5 + 2)
  assert_near(compiled(c)(attached(c, how)), compiled(c)(merged(c, how)))


@FAMILY
def test_attached_is_merged_with_a_cache(name):
  """Also where keys and values are never made of the latent."""
  c = tiny.FAMILY[name]

  @jax.jit
  def decode(params):
    cache, states = caches.empty(c, 2, 7), []
    for places in (slice(0, 5), slice(5, 7)):
      hidden_BLD, cache, _ = transformer.forward(
        c, params, TOKENS[:, places], POSITIONS[:, places], cache=cache
      )
      states.append(hidden_BLD)
    return transformer.unembed(params, jnp.concatenate(states, axis=1))

  assert_near(decode(attached(c, ALL)), compiled(c)(merged(c, ALL))[0])


def test_gradients_are_those_of_merged_weights_by_the_chain_rule():
  """W = base + s a b, so da = s dW b^T and db = s a^T dW."""
  c = tiny.config(depth=1, experts=tiny.QWEN_EXPERTS)
  how = Lora(rank=2, alpha=3.0, paths=DEFAULT)
  base, adapter = base_of(c), adapter_of(c, how)

  def loss(params):
    return jnp.sin(forward(c, params)).sum()

  got = jax.jit(jax.grad(lambda own: loss(lora.attach(base, own, how))))(adapter)
  whole = trees.flatten(jax.jit(jax.grad(loss))(merged(c, how)))
  flat, pairs = trees.flatten(got), trees.flatten(adapter)
  for path in {path.rpartition("/")[0] for path in flat}:
    a, b = pairs[f"{path}/a"], pairs[f"{path}/b"]
    stacked = a.shape[: 2 if "experts" in path else 1]
    a = np.asarray(a, np.float64).reshape(*stacked, -1, how.rank)
    b = np.asarray(b, np.float64).reshape(*stacked, how.rank, -1)
    dw = np.asarray(whole[path]).reshape(*stacked, a.shape[-2], b.shape[-1])
    for letter, want in (
      ("a", how.scale * dw @ np.swapaxes(b, -1, -2)),
      ("b", how.scale * np.swapaxes(a, -1, -2) @ dw),
    ):
      given = np.asarray(flat[f"{path}/{letter}"]).reshape(want.shape)
      largest = np.abs(want).max()
      assert largest > 1e-3
      np.testing.assert_allclose(given, want, atol=2e-4 * largest, err_msg=path)


# ------------------------------------------------------------------------- merging


def test_merge_adds_and_unmerge_takes_away():
  c = tiny.FAMILY["deepseek_v3"]
  base, adapter = trees.flatten(base_of(c)), trees.flatten(adapter_of(c, ALL))
  got = trees.flatten(merged(c, ALL))
  assert got.keys() == base.keys()
  for path, before in base.items():
    if f"{path}/a" not in adapter:
      np.testing.assert_array_equal(got[path], before)
      continue
    a, b = (np.asarray(adapter[f"{path}/{x}"], np.float64) for x in "ab")
    letters = "ze" if "experts" in path else "z"
    inner = "ij"[: a.ndim - len(letters) - 1]
    sums = f"{letters}{inner}r,{letters}r...->{letters}{inner}..."
    want = np.asarray(before) + ALL.scale * np.einsum(sums, a, b)
    np.testing.assert_allclose(got[path], want, atol=1e-5, err_msg=path)
  back = jax.jit(functools.partial(lora.unmerge, lora=ALL))(
    trees.unflatten(got), adapter_of(c, ALL)
  )
  for path, after in trees.flatten(back).items():
    np.testing.assert_allclose(after, base[path], atol=2e-6, err_msg=path)


def test_merge_rounds_once_to_the_dtype_of_the_parameters():
  """256 + 0.75 + 0.75 is 258 in bfloat16, and 256 if it is rounded in between."""
  how = Lora(rank=2, alpha=2.0, paths=("layers/attn/q",))
  c = tiny.config()
  params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 256, jnp.bfloat16), base_of(c))
  adapter = jax.tree.map(jnp.ones_like, adapter_of(c, how))
  adapter["layers"]["attn"]["q"]["b"] *= 0.75
  after = jax.jit(functools.partial(lora.merge, lora=how))(params, adapter)
  q = after["layers"]["attn"]["q"]
  assert q.dtype == jnp.bfloat16 and (np.asarray(q, np.float32) == 258).all()


def test_merging_makes_no_update_of_all_layers():
  """One layer's product at a time, and the sums in place of the base."""
  c = tiny.config(depth=16, width=64, ffw=512)
  how = Lora(rank=4, alpha=1.0, paths=(".*/down",))
  shapes = [
    parameters.abstract(specs, jnp.float32)
    for specs in (parameters.param_specs(c), lora.adapter_specs(c, how))
  ]
  merge = jax.jit(functools.partial(lora.merge, lora=how), donate_argnums=0)
  used = merge.lower(*shapes).compile().memory_analysis()
  down = 16 * 64 * 512 * 4
  assert used.temp_size_in_bytes < down / 2
