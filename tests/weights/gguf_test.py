"""GGUF files: names and layouts undone, blocks dequantised, the rest refused."""

import dataclasses

import gguf as gguf_package
import ml_dtypes
import numpy as np
import pytest

from r1jax import trees
from r1jax.errors import InputError
from r1jax.models import rope
from r1jax.models.config import Experts, Llama3Rope, YarnRope
from r1jax.weights import assemble, gguf
from tests import tiny
from tests.weights import stored
from tests.weights.stored import assert_equal

KIND = gguf_package.GGMLQuantizationType
_SHAPE = {"width": 32, "ffw": 64, "vocab": 23, "max_length": 77, "rope_base": 5e4}
_SHAPE |= {"tied_head": False, "name": "small", "norm_eps": 2.0**-20}
MODELS = {
  "llama": tiny.config(**_SHAPE),
  "qwen2": tiny.config(**_SHAPE, qkv_bias=True),
  "qwen3": tiny.config(**_SHAPE, qk_norm=True),
  "qwen3moe": tiny.config(
    **_SHAPE, qk_norm=True, experts=Experts(count=5, per_token=2, ffw=32)
  ),
}
C = MODELS["llama"]
each_model = pytest.mark.parametrize("arch", MODELS)


def metadata_of(arch):
  c = MODELS[arch]
  found = {
    "block_count": c.depth,
    "context_length": c.max_length,
    "embedding_length": c.width,
    "feed_forward_length": c.ffw,
    "attention.head_count": c.heads,
    "attention.head_count_kv": c.kv_heads,
    "attention.key_length": c.head_dim,
    "rope.freq_base": c.rope_base,
    "attention.layer_norm_rms_epsilon": c.norm_eps,
  }
  if c.experts is not None:
    found |= {
      "expert_count": c.experts.count,
      "expert_used_count": c.experts.per_token,
      "expert_feed_forward_length": c.experts.ffw,
    }
  return {f"{arch}.{key}": value for key, value in found.items()}


def interleave(matrix, heads):
  """llama.cpp's converter, a row at a time: the halves of a head take turns."""
  out = np.empty_like(matrix)
  width = len(matrix) // heads
  half = width // 2
  for n in range(heads):
    for h in range(width):
      out[n * width + 2 * (h % half) + h // half] = matrix[n * width + h]
  return out


def stored_tensors(arch, params, c=None):
  c = MODELS[arch] if c is None else c
  tensors = stored.tensors(c, gguf.layout(c, turns_neighbours=False), params)
  if arch == "llama":
    for name in tensors:
      for part, heads in (("attn_q.", c.heads), ("attn_k.", c.kv_heads)):
        if part in name:
          tensors[name] = interleave(tensors[name], heads)
  return tensors


def write(path, tensors, metadata=(), *, arch="llama"):
  """A file; tensors are float32, or (blocks, their type)."""
  writer = gguf_package.GGUFWriter(path, arch)
  writer.add_name("small")
  for key, value in {**metadata_of(arch), **dict(metadata)}.items():
    if isinstance(value, str):
      writer.add_string(key, value)
    elif isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    elif isinstance(value, list):
      writer.add_array(key, value)
    elif value is not None:
      writer.add_uint32(key, value)
  for name, array in tensors.items():
    if isinstance(array, tuple):
      writer.add_tensor(name, array[0], raw_dtype=array[1])
    else:
      writer.add_tensor(name, np.ascontiguousarray(array))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@each_model
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [50, 1 << 20])
def test_float32_comes_back_exactly(tmp_path, monkeypatch, arch, tied, size):
  monkeypatch.setattr(assemble, "BLOCK_SIZE", size)
  c = dataclasses.replace(MODELS[arch], tied_head=tied)
  params = tiny.params(c)
  path = write(tmp_path / "m.gguf", stored_tensors(arch, params, c), arch=arch)
  got_c, got = gguf.load_gguf(path)
  assert got_c == c == gguf.read_config(path)
  assert_equal(got, params)


