"""Hugging Face folders: exact round trips, and nothing read that is not understood."""

import functools
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from r1jax import trees
from r1jax.data.tokenizer import load_tokenizer, train_sentencepiece
from r1jax.errors import InputError
from r1jax.models import hf, parameters, presets
from r1jax.models.config import ModelConfig

SHAPE = {"depth": 2, "width": 12, "heads": 4, "kv_heads": 2, "head_dim": 6, "ffw": 20}
TIED = ModelConfig(**SHAPE, vocab=17, tied_head=True, name="tied")
FREE = ModelConfig(**SHAPE, vocab=17, tied_head=False, rope_base=5e5, name="free")
Q0 = "model.layers.0.self_attn.q_proj.weight"

# config.json of HuggingFaceTB/SmolLM2-135M-Instruct, as transformers 4 wrote it.
SMOLLM2 = {
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 576,
  "initializer_range": 0.041666666666666664,
  "intermediate_size": 1536,
  "is_llama_config": True,
  "max_position_embeddings": 8192,
  "mlp_bias": False,
  "model_type": "llama",
  "num_attention_heads": 9,
  "num_hidden_layers": 30,
  "num_key_value_heads": 3,
  "pad_token_id": 2,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_interleaved": False,
  "rope_scaling": None,
  "rope_theta": 100000,
  "tie_word_embeddings": True,
  "torch_dtype": "bfloat16",
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
  "transformers_version": "4.42.3",
  "use_cache": True,
  "vocab_size": 49152,
}


@functools.cache
def params_of(c, dtype=jnp.float32):
  return parameters.init(c, jax.random.key(3), dtype)


def exported(folder, c=FREE, dtype=jnp.float32):
  hf.save_hf(folder, c, params_of(c, dtype))
  return folder


def edit(folder, change):
  """Applies `change` to the tensors of an exported folder."""
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)
  return folder


def assert_equal(a, b):
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    assert a[path].dtype == b[path].dtype, path
    np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), path)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("c", [TIED, FREE], ids=["tied", "free"])
def test_export_import_export_is_byte_equal(tmp_path, c, dtype):
  params = params_of(c, dtype)
  hf.save_hf(tmp_path / "a", c, params)
  c_read, params_read = hf.load_hf(tmp_path / "a", dtype=dtype)
  assert c_read == c
  assert_equal(params_read, params)
  hf.save_hf(tmp_path / "b", c_read, params_read)
  for name in ("model.safetensors", "config.json"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_every_entry_lands_where_torch_would_read_it(tmp_path):
  """torch.nn.Linear computes weight[out, in] @ x, heads folded into one axis."""
  stored = safetensors.numpy.load_file(exported(tmp_path) / "model.safetensors")
  _, params = hf.load_hf(tmp_path)
  attn, mlp = params["layers"]["attn"], params["layers"]["mlp"]
  layer = "model.layers.1."
  n, h, d, f = 1, 4, 7, 13
  nh = n * FREE.head_dim + h
  for part in "qkv":
    got = stored[f"{layer}self_attn.{part}_proj.weight"][nh, d]
    assert got == attn[part][1, d, n, h]
  assert stored[layer + "self_attn.o_proj.weight"][d, nh] == attn["o"][1, n, h, d]
  assert stored[layer + "mlp.gate_proj.weight"][f, d] == mlp["gate"][1, d, f]
  assert stored[layer + "mlp.up_proj.weight"][f, d] == mlp["up"][1, d, f]
  assert stored[layer + "mlp.down_proj.weight"][d, f] == mlp["down"][1, f, d]
  assert stored["lm_head.weight"][5, d] == params["head"][d, 5]
  assert stored["model.embed_tokens.weight"][5, d] == params["embed"][5, d]


def shard(folder):
  """Splits an exported folder into two files with an index."""
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  files = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
  where = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
  for file in files:
    part = {name: x for name, x in tensors.items() if where[name] == file}
    safetensors.numpy.save_file(part, folder / file)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"weight_map": where})
  )
  return tensors


def test_shards_with_an_index_are_one_model(tmp_path):
  shard(exported(tmp_path))
  assert_equal(hf.load_hf(tmp_path)[1], params_of(FREE))


def test_a_tensor_in_two_shards_is_refused(tmp_path):
  tensors = shard(exported(tmp_path))
  everything = tmp_path / "model-2-of-2.safetensors"
  safetensors.numpy.save_file(tensors, everything)
  with pytest.raises(InputError, match="duplicate tensor"):
    hf.load_hf(tmp_path)


