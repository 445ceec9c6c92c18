"""Hugging Face folders: exact round trips, and nothing read that is not understood."""

import functools
import itertools
import json
import threading
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from r1jax import trees
from r1jax.data.tokenizer import load_tokenizer, train_sentencepiece
from r1jax.errors import InputError
from r1jax.weights import assemble, hf, hf_config, tensor_files
from tests import tiny
from tests.weights import stored
from tests.weights.stored import MODELS, assert_equal

FREE, TIED, V3 = MODELS["llama"], MODELS["tied"], MODELS["deepseek_v3"]
Q0 = "model.layers.0.self_attn.q_proj.weight"
each_model = pytest.mark.parametrize("c", MODELS.values(), ids=MODELS)


@functools.cache
def params_of(c, dtype=jnp.float32):
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tiny.params(c))


def exported(folder, c=FREE, dtype=jnp.float32, **settings):
  hf.save_hf(folder, c, params_of(c, dtype), **settings)
  return folder


def edit(folder, change):
  """Applies `change` to the tensors of an exported folder."""
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)
  return folder


# ------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@each_model
def test_export_import_export_is_byte_equal(tmp_path, c, dtype):
  exported(tmp_path / "a", c, dtype)
  c_read, params_read = hf.load_hf(tmp_path / "a", dtype=dtype)
  assert c_read == c
  assert_equal(params_read, params_of(c, dtype))
  hf.save_hf(tmp_path / "b", c_read, params_read)
  for name in ("model.safetensors", "config.json"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
  ("name", "size", "on_host"),
  [(name, size, True) for name in MODELS for size in (1, 50, 250)]
  + [("llama", 50, False), ("deepseek_v3", 50, False)],
)
def test_blocks_make_the_same_parameters(tmp_path, monkeypatch, name, size, on_host):
  """Blocks that end within heads and experts; on CPUs and as on other devices."""
  c = MODELS[name]
  monkeypatch.setattr(assemble, "BLOCK_SIZE", size)
  monkeypatch.setattr(assemble, "_shares_memory", lambda device: on_host)
  exported(tmp_path, c)
  assert_equal(hf.load_hf(tmp_path)[1], params_of(c))


def test_every_entry_lands_where_torch_would_read_it(tmp_path):
  """torch.nn.Linear computes weight[out, in] @ x, heads folded into one axis."""
  tensors = safetensors.numpy.load_file(exported(tmp_path) / "model.safetensors")
  _, params = hf.load_hf(tmp_path)
  attn, mlp = params["layers"]["attn"], params["layers"]["mlp"]
  layer = "model.layers.1."
  n, h, d, f = 1, 4, 7, 13
  nh = n * FREE.head_dim + h
  for part in "qkv":
    got = tensors[f"{layer}self_attn.{part}_proj.weight"][nh, d]
    assert got == attn[part][1, d, n, h]
  assert tensors[layer + "self_attn.o_proj.weight"][d, nh] == attn["o"][1, n, h, d]
  assert tensors[layer + "mlp.gate_proj.weight"][f, d] == mlp["gate"][1, d, f]
  assert tensors[layer + "mlp.up_proj.weight"][f, d] == mlp["up"][1, d, f]
  assert tensors[layer + "mlp.down_proj.weight"][d, f] == mlp["down"][1, f, d]
  assert tensors["lm_head.weight"][5, d] == params["head"][d, 5]
  assert tensors["model.embed_tokens.weight"][5, d] == params["embed"][5, d]


