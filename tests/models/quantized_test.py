"""Numbers held in one byte, and matrices of them through the whole decoder."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import sharding, trees
from r1jax.models import cache as caches
from r1jax.models import grouped, layers, lora, parameters, quantized, transformer
from r1jax.models.quantized import Quantized
from r1jax.types import ParamSpec
from tests import tiny

FAMILY = pytest.mark.parametrize("c", tiny.FAMILY.values(), ids=tiny.FAMILY)


def int8(c):
  return quantized.params_in("int8", tiny.params(c), parameters.param_specs(c))


def is_quantized(leaf):
  return isinstance(leaf, Quantized)


def rounded(tree):
  """A tree with the arrays that its quantized ones stand for."""
  return jax.tree.map(
    lambda leaf: layers.matrix(leaf) if is_quantized(leaf) else leaf,
    tree,
    is_leaf=is_quantized,
  )


def test_the_nearest_multiples_of_a_scale_by_channel():
  x = jnp.asarray([[1.0, -254.0, 0.0], [-0.5, 3.1, 0.0]])
  got = quantized.quantize(x, (0,))
  assert got.values.dtype == jnp.int8
  np.testing.assert_array_equal(got.values, [[127, -127, 0], [-64, 2, 0]])
  np.testing.assert_allclose(got.scale, [[1 / 127, 2.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numbers_are_off_by_half_a_scale_at_most(dtype):
  """In bfloat16 a scale rounded down may cut the largest number short as well."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 20)), dtype)
  got = quantized.quantize(x, (0,))
  assert got.scale.dtype == dtype and got.dtype == dtype and got.shape == x.shape
  scale = np.asarray(got.scale, np.float64)
  error = np.abs(np.asarray(got.values, np.float64) * scale - np.asarray(x, np.float64))
  assert (error <= scale * (0.501 if dtype == jnp.float32 else 0.75)).all()


def test_float8_takes_what_is_too_large_for_it_as_its_largest():
  held = jnp.zeros((1,), jnp.float8_e4m3fn)
  got = quantized.like(jnp.asarray([1e3, -1e3, 0.3]), held, 0)
  assert got.dtype == held.dtype
  np.testing.assert_array_equal(got.astype(jnp.float32), [448, -448, 0.3125])


@FAMILY
def test_matrices_are_quantized_and_nothing_else(c):
  params, specs = tiny.params(c), parameters.param_specs(c)
  given, before = trees.flatten(params), trees.flatten(specs)
  after = trees.flatten(quantized.specs_in("int8", specs))
  for path, leaf in trees.flatten(int8(c)).items():
    is_matrix = before[path].fan_in > 0 and not path.endswith(("router", "kv_up"))
    assert is_quantized(leaf) == is_matrix == is_quantized(after[path])
    if is_matrix:
      assert leaf.values.shape == after[path].values.shape == before[path].shape
      assert leaf.scale.shape == after[path].scale.shape
      shared_by = math.prod(inputs(path, before[path].shape))
      assert leaf.scale.size * shared_by == leaf.values.size
    else:
      assert leaf is given[path]
  assert quantized.params_in("", params, specs) is params
  assert quantized.specs_in("", specs) is specs


def inputs(path, shape):
  """Sizes of a matrix's input axes."""
  last = path.rpartition("/")[2]
  if last == "embed":
    return shape[1:]
  if last == "head":
    return shape[:1]
  if last == "o":
    return shape[1:3]
  return shape[2:3] if "/experts/" in path else shape[1:2]