@each_model
def test_names_are_those_of_the_library(arch):
  """The converter takes its names from the same map."""
  c = MODELS[arch]
  number = {name: n for n, name in gguf_package.MODEL_ARCH_NAMES.items()}[arch]
  known = {
    name.format(bid=z)
    for kind in gguf_package.MODEL_TENSORS[number]
    for name in [gguf_package.TENSOR_NAMES[kind]]
    for z in range(c.depth)
  }
  names = assemble.stored_shapes(c, gguf.layout(c, turns_neighbours=False))
  assert {name.rpartition(".")[0] for name in names} <= known


# Bytes of a block that are a half-precision scale, by where they begin.
_SCALES = {KIND.Q4_K: (0, 2), KIND.Q6_K: (208,)}


def blocks_of(array, kind):
  """(blocks, kind): quantised where the library can, else random blocks."""
  if kind not in _SCALES:
    return gguf_package.quants.quantize(array, kind), kind
  rng = np.random.default_rng(array.size)
  size, num_bytes = gguf_package.GGML_QUANT_SIZES[kind]
  blocks = rng.integers(0, 256, (array.size // size, num_bytes), np.uint8)
  for start in _SCALES[kind]:
    scale = rng.uniform(0.001, 0.1, len(blocks)).astype(np.float16)
    blocks[:, start : start + 2] = scale.view(np.uint8).reshape(-1, 2)
  return blocks.reshape(*array.shape[:-1], -1), kind


@pytest.mark.parametrize("size", [70, 1 << 20])
@pytest.mark.parametrize(
  "kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"]
)
@pytest.mark.parametrize("arch", ["llama", "qwen3moe"])
def test_blocks_are_dequantised_as_the_library_does(
  tmp_path, monkeypatch, arch, kind, size
):
  """Whole tensors, and in parts that begin within a row of blocks."""
  monkeypatch.setattr(assemble, "BLOCK_SIZE", size)
  wide = {"width": 256, "ffw": 256, "heads": 2, "kv_heads": 1, "head_dim": 128}
  if arch == "qwen3moe":
    wide["experts"] = Experts(count=3, per_token=2, ffw=256)
  c = dataclasses.replace(MODELS[arch], depth=1, **wide)
  monkeypatch.setitem(MODELS, arch, c)
  tensors = stored_tensors(arch, tiny.params(c))
  blocks = {
    name: blocks_of(array, KIND[kind]) if array.ndim > 1 else array
    for name, array in tensors.items()
  }
  plain = {
    name: gguf_package.quants.dequantize(*array) if isinstance(array, tuple) else array
    for name, array in blocks.items()
  }
  _, want = gguf.load_gguf(write(tmp_path / "plain.gguf", plain, arch=arch))
  _, got = gguf.load_gguf(write(tmp_path / "m.gguf", blocks, arch=arch))
  assert_equal(got, want)
  assert all(
    np.isfinite(np.asarray(leaf)).all() for leaf in trees.flatten(got).values()
  )
  if kind not in ("Q4_K", "Q6_K"):
    original = np.asarray(tiny.params(c)["embed"])
    error = np.abs(np.asarray(got["embed"]) - original).max()
    assert 0 < error < 0.15 * np.abs(original).max()


def test_what_is_dequantised_is_rounded_to_the_dtype_asked_for(tmp_path):
  params = tiny.params(C)
  path = write(tmp_path / "m.gguf", stored_tensors("llama", params))
  got = trees.flatten(gguf.load_gguf(path, dtype=ml_dtypes.bfloat16)[1])
  for name, want in trees.flatten(params).items():
    want = np.asarray(want).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(got[name]), want, name)


# --------------------------------------------------------------------- rotary scalings


def converters_factors(head_dim, base, factor):
  """What llama.cpp's converter writes for Llama 3.1 and later."""
  factors = []
  for i in range(0, head_dim, 2):
    wavelength = 2 * np.pi * base ** (i / head_dim)
    if wavelength < 8192 / 4:
      factors.append(1.0)
    elif wavelength > 8192:
      factors.append(factor)
    else:
      smooth = (8192 / wavelength - 1) / (4 - 1)
      factors.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rotary_factors_of_llama_3_1_act(tmp_path, monkeypatch, factor):
  c = dataclasses.replace(C, head_dim=64, rope_base=5e5)
  monkeypatch.setitem(MODELS, "llama", c)
  tensors = stored_tensors("llama", tiny.params(c))
  factors = tensors["rope_freqs.weight"] = converters_factors(64, 5e5, factor)
  got, _ = gguf.load_gguf(write(tmp_path / "m.gguf", tensors))
  assert got.rope_scaling == Llama3Rope(factor, 8192)
  np.testing.assert_allclose(
    rope.frequencies(got), rope.frequencies(c) / factors, rtol=1e-5
  )