def test_every_entry_of_a_deepseek_lands_where_it_is_meant(tmp_path):
  """Names and shapes of the released files; rotary pairs are neighbours in them."""
  tensors = safetensors.numpy.load_file(exported(tmp_path, V3) / "model.safetensors")
  params, m = params_of(V3), V3.latent
  attn, moe = params["layers"]["attn"], params["layers"]["moe"]
  layer, n, d, e = "model.layers.2.", 1, 7, 3
  q = tensors[layer + "self_attn.q_b_proj.weight"]
  kv = tensors[layer + "self_attn.kv_a_proj_with_mqa.weight"]
  for stored_at, ours_at in ((0, 0), (1, 2), (2, 1), (3, 3)):  # of the rotary part
    row = n * V3.head_dim + m.nope_dim + stored_at
    assert q[row, 5] == attn["q_up"][1, 5, n, m.nope_dim + ours_at]
    assert kv[m.kv_rank + stored_at, d] == attn["kv_down"][1, d, m.kv_rank + ours_at]
  assert q[n * V3.head_dim + 4, 5] == attn["q_up"][1, 5, n, 4]
  assert kv[4, d] == attn["kv_down"][1, d, 4]
  row = n * (m.nope_dim + m.value_dim) + 8
  assert (
    tensors[layer + "self_attn.kv_b_proj.weight"][row, 9] == (attn["kv_up"][1, 9, n, 8])
  )
  assert tensors[layer + "self_attn.q_a_layernorm.weight"][6] == attn["q_norm"][1, 6]
  assert tensors[layer + "mlp.gate.weight"][e, d] == moe["router"][1, d, e]
  assert tensors[layer + "mlp.gate.e_score_correction_bias"][e] == moe["bias"][1, e]
  assert (
    tensors[f"{layer}mlp.experts.{e}.down_proj.weight"][d, 2]
    == (moe["experts"]["down"][1, e, 2, d])
  )
  assert (
    tensors[layer + "mlp.shared_experts.up_proj.weight"][2, d]
    == (moe["shared"]["up"][1, d, 2])
  )
  dense = tensors["model.layers.0.mlp.up_proj.weight"]
  assert dense[2, d] == params["dense"]["mlp"]["up"][0, d, 2]
  last, mtp = "model.layers.3.", params["mtp"]
  assert tensors[last + "eh_proj.weight"][d, 20] == mtp["proj"][0, 20, d]
  assert tensors[last + "enorm.weight"][d] == mtp["embed_norm"][0, d]
  assert tensors[last + "hnorm.weight"][d] == mtp["hidden_norm"][0, d]
  assert tensors[last + "shared_head.norm.weight"][d] == mtp["norm"][0, d]
  for copy, original in (("shared_head.head", "lm_head"), ("embed_tokens",) * 2):
    original = original.replace("embed_tokens", "model.embed_tokens")
    np.testing.assert_array_equal(
      tensors[f"{last}{copy}.weight"], tensors[f"{original}.weight"]
    )


@pytest.mark.parametrize(
  ("name", "stored_name", "path"),
  [("qwen2", "k_proj.bias", "k_bias"), ("qwen3", "k_norm.weight", "k_norm")],
)
def test_biases_and_head_norms_have_their_names(tmp_path, name, stored_name, path):
  c = MODELS[name]
  tensors = safetensors.numpy.load_file(exported(tmp_path, c) / "model.safetensors")
  want = np.asarray(params_of(c)["layers"]["attn"][path][1]).ravel()
  got = tensors[f"model.layers.1.self_attn.{stored_name}"]
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_experts_of_a_layer_in_one_tensor(tmp_path, name):
  """As transformers 5 holds them, and stores them if it is told so."""
  c = MODELS[name]
  exported(tmp_path, c)
  path = tmp_path / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  for layer in range(c.dense_depth, c.depth + c.mtp_depth):
    prefix = f"model.layers.{layer}.mlp.experts."
    gate, up, down = (
      np.stack(
        [tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(c.experts.count)]
      )
      for part in ("gate", "up", "down")
    )
    tensors[f"{prefix}gate_up_proj"] = np.concatenate([gate, up], axis=1)
    tensors[f"{prefix}down_proj"] = down
  safetensors.numpy.save_file(tensors, path)
  assert_equal(hf.load_hf(tmp_path)[1], params_of(c))


def test_stored_types_are_rounded_to_the_one_asked_for(tmp_path):
  """The numbers by which experts are chosen keep theirs."""
  exported(tmp_path, V3)
  want = params_of(V3, jnp.bfloat16)
  assert_equal(hf.load_hf(tmp_path, dtype=jnp.bfloat16)[1], want)
  hf.save_hf(tmp_path, V3, params_of(V3), dtype=jnp.bfloat16)
  got = trees.flatten(hf.load_hf(tmp_path)[1])
  for path, array in trees.flatten(params_of(V3)).items():
    kept = array if path.endswith("moe/bias") else array.astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(got[path]), np.asarray(kept, np.float32))
  assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


# ------------------------------------------------------------------------------ files


@each_model
def test_shards_with_an_index_are_one_model(tmp_path, c):
  limit = 9000
  hf.save_hf(tmp_path, c, params_of(c), max_shard_bytes=limit)
  files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
  count = len(files)
  assert count > 1
  assert files[0] == f"model-00001-of-{count:05}.safetensors"
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  held = {name: safetensors.numpy.load_file(tmp_path / name) for name in files}
  sizes = [sum(x.nbytes for x in tensors.values()) for tensors in held.values()]
  assert index["metadata"]["total_size"] == sum(sizes)
  assert index["weight_map"] == {
    key: name for name, tensors in held.items() for key in tensors
  }
  for tensors, size in zip(held.values(), sizes, strict=True):
    assert size <= limit or len(tensors) == 1
  assert_equal(hf.load_hf(tmp_path)[1], params_of(c))


