"""DeepSeek's float8 blocks with scales, whole and in part."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from r1jax import trees
from r1jax.errors import InputError
from r1jax.weights import assemble, hf, hf_config
from tests import tiny
from tests.weights.stored import assert_equal

# Widths that end within a block, one that is a block, and one below it.
C = tiny.config(depth=1, width=200, heads=5, kv_heads=1, head_dim=52, ffw=128, vocab=7)
QUANTIZATION = {
  "activation_scheme": "dynamic",
  "fmt": "e4m3",
  "quant_method": "fp8",
  "weight_block_size": [128, 128],
}
Q = "model.layers.0.self_attn.q_proj.weight"


def make(folder, *, quantization=QUANTIZATION, change=lambda tensors: None):
  """A folder with every linear layer in float8; what it means in float32."""
  params = tiny.params(C)
  hf.save_hf(folder, C, params)
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  rng = np.random.default_rng(0)
  plain = dict(tensors)
  for name in [name for name in tensors if "proj" in name]:
    rows, columns = tensors[name].shape
    blocks = -(-rows // 128), -(-columns // 128)
    scales = rng.uniform(0.01, 2.0, blocks).astype(np.float32)
    float8 = (8 * tensors[name]).astype(ml_dtypes.float8_e4m3fn)
    tensors[name], tensors[f"{name}_scale_inv"] = float8, scales
    plain[name] = np.empty((rows, columns), np.float32)
    for i in range(rows):
      for j in range(columns):
        plain[name][i, j] = np.float32(float8[i, j]) * scales[i // 128, j // 128]
  change(tensors)
  safetensors.numpy.save_file(tensors, path)
  fields = json.loads((folder / "config.json").read_text())
  if quantization is not None:
    fields["quantization_config"] = quantization
  (folder / "config.json").write_text(json.dumps(fields))
  return plain


@pytest.mark.parametrize("size", [300, 5000, 1 << 20])
def test_weights_are_multiplied_with_the_scales_of_their_blocks(
  tmp_path, monkeypatch, size
):
  plain = make(tmp_path / "float8")
  make(tmp_path / "plain", quantization=None)
  safetensors.numpy.save_file(plain, tmp_path / "plain" / "model.safetensors")
  _, want = hf.load_hf(tmp_path / "plain")
  monkeypatch.setattr(assemble, "BLOCK_SIZE", size)
  c, got = hf.load_hf(tmp_path / "float8")
  assert c == C
  assert_equal(got, want)
  rounded = hf.load_hf(tmp_path / "float8", dtype=jnp.bfloat16)[1]
  assert_equal(rounded, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), want))


@pytest.mark.parametrize("rows", [(0, 260), (100, 131), (127, 129), (256, 260)])
@pytest.mark.parametrize("columns", [(0, 200), (3, 7), (120, 200), (128, 129)])
def test_a_part_is_what_the_whole_has_there(tmp_path, rows, columns):
  plain = make(tmp_path)
  files = hf.tensor_files.TensorFiles(tmp_path, float8=True)
  index = slice(*rows), slice(*columns)
  np.testing.assert_array_equal(files.read(Q, index), plain[Q][index])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop(f"{Q}_scale_inv"), f"missing {Q}_scale_inv"),
    (
      lambda t: t.update({f"{Q}_scale_inv": np.ones((2, 2), np.float32)}),
      r"_scale_inv is float32\[2, 2\]; for \[260, 200\].*float32\[3, 2\]",
    ),
    (
      lambda t: t.update({f"{Q}_scale_inv": np.ones((3, 2), np.float16)}),
      r"_scale_inv is float16\[3, 2\]",
    ),
    (
      lambda t: t.update({Q: t[Q].astype(np.float32)}),
      f"{Q}_scale_inv scales {Q}, which is not there in float8",
    ),
    (lambda t: t.pop(Q), f"{Q}_scale_inv scales {Q}, which is not there"),
  ],
)
def test_scales_that_do_not_fit_are_named(tmp_path, change, message):
  make(tmp_path, change=change)
  with pytest.raises(InputError, match=message):
    hf.load_hf(tmp_path)


@pytest.mark.parametrize(
  ("quantization", "message"),
  [
    (None, "is stored as F8_E4M3; allowed: F32, F16, BF16"),
    (QUANTIZATION | {"quant_method": "gptq"}, "quant_method='gptq'"),
    (QUANTIZATION | {"weight_block_size": [64, 128]}, r"weight_block_size=\[64, 128\]"),
    (QUANTIZATION | {"fmt": "e5m2"}, "fmt='e5m2'"),
    (QUANTIZATION | {"bits": 4}, "bits=4"),
    ({"quant_method": "fp8"}, "no weight_block_size"),
  ],
)
def test_other_quantization_is_refused_by_name(tmp_path, quantization, message):
  make(tmp_path, quantization=quantization)
  with pytest.raises(InputError, match=message):
    hf.load_hf(tmp_path)


def test_the_shape_is_read_without_the_weights(tmp_path):
  make(tmp_path)
  assert hf_config.read_config(tmp_path) == C
  params = trees.flatten(hf.load_hf(tmp_path)[1])
  assert params["layers/attn/q"].shape == (1, 200, 5, 52)