def test_other_rotary_factors_are_refused(tmp_path):
  tensors = stored_tensors("llama", tiny.params(C))
  tensors["rope_freqs.weight"] = np.array([1, 2, 3, 4], np.float32)
  with pytest.raises(InputError, match=r"rope_freqs.weight has other factors"):
    gguf.load_gguf(write(tmp_path / "m.gguf", tensors))


def test_yarn_acts(tmp_path):
  metadata = {
    "qwen2.rope.scaling.type": "yarn",
    "qwen2.rope.scaling.factor": 4.0,
    "qwen2.rope.scaling.original_context_length": 32,
    "qwen2.rope.scaling.finetuned": True,
  }
  tensors = stored_tensors("qwen2", tiny.params(MODELS["qwen2"]))
  path = write(tmp_path / "m.gguf", tensors, metadata, arch="qwen2")
  assert gguf.read_config(path).rope_scaling == YarnRope(4.0, 32)


# ----------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
  ("metadata", "message"),
  [
    ({"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.type='linear'"),
    ({"llama.rope.scaling.factor": 2.0}, "llama.rope.scaling.factor=2.0"),
    (
      {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0},
      "no llama.rope.scaling.original_context_length",
    ),
    ({"llama.rope.scaling.attn_factor": 2.0}, "llama.rope.scaling.attn_factor=2.0"),
    ({"llama.expert_count": 8}, "llama.expert_count=8"),
    ({"split.count": 2}, "split.count=2"),
    ({"llama.rope.dimension_count": 4, "llama.attention.key_length": 8}, "one number"),
    ({"llama.block_count": None}, "no llama.block_count"),
    ({"llama.attention.head_count_kv": 3}, "kv_heads=3 must divide"),
    ({"llama.attention.head_count_kv": [1, 2]}, r"head_count_kv=\[1, 2\]"),
  ],
  ids=str,
)
def test_metadata_that_is_not_understood_is_refused(tmp_path, metadata, message):
  tensors = stored_tensors("llama", tiny.params(C))
  with pytest.raises(InputError, match=message):
    gguf.load_gguf(write(tmp_path / "m.gguf", tensors, metadata))


def test_another_architecture_is_refused(tmp_path):
  path = tmp_path / "m.gguf"
  writer = gguf_package.GGUFWriter(path, "deepseek2")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(InputError, match=r"general.architecture='deepseek2' is not"):
    gguf.load_gguf(path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop("blk.1.attn_k.weight"), "missing blk.1.attn_k.weight"),
    (
      lambda t: t.update({"blk.0.attn_q.bias": np.ones(32, np.float32)}),
      "unknown blk.0.attn_q.bias",
    ),
    (
      lambda t: t.update({"output_norm.weight": np.ones(31, np.float32)}),
      r"output_norm.weight is \(31,\), the config says \(32,\)",
    ),
    (lambda t: t.pop("token_embd.weight"), "no token_embd.weight"),
  ],
  ids=["missing", "bias", "shape", "embedding"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
  """R2: nothing is left at its initial value, nothing is left unread."""
  tensors = stored_tensors("llama", tiny.params(C))
  change(tensors)
  with pytest.raises(InputError, match=message):
    gguf.load_gguf(write(tmp_path / "m.gguf", tensors))


def test_rotary_factors_of_another_architecture_are_unknown(tmp_path):
  tensors = stored_tensors("qwen2", tiny.params(MODELS["qwen2"]))
  tensors["rope_freqs.weight"] = np.ones(4, np.float32)
  with pytest.raises(InputError, match=r"unknown rope_freqs.weight"):
    gguf.load_gguf(write(tmp_path / "m.gguf", tensors, arch="qwen2"))


def test_a_file_that_is_not_gguf(tmp_path):
  (tmp_path / "m.gguf").write_bytes(b"GGML" * 10)
  with pytest.raises(InputError, match="not a GGUF file"):
    gguf.load_gguf(tmp_path / "m.gguf")