def test_placing_is_the_callers_and_the_host_holds_one_array(tmp_path):
  seen = {}

  def put(path, array):
    assert all(dead() is None for dead, _ in seen.values())
    seen[path] = weakref.ref(array), array.shape
    return path

  _, params = hf.load_hf(exported(tmp_path), put=put)
  specs = trees.flatten(parameters.param_specs(FREE))
  assert {p: shape for p, (_, shape) in seen.items()} == {
    p: spec.shape for p, spec in specs.items()
  }
  assert trees.flatten(params) == {path: path for path in specs}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop(Q0), f"missing {Q0}"),
    (lambda t: t.update({"model.extra": t[Q0]}), "unknown model.extra"),
    (
      lambda t: t.update({Q0: t[Q0][:-1].copy()}),
      r"q_proj.weight is \(23, 12\), the config says \(24, 12\)",
    ),
    (
      lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[Q0]}),
      "unknown model.layers.2.mlp.up_proj.weight",
    ),
    (lambda t: t.update({Q0: t[Q0].astype(np.int8)}), "is stored as I8"),
  ],
  ids=["missing", "unknown", "shape", "layer", "type"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
  """R2: nothing is left at its initial value, nothing is left unread."""
  with pytest.raises(InputError, match=message):
    hf.load_hf(edit(exported(tmp_path), change))


def test_faults_are_found_before_anything_is_placed(tmp_path):
  folder = edit(exported(tmp_path), lambda t: t.pop("lm_head.weight"))
  with pytest.raises(InputError, match=r"missing lm_head.weight"):
    hf.load_hf(folder, put=lambda *_: pytest.fail("placed"))


def test_a_tied_head_stored_twice(tmp_path):
  def same(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

  folder = edit(exported(tmp_path, TIED), same)
  assert_equal(hf.load_hf(folder)[1], params_of(TIED))
  edit(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
  with pytest.raises(InputError, match=r"differs from model.embed_tokens.weight"):
    hf.load_hf(folder)


def test_rotary_wavelengths_of_old_files_are_passed_over(tmp_path):
  name = "model.layers.0.self_attn.rotary_emb.inv_freq"
  folder = edit(exported(tmp_path), lambda t: t.update({name: np.ones(3, np.float32)}))
  assert_equal(hf.load_hf(folder)[1], params_of(FREE))


def test_published_config_is_the_preset():
  got = hf.config_from_hf({**SMOLLM2, "_name_or_path": "smollm2-135m"})
  assert got == presets.PRESETS["smollm2-135m"]


def test_defaults_of_absent_fields():
  absent = ("num_key_value_heads", "rope_theta", "tie_word_embeddings")
  fields = {name: v for name, v in SMOLLM2.items() if name not in absent}
  c = hf.config_from_hf(fields)
  assert (c.kv_heads, c.head_dim, c.rope_base, c.tied_head) == (9, 64, 1e4, False)


def test_rope_parameters_of_transformers_5():
  fields = {name: v for name, v in SMOLLM2.items() if name != "rope_theta"}
  nested = {"rope_theta": 7e5, "rope_type": "default"}
  assert hf.config_from_hf({**fields, "rope_parameters": nested}).rope_base == 7e5


@pytest.mark.parametrize(
  "change",
  [
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100000}},
    {"rope_parameters": {"rope_theta": 100000, "factor": 2.0}},
    {"rope_parameters": {"rope_theta": 5}},
    {"rope_interleaved": True},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"hidden_act": "gelu"},
    {"architectures": ["Qwen2ForCausalLM"]},
    {"model_type": "qwen2"},
    {"pretraining_tp": 2},
    {"quantization_config": {"quant_method": "fp8"}},
    {"sliding_window": 4096},
    {"num_key_value_heads": 2},
  ],
  ids=str,
)
def test_config_fields_that_are_not_computed_are_refused_by_name(change):
  name = {"num_key_value_heads": "kv_heads"}.get(next(iter(change)), next(iter(change)))
  with pytest.raises(InputError, match=name):
    hf.config_from_hf({**SMOLLM2, **change})


@pytest.mark.parametrize("name", ["hidden_size", "rms_norm_eps", "model_type"])
def test_config_fields_that_must_be_there(name):
  with pytest.raises(InputError, match=f"no {name}"):
    hf.config_from_hf({k: v for k, v in SMOLLM2.items() if k != name})


def test_head_width_must_follow_from_the_config():
  with pytest.raises(InputError, match="no head_dim"):
    hf.config_from_hf({**SMOLLM2, "hidden_size": 577})


def test_folders_that_are_not_models(tmp_path):
  with pytest.raises(InputError, match=r"config.json does not exist"):
    hf.load_hf(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(InputError, match="not JSON"):
    hf.load_hf(tmp_path)
  exported(tmp_path)
  (tmp_path / "model.safetensors").write_text("")
  with pytest.raises(InputError, match="not a safetensors file"):
    hf.load_hf(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  with pytest.raises(InputError, match=r"neither model.safetensors nor"):
    hf.load_hf(tmp_path)


def test_a_tokenizer_travels_with_the_weights(tmp_path):
  tokenizer = train_sentencepiece(["some text"], path=tmp_path / "t.model")
  hf.save_hf(tmp_path / "out", FREE, params_of(FREE), tokenizer)
  assert load_tokenizer(tmp_path / "out").fingerprint == tokenizer.fingerprint
  fields = json.loads((tmp_path / "out" / "config.json").read_text())
  assert fields["eos_token_id"] == tokenizer.eos_id
  assert hf.read_config(tmp_path / "out") == FREE