def test_a_folder_holds_the_last_export_only(tmp_path):
  exported(tmp_path, max_shard_bytes=5000)
  exported(tmp_path, TIED)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "config.json",
    "model.safetensors",
  ]
  assert hf.load_hf(tmp_path)[0] == TIED


def test_layers_lie_in_order(tmp_path):
  c = tiny.config(depth=11, tied_head=False)
  hf.save_hf(tmp_path, c, params_of(c), max_shard_bytes=20_000)
  where = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  numbers = {}
  for key, file in where["weight_map"].items():
    if "layers" in key:
      numbers.setdefault(file, set()).add(int(key.split(".")[2]))
  spans = [numbers[file] for file in sorted(numbers)]
  for before, after in itertools.pairwise(spans):
    assert max(before) <= min(after)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
  exported(tmp_path, max_shard_bytes=9000)
  first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
  tensors = safetensors.numpy.load_file(first) | safetensors.numpy.load_file(second)
  safetensors.numpy.save_file(tensors, second)
  with pytest.raises(InputError, match="duplicate tensor"):
    hf.load_hf(tmp_path)


def test_a_folder_is_as_it_was_until_all_weights_are_written(tmp_path, monkeypatch):
  exported(tmp_path)

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(tensor_files.np, "ascontiguousarray", full)
  with pytest.raises(OSError, match="No space"):
    hf.save_hf(tmp_path, TIED, params_of(TIED))
  monkeypatch.undo()
  assert_equal(hf.load_hf(tmp_path)[1], params_of(FREE))


# -------------------------------------------------------------------------- streaming


def spied(monkeypatch):
  """Sizes of all parts that are read."""
  sizes, lock, read = [], threading.Lock(), tensor_files.TensorFiles.read

  def reading(self, name, index):
    part = read(self, name, index)
    with lock:
      sizes.append(part.size)
    return part

  monkeypatch.setattr(tensor_files.TensorFiles, "read", reading)
  return sizes


def test_no_more_than_a_block_is_read_at_once(tmp_path, monkeypatch):
  sizes = spied(monkeypatch)
  exported(tmp_path)
  monkeypatch.setattr(assemble, "BLOCK_SIZE", 100)
  hf.load_hf(tmp_path)
  # A head's rows, which are not cut, are 8 x 16 numbers.
  assert max(sizes) == 128
  assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(params_of(FREE)))