@FAMILY
def test_the_decoder_computes_with_what_the_numbers_stand_for(c):
  """Every product, the experts', the embedding and the head."""
  made = int8(c)
  tokens = np.asarray([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
  positions = np.broadcast_to(np.arange(7), tokens.shape)

  @jax.jit
  def logits_of(params):
    hidden_BLD, _, _ = transformer.forward(c, params, tokens, positions)
    return transformer.unembed(params, hidden_BLD)

  got = logits_of(made)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, logits_of(rounded(made)), rtol=0, atol=2e-4)
  assert np.abs(got - logits_of(tiny.params(c))).max() > 1e-2


def test_rows_behind_all_groups_of_experts_give_nothing():
  rng = np.random.default_rng(0)
  x_PD = jnp.asarray(rng.normal(size=(11, 6)), jnp.float32)
  w_EDF = quantized.quantize(jnp.asarray(rng.normal(size=(3, 6, 5)), jnp.float32), (1,))
  got_PF = np.asarray(grouped.product(x_PD, w_EDF, jnp.asarray([2, 0, 6])))
  w = np.asarray(layers.matrix(w_EDF))
  np.testing.assert_allclose(got_PF[:2], x_PD[:2] @ w[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(got_PF[2:8], x_PD[2:8] @ w[2], rtol=1e-5, atol=1e-5)
  assert not got_PF[8:].any()


@pytest.mark.parametrize("name", ["qwen2", "deepseek_v3"])
def test_adapters_of_quantized_matrices(name):
  c = tiny.FAMILY[name]
  adapted = lora.Lora(2, 4.0, ("layers/attn/(q_up|o)",) if c.latent else (".*/q",))
  rng = np.random.default_rng(1)
  adapter = jax.tree.map(
    lambda spec: jnp.asarray(rng.normal(0, 0.3, spec.shape), jnp.float32),
    lora.adapter_specs(c, adapted),
    is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
  )
  made = int8(c)
  tokens = np.asarray([[3, 1, 4, 1, 5, 9, 2]])

  @jax.jit
  def states(params):
    return transformer.forward(c, params, tokens, np.arange(7)[None])[0]

  got = states(lora.attach(made, adapter, adapted))
  want = states(lora.merge(rounded(made), adapter, adapted))
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)
  kept = quantized.params_in("int8", adapter, lora.adapter_specs(c, adapted))
  assert not any(map(is_quantized, trees.flatten(kept).values()))


def test_a_checksum_tells_one_changed_byte():
  made = int8(tiny.FAMILY["qwen3_moe"])
  checksum = jax.jit(trees.checksum)
  experts = made["layers"]["moe"]["experts"]
  up = experts["up"]
  changed = up.replace(values=up.values.at[0, 1, 2, 3].add(1))
  before = checksum(made)
  assert before == checksum(jax.tree.map(jnp.copy, made))
  assert before != checksum(
    {"layers": {**made["layers"], "moe": {"experts": {**experts, "up": changed}}}}
  )


@pytest.mark.parametrize("shape", ["qwen2", "deepseek_v2"])
def test_bytes_of_a_token_in_the_cache(shape):
  c = tiny.FAMILY[shape]
  numbers = caches.token_bytes(c, "float8_e4m3fn")
  assert numbers == c.depth * (2 * 2 * 8 if c.latent is None else 12 + 4)
  assert caches.token_bytes(c, "bfloat16") == 2 * numbers
  scales = c.depth * (2 * c.kv_heads if c.latent is None else 1)
  assert caches.token_bytes(c, "int8") == numbers + 4 * scales


@pytest.mark.parametrize("rules", [sharding.TRAIN_RULES, sharding.SAMPLE_RULES])
def test_scales_lie_with_the_outputs_that_they_are_of(rules):
  c = tiny.FAMILY["qwen3_moe"]
  specs = parameters.unstacked(quantized.specs_in("int8", parameters.param_specs(c)))
  layer = specs["layers"]["0"]
  assert layer["attn"]["q"].scale.axes == (None, "heads", None)
  assert layer["attn"]["o"].scale.axes == (None, None, "embed")
  assert layer["moe"]["experts"]["down"].scale.axes == ("expert", None, "expert_embed")
  assert specs["embed"].scale.axes == ("vocab", None)
  mesh = sharding.single_device().mesh
  placed = sharding.Partition(mesh, rules).of_specs(specs)
  assert jax.tree.structure(placed) == jax.tree.structure(
    jax.eval_shape(functools.partial(unstacked_int8, c))
  )


def test_fused_matrices_keep_their_scales():
  """Specs and arrays of `fused` fit each other, int8 or not."""
  c = tiny.FAMILY["qwen2"]
  for kind in ("", "int8"):
    specs = quantized.specs_in(kind, parameters.param_specs(c))
    specs = parameters.fused(parameters.unstacked(specs))
    made = quantized.params_in(kind, tiny.params(c), parameters.param_specs(c))
    made = parameters.fused(parameters.unstacked(made))
    shapes = jax.tree.map(
      lambda spec: spec.shape, specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec)
    )
    assert shapes == jax.tree.map(jnp.shape, made)
    layer = made["layers"]["0"]
    assert set(layer["attn"]) == {"qkv", "qkv_bias", "o"}
    assert layer["attn"]["qkv"].shape == (c.width, c.heads + 2 * c.kv_heads, c.head_dim)
    assert layer["mlp"]["gate_up"].shape == (c.width, 2 * c.ffw)


def unstacked_int8(c):
  return parameters.unstacked(int8(c))
