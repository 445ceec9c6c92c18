"""GGUF files: the rotary layout undone, blocks dequantised, the rest refused."""

import dataclasses

import gguf as gguf_package
import jax
import numpy as np
import pytest

from r1jax import trees
from r1jax.errors import InputError
from r1jax.models import assemble, gguf, parameters
from r1jax.models.config import ModelConfig

C = ModelConfig(
  depth=2, width=32, heads=4, kv_heads=2, head_dim=8, ffw=64, vocab=23,
  rope_base=5e4, norm_eps=1e-6, tied_head=False, max_length=77, name="small",
)  # fmt: skip
METADATA = {
  "llama.block_count": 2,
  "llama.context_length": 77,
  "llama.embedding_length": 32,
  "llama.feed_forward_length": 64,
  "llama.attention.head_count": 4,
  "llama.attention.head_count_kv": 2,
  "llama.rope.dimension_count": 8,
  "llama.vocab_size": 23,
  "llama.rope.freq_base": 5e4,
  "llama.attention.layer_norm_rms_epsilon": 1e-6,
}


def interleave(stored, heads):
  """llama.cpp's converter, a row at a time: the halves of a head take turns."""
  out = np.empty_like(stored)
  width = len(stored) // heads
  half = width // 2
  for n in range(heads):
    for h in range(width):
      out[n * width + 2 * (h % half) + h // half] = stored[n * width + h]
  return out


def stored_tensors(c, params):
  tensors, flat = {}, trees.flatten(params)
  for path, parts in assemble.slices(c, gguf.NAMES).items():
    for name, z, _ in parts:
      array = np.asarray(flat[path] if z is None else flat[path][z])
      stored = assemble.to_stored(path, array)
      heads = {"layers/attn/q": c.heads, "layers/attn/k": c.kv_heads}.get(path)
      tensors[name] = interleave(stored, heads) if heads else stored
  return tensors


def write(path, tensors, metadata=(), *, arch="llama", quantized=None):
  writer = gguf_package.GGUFWriter(path, arch)
  writer.add_name("small")
  for key, value in {**METADATA, **dict(metadata)}.items():
    if isinstance(value, str):
      writer.add_string(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    elif value is not None:
      writer.add_uint32(key, value)
  for name, array in tensors.items():
    if quantized and array.ndim == 2:
      blocks = gguf_package.quants.quantize(array, quantized)
      writer.add_tensor(name, blocks, raw_dtype=quantized)
    else:
      writer.add_tensor(name, np.ascontiguousarray(array))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope="module", name="params")
def _params():
  return parameters.init(C, jax.random.key(0))


@pytest.mark.parametrize("tied", [False, True])
def test_float32_comes_back_exactly(tmp_path, params, tied):
  c = dataclasses.replace(C, tied_head=tied)
  params = {k: v for k, v in params.items() if k != "head" or not tied}
  got_c, got = gguf.load_gguf(write(tmp_path / "m.gguf", stored_tensors(c, params)))
  assert got_c == dataclasses.replace(c, norm_eps=got_c.norm_eps)
  np.testing.assert_allclose(got_c.norm_eps, c.norm_eps, rtol=1e-6)
  assert gguf.read_config(tmp_path / "m.gguf") == got_c
  want, got = trees.flatten(params), trees.flatten(got)
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(np.asarray(got[path]), np.asarray(want[path]), path)


def test_rows_of_a_head_are_un_interleaved():
  stored = np.array([[0.0], [4], [1], [5], [2], [6], [3], [7]])
  assert gguf.unpermute(stored, 1)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
  assert gguf.unpermute(stored, 2)[:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_blocks_are_dequantised_within_their_step(tmp_path, params):
  kind = gguf_package.GGMLQuantizationType.Q8_0
  path = write(tmp_path / "m.gguf", stored_tensors(C, params), quantized=kind)
  got = trees.flatten(gguf.load_gguf(path, dtype=np.float16)[1])
  for name, want in trees.flatten(params).items():
    want = np.asarray(want)
    assert got[name].dtype == np.float16
    step = np.abs(want).max() / 127
    np.testing.assert_allclose(got[name], want, atol=0.51 * step + 2e-3, err_msg=name)
  error = np.abs(np.asarray(got["embed"]) - np.asarray(params["embed"])).max()
  assert error > 0


@pytest.mark.parametrize(
  ("metadata", "message"),
  [
    ({"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.type='linear'"),
    ({"llama.rope.scaling.factor": 2.0}, "llama.rope.scaling.factor=2.0"),
    ({"llama.expert_count": 8}, "llama.expert_count=8"),
    ({"split.count": 2}, "split.count=2"),
    ({"llama.rope.dimension_count": 4, "llama.attention.key_length": 8}, "one number"),
    ({"llama.block_count": None}, "no llama.block_count"),
    ({"llama.attention.head_count_kv": 3}, "kv_heads=3 must divide"),
  ],
  ids=str,
)
def test_metadata_that_is_not_understood_is_refused(
  tmp_path, params, metadata, message
):
  path = write(tmp_path / "m.gguf", stored_tensors(C, params), metadata)
  with pytest.raises(InputError, match=message):
    gguf.load_gguf(path)


def test_another_architecture_is_refused(tmp_path, params):
  path = write(tmp_path / "m.gguf", stored_tensors(C, params), arch="qwen2")
  with pytest.raises(InputError, match=r"general.architecture='qwen2' is not known"):
    gguf.load_gguf(path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop("blk.1.attn_k.weight"), "missing blk.1.attn_k.weight"),
    (
      lambda t: t.update({"rope_freqs.weight": np.ones(4, np.float32)}),
      "unknown rope_freqs.weight",
    ),
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
  ids=["missing", "rope", "bias", "shape", "embedding"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, params, change, message):
  """R2: nothing is left at its initial value, nothing is left unread."""
  tensors = stored_tensors(C, params)
  change(tensors)
  with pytest.raises(InputError, match=message):
    gguf.load_gguf(write(tmp_path / "m.gguf", tensors))


def test_a_file_that_is_not_gguf(tmp_path):
  (tmp_path / "m.gguf").write_bytes(b"GGML" * 10)
  with pytest.raises(InputError, match="not a GGUF file"):
    gguf.load_gguf(tmp_path / "m.gguf")