def test_the_host_holds_blocks_beside_the_parameters(tmp_path, monkeypatch):
  """However large the tensors and their stacks are."""
  c = tiny.config(depth=6, width=128, ffw=1024, vocab=4096, tied_head=False)
  params = params_of(c)
  hf.save_hf(tmp_path, c, params)
  monkeypatch.setattr(assemble, "BLOCK_SIZE", 1 << 13)
  monkeypatch.setattr(assemble, "_THREADS", 2)
  hf.load_hf(tmp_path)
  tracemalloc.start()
  hf.load_hf(tmp_path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # Nothing is copied when jax takes over what is larger than a block.
  own = trees.num_bytes(params)
  assert own < peak < own + 128 * 4096 * 4


def test_parameters_can_be_donated(tmp_path, monkeypatch):
  """jax does not own what it took over, and must not write to it."""
  monkeypatch.setattr(assemble, "BLOCK_SIZE", 10)
  _, params = hf.load_hf(exported(tmp_path))
  twice = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
  assert_equal(twice(params), jax.tree.map(lambda x: 2 * x, params_of(FREE)))


def test_faults_are_found_before_anything_is_read(tmp_path, monkeypatch):
  folder = edit(exported(tmp_path), lambda t: t.pop("lm_head.weight"))
  sizes = spied(monkeypatch)
  with pytest.raises(InputError, match=r"missing lm_head.weight"):
    hf.load_hf(folder)
  assert not sizes


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop(Q0), f"missing {Q0}"),
    (lambda t: t.update({"model.extra": t[Q0]}), "unknown model.extra"),
    (
      lambda t: t.update({Q0: t[Q0][:-1].copy()}),
      r"q_proj.weight is \(31, 16\), the config says \(32, 16\)",
    ),
    (
      lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[Q0]}),
      "unknown model.layers.2.mlp.up_proj.weight",
    ),
    (lambda t: t.update({Q0: t[Q0].astype(np.int8)}), "is stored as I8"),
    (
      lambda t: t.update({Q0: t[Q0].astype(jnp.float8_e4m3fn)}),
      "is stored as F8_E4M3; allowed: F32, F16, BF16",
    ),
  ],
  ids=["missing", "unknown", "shape", "layer", "type", "float8"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
  """R2: nothing is left at its initial value, nothing is left unread."""
  with pytest.raises(InputError, match=message):
    hf.load_hf(edit(exported(tmp_path), change))


@pytest.mark.parametrize(
  ("c", "copy", "original", "why"),
  [
    (TIED, "lm_head", "model.embed_tokens", "tie_word_embeddings is true"),
    (V3, "model.layers.3.embed_tokens", "model.embed_tokens", "shares it"),
    (V3, "model.layers.3.shared_head.head", "lm_head", "shares it"),
  ],
)
def test_a_tensor_stored_twice_must_be_the_same(
  tmp_path, monkeypatch, c, copy, original, why
):
  monkeypatch.setattr(assemble, "BLOCK_SIZE", 64)
  copy, original = f"{copy}.weight", f"{original}.weight"
  folder = exported(tmp_path, c)
  edit(folder, lambda t: t.update({copy: t[original].copy()}))
  assert_equal(hf.load_hf(folder)[1], params_of(c))

  def change(tensors):
    tensors[copy][-1, -1] += 1

  edit(folder, change)
  with pytest.raises(InputError, match=f"{copy} differs from {original}, yet .*{why}"):
    hf.load_hf(folder)
  edit(folder, lambda t: t.pop(copy))
  assert_equal(hf.load_hf(folder)[1], params_of(c))


def test_a_module_that_the_config_has_and_the_files_do_not(tmp_path):
  """transformers saves the field, and not the module."""

  def drop(tensors):
    for name in [name for name in tensors if name.startswith("model.layers.3.")]:
      del tensors[name]

  folder = edit(exported(tmp_path, V3), drop)
  with pytest.raises(
    InputError, match=r"num_nextn_predict_layers=1.*model\.layers\.3\.eh_proj.*to 0"
  ):
    hf.load_hf(folder)
  fields = json.loads((folder / "config.json").read_text())
  fields["num_nextn_predict_layers"] = 0
  (folder / "config.json").write_text(json.dumps(fields))
  c, params = hf.load_hf(folder)
  assert c.mtp_depth == 0
  want = {key: tree for key, tree in params_of(V3).items() if key != "mtp"}
  assert_equal(params, want)


def test_rotary_wavelengths_of_old_files_are_passed_over(tmp_path):
  name = "model.layers.0.self_attn.rotary_emb.inv_freq"
  folder = edit(exported(tmp_path), lambda t: t.update({name: np.ones(3, np.float32)}))
  assert_equal(hf.load_hf(folder)[1], params_of(FREE))


def test_folders_that_are_not_models(tmp_path):
  with pytest.raises(InputError, match=r"config.json does not exist"):
    hf.load_hf(tmp_path)
  exported(tmp_path)
  (tmp_path / "model.safetensors").write_text("")
  with pytest.raises(InputError, match="not a safetensors file"):
    hf.load_hf(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  with pytest.raises(InputError, match=r"neither model.safetensors nor"):
    hf.load_hf(tmp_path)
  index = tmp_path / "model.safetensors.index.json"
  index.write_text('{"weight_map": {"a": "absent.safetensors"}}')
  with pytest.raises(InputError, match=r"absent.safetensors: not a safetensors file"):
    hf.load_hf(tmp_path)
  index.write_text("{}")
  with pytest.raises(InputError, match="not an index with a weight_map"):
    hf.load_hf(tmp_path)


@pytest.mark.parametrize("cut", [3, 20])
def test_a_file_that_was_cut_off(tmp_path, cut):
  path = exported(tmp_path) / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-cut])
  with pytest.raises(InputError, match="not a safetensors file"):
    hf.load_hf(tmp_path)


# -------------------------------------------------------------------- what lies beside


def test_a_tokenizer_travels_with_the_weights(tmp_path):
  tokenizer = train_sentencepiece(["some text"], path=tmp_path / "t.model")
  out = exported(tmp_path / "out", tokenizer=tokenizer)
  assert load_tokenizer(out).fingerprint == tokenizer.fingerprint
  fields = json.loads((out / "config.json").read_text())
  generation = json.loads((out / "generation_config.json").read_text())
  assert fields["eos_token_id"] == tokenizer.eos_id
  assert generation == {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": list(tokenizer.stop_ids),
    "pad_token_id": tokenizer.pad_id,
  }
  assert hf_config.read_config(out) == FREE
  assert not [path for path in out.iterdir() if path.name.endswith(".part")]


def test_stored_tensors_have_the_shapes_of_their_pieces():
  """Of the helper that other tests write files with."""
  layout = hf.layout(V3)
  tensors = stored.tensors(V3, layout, params_of(V3))
  shapes = assemble.stored_shapes(V3, layout)
  assert {name: array.shape for name, array in tensors.items()} == shapes
