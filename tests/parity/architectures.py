"""Small models of every architecture, as folders that transformers and r1jax read.

Neither torch nor r1jax is used here, so that the script that records the reference and
the test that compares with it make the same weights, each on its own.
"""

import json
import os
import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

RECORDED = pathlib.Path(__file__).parent / "architectures.json"
ROWS, LENGTH = 2, 40  # tokens
# Row and position of the logits that are recorded.
PLACES = ((0, 0), (0, 21), (1, 39))

_COMMON = {
  "attention_dropout": 0.0,
  "bos_token_id": 0,
  "eos_token_id": 1,
  "hidden_act": "silu",
  "initializer_range": 0.02,
  "max_position_embeddings": 128,
  "tie_word_embeddings": False,
  "torch_dtype": "float32",
  "use_cache": True,
}
_LLAMA = _COMMON | {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "attention_bias": False,
  "mlp_bias": False,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-3,
  "rope_scaling": None,
}
_QWEN2 = _COMMON | {
  "architectures": ["Qwen2ForCausalLM"],
  "model_type": "qwen2",
  "max_window_layers": 2,
  "rms_norm_eps": 2e-3,
  "rope_theta": 1_000.0,
  "sliding_window": 8,
  "use_sliding_window": False,
}
_QWEN3 = _QWEN2 | {
  "architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3",
  "attention_bias": False,
  "rope_scaling": None,
  "sliding_window": None,
}
_QWEN3_MOE = _QWEN3 | {
  "architectures": ["Qwen3MoeForCausalLM"],
  "model_type": "qwen3_moe",
  "decoder_sparse_step": 1,
  "head_dim": 8,
  "hidden_size": 28,
  "intermediate_size": 40,
  "mlp_only_layers": [],
  "moe_intermediate_size": 11,
  "num_attention_heads": 4,
  "num_experts": 9,
  "num_experts_per_tok": 3,
  "num_hidden_layers": 2,
  "num_key_value_heads": 2,
  "output_router_logits": False,
  "router_aux_loss_coef": 0.001,
  "vocab_size": 61,
}
# The norms of the latents have eps 1e-6, whatever rms_norm_eps says.
_DEEPSEEK = _COMMON | {
  "attention_bias": False,
  "aux_loss_alpha": 0.001,
  "first_k_dense_replace": 1,
  "moe_layer_freq": 1,
  "pretraining_tp": 1,
  "rms_norm_eps": 2e-3,
  "rope_theta": 20.0,
  "seq_aux": True,
}
# transformers neither normalises V2's gates nor has another score than softmax; and its
# complex numbers need an even width in front of the rotary part. In dropped groups it
# sets scores to 0, which chooses as -inf does: a softmax is never below 0.
_DEEPSEEK_V2 = _DEEPSEEK | {
  "architectures": ["DeepseekV2ForCausalLM"],
  "model_type": "deepseek_v2",
  "norm_topk_prob": False,
  "scoring_func": "softmax",
}
_DEEPSEEK_V3 = _DEEPSEEK | {
  "architectures": ["DeepseekV3ForCausalLM"],
  "model_type": "deepseek_v3",
  "ep_size": 1,
  "scoring_func": "sigmoid",
  "topk_method": "noaux_tc",
}


def _yarn(mscale: float, mscale_all_dim: float) -> dict[str, Any]:
  return {
    "beta_fast": 2,
    "beta_slow": 1,
    "factor": 8,
    "mscale": mscale,
    "mscale_all_dim": mscale_all_dim,
    "original_max_position_embeddings": 32,
    "type": "yarn",
  }


class Architecture(NamedTuple):
  """config.json as released models of the kind have it, and seeds of the weights."""

  fields: dict[str, Any]
  seeds: tuple[int, ...]


ARCHITECTURES = {
  "llama": Architecture(  # one key head a query head
    _LLAMA
    | {
      "hidden_size": 20,
      "intermediate_size": 27,
      "num_attention_heads": 5,
      "num_hidden_layers": 2,
      "num_key_value_heads": 5,
      "rope_theta": 10_000.0,
      "vocab_size": 53,
    },
    seeds=(0, 1),
  ),
  "llama_grouped_tied": Architecture(
    _LLAMA
    | {
      "hidden_size": 36,
      "intermediate_size": 50,
      "num_attention_heads": 6,
      "num_hidden_layers": 3,
      "num_key_value_heads": 2,
      "rope_theta": 10_000.0,
      "tie_word_embeddings": True,
      "vocab_size": 67,
    },
    seeds=(2, 3),
  ),
  "llama3": Architecture(  # some wavelengths below 8, between 8 and 32, and above
    _LLAMA
    | {
      "head_dim": 16,
      "hidden_size": 27,
      "intermediate_size": 35,
      "num_attention_heads": 3,
      "num_hidden_layers": 2,
      "num_key_value_heads": 1,
      "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 32,
        "rope_type": "llama3",
      },
      "rope_theta": 500.0,
      "tie_word_embeddings": True,
      "vocab_size": 71,
    },
    seeds=(4, 5),
  ),
  "qwen2": Architecture(
    _QWEN2
    | {
      "hidden_size": 28,
      "intermediate_size": 37,
      "num_attention_heads": 2,
      "num_hidden_layers": 3,
      "num_key_value_heads": 1,
      "vocab_size": 59,
    },
    seeds=(6, 7),
  ),
  "qwen2_tied_yarn": Architecture(
    _QWEN2
    | {
      "hidden_size": 32,
      "intermediate_size": 45,
      "num_attention_heads": 4,
      "num_hidden_layers": 2,
      "num_key_value_heads": 2,
      "rope_scaling": {
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "type": "yarn",
      },
      "rope_theta": 20.0,
      "tie_word_embeddings": True,
      "vocab_size": 63,
    },
    seeds=(8, 9),
  ),
  "qwen3_tied": Architecture(
    _QWEN3
    | {
      "head_dim": 10,
      "hidden_size": 26,
      "intermediate_size": 33,
      "num_attention_heads": 4,
      "num_hidden_layers": 3,
      "num_key_value_heads": 2,
      "tie_word_embeddings": True,
      "vocab_size": 57,
    },
    seeds=(10, 11),
  ),
  "qwen3_yarn": Architecture(
    _QWEN3
    | {
      "head_dim": 12,
      "hidden_size": 25,
      "intermediate_size": 31,
      "num_attention_heads": 3,
      "num_hidden_layers": 2,
      "num_key_value_heads": 3,
      "rope_scaling": {
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_type": "yarn",
        "attention_factor": 1.25,
        "truncate": False,
      },
      "rope_theta": 20.0,
      "vocab_size": 65,
    },
    seeds=(12, 13),
  ),
  "qwen3_moe": Architecture(_QWEN3_MOE | {"norm_topk_prob": True}, seeds=(14, 15)),
  "qwen3_moe_unnormalised": Architecture(
    _QWEN3_MOE | {"norm_topk_prob": False, "tie_word_embeddings": True}, seeds=(16, 17)
  ),
  "deepseek_v2_lite": Architecture(
    _DEEPSEEK_V2
    | {
      "hidden_size": 30,
      "intermediate_size": 41,
      "kv_lora_rank": 14,
      "moe_intermediate_size": 9,
      "n_group": 1,
      "n_routed_experts": 7,
      "n_shared_experts": 2,
      "num_attention_heads": 3,
      "num_experts_per_tok": 3,
      "num_hidden_layers": 3,
      "num_key_value_heads": 3,
      "q_lora_rank": None,
      "qk_nope_head_dim": 6,
      "qk_rope_head_dim": 8,
      "rope_scaling": _yarn(0.707, 0.707),
      "routed_scaling_factor": 1.0,
      "topk_group": 1,
      "topk_method": "greedy",
      "v_head_dim": 5,
      "vocab_size": 69,
    },
    seeds=(18, 19),
  ),
  "deepseek_v2": Architecture(  # two scales that differ: cos and sin have a gain
    _DEEPSEEK_V2
    | {
      "hidden_size": 32,
      "intermediate_size": 43,
      "kv_lora_rank": 10,
      "moe_intermediate_size": 10,
      "n_group": 3,
      "n_routed_experts": 12,
      "n_shared_experts": 1,
      "num_attention_heads": 4,
      "num_experts_per_tok": 3,
      "num_hidden_layers": 3,
      "num_key_value_heads": 4,
      "q_lora_rank": 17,
      "qk_nope_head_dim": 6,
      "qk_rope_head_dim": 10,
      "rope_scaling": _yarn(1.0, 0.707),
      "routed_scaling_factor": 3.0,
      "topk_group": 2,
      "topk_method": "group_limited_greedy",
      "v_head_dim": 9,
      "vocab_size": 55,
    },
    seeds=(20, 21),
  ),
  "deepseek_v3": Architecture(
    _DEEPSEEK_V3
    | {
      "hidden_size": 34,
      "intermediate_size": 47,
      "kv_lora_rank": 15,
      "moe_intermediate_size": 12,
      "n_group": 4,
      "n_routed_experts": 12,
      "n_shared_experts": 1,
      "norm_topk_prob": True,
      "num_attention_heads": 3,
      "num_experts_per_tok": 4,
      "num_hidden_layers": 3,
      "num_key_value_heads": 3,
      "num_nextn_predict_layers": 1,
      "q_lora_rank": 19,
      "qk_nope_head_dim": 9,
      "qk_rope_head_dim": 8,
      "rope_scaling": _yarn(1.0, 1.0),
      "routed_scaling_factor": 2.5,
      "topk_group": 2,
      "v_head_dim": 11,
      "vocab_size": 51,
    },
    seeds=(22, 23),
  ),
  "deepseek_v3_plain": Architecture(  # no query latent, groups, scaling, MTP module
    _DEEPSEEK_V3
    | {
      "first_k_dense_replace": 2,
      "hidden_size": 22,
      "intermediate_size": 29,
      "kv_lora_rank": 10,
      "moe_intermediate_size": 7,
      "n_group": 1,
      "n_routed_experts": 5,
      "n_shared_experts": 2,
      "norm_topk_prob": False,
      "num_attention_heads": 2,
      "num_experts_per_tok": 2,
      "num_hidden_layers": 4,
      "num_key_value_heads": 2,
      "num_nextn_predict_layers": 0,
      "q_lora_rank": None,
      "qk_nope_head_dim": 5,
      "qk_rope_head_dim": 6,
      "rope_scaling": None,
      "rope_theta": 1_000.0,
      "routed_scaling_factor": 1.3,
      "topk_group": 1,
      "v_head_dim": 8,
      "vocab_size": 49,
    },
    seeds=(24, 25),
  ),
}


def shapes(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """{stored name: shape} of all tensors of a released model, matrices as [out, in]."""
  d, vocab, depth = (
    fields[key] for key in ("hidden_size", "vocab_size", "num_hidden_layers")
  )
  further = fields.get("num_nextn_predict_layers", 0)
  named = {"model.embed_tokens": (vocab, d), "model.norm": (d,)}
  if not fields["tie_word_embeddings"]:
    named["lm_head"] = (vocab, d)
  for z in range(depth + further):
    layer = {"input_layernorm": (d,), "post_attention_layernorm": (d,)}
    attention = _latent if "kv_lora_rank" in fields else _grouped
    layer |= {f"self_attn.{k}": v for k, v in attention(fields).items()}
    layer |= {f"mlp.{k}": v for k, v in _feed_forward(fields, z).items()}
    if z >= depth:
      layer |= {"enorm": (d,), "hnorm": (d,), "eh_proj": (d, 2 * d)}
      layer |= {"embed_tokens": (vocab, d), "shared_head.head": (vocab, d)}
      layer["shared_head.norm"] = (d,)
    named |= {f"model.layers.{z}.{k}": v for k, v in layer.items()}
  whole = (".bias", ".e_score_correction_bias")
  return {k if k.endswith(whole) else f"{k}.weight": v for k, v in named.items()}


def _grouped(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  d, heads = fields["hidden_size"], fields["num_attention_heads"]
  h = fields.get("head_dim", d // heads)
  outs = {"q_proj": heads * h}
  outs["k_proj"] = outs["v_proj"] = fields["num_key_value_heads"] * h
  named = {name: (out, d) for name, out in outs.items()}
  named["o_proj"] = (d, heads * h)
  if fields["model_type"] == "qwen2":
    named |= {f"{name}.bias": (out,) for name, out in outs.items()}
  if fields["model_type"].startswith("qwen3"):
    named |= {"q_norm": (h,), "k_norm": (h,)}
  return named


def _latent(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  d, heads, q_rank, kv_rank, nope, rope, value = (
    fields[key]
    for key in (
      *("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank"),
      *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    )
  )
  named = {
    "kv_a_proj_with_mqa": (kv_rank + rope, d),
    "kv_a_layernorm": (kv_rank,),
    "kv_b_proj": (heads * (nope + value), kv_rank),
    "o_proj": (d, heads * value),
  }
  if q_rank is None:
    return named | {"q_proj": (heads * (nope + rope), d)}
  return named | {
    "q_a_proj": (q_rank, d),
    "q_a_layernorm": (q_rank,),
    "q_b_proj": (heads * (nope + rope), q_rank),
  }


def _feed_forward(fields: dict[str, Any], z: int) -> dict[str, tuple[int, ...]]:
  d = fields["hidden_size"]

  def block(prefix: str, hidden: int):
    up = (hidden, d)
    named = {"gate_proj": up, "up_proj": up, "down_proj": (d, hidden)}
    return {prefix + name: shape for name, shape in named.items()}

  count = fields.get("num_experts", fields.get("n_routed_experts"))
  if count is None or z < fields.get("first_k_dense_replace", 0):
    return block("", fields["intermediate_size"])
  hidden = fields["moe_intermediate_size"]
  named = {"gate": (count, d)}
  if fields["model_type"] == "deepseek_v3":
    named["gate.e_score_correction_bias"] = (count,)
  for expert in range(count):
    named |= block(f"experts.{expert}.", hidden)
  if "n_shared_experts" in fields:
    named |= block("shared_experts.", fields["n_shared_experts"] * hidden)
  return named


def uniform(seed: int, what: str, shape: tuple[int, ...]) -> np.ndarray:
  """Numbers of mean 0 and variance 1; those of a seed and a text are always the same.

  RandomState is the one generator of numpy whose numbers are promised to stay, and no
  logarithm that a platform may round in its own way goes into a uniform number.
  """
  random = np.random.RandomState([seed, zlib.crc32(what.encode())])
  return random.uniform(-(3.0**0.5), 3.0**0.5, shape)


def weights(fields: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
  """{stored name: float32 array}: activations of size 1, norms and biases that act."""
  made = {}
  for name, shape in shapes(fields).items():
    # The MTP module's embedding and head are copies.
    layer = f"model.layers.{fields['num_hidden_layers']}."
    drawn = name.replace(f"{layer}shared_head.head", "lm_head")
    drawn = drawn.replace(f"{layer}embed_tokens", "model.embed_tokens")
    made[name] = _scaled(drawn, uniform(seed, drawn, shape)).astype(np.float32)
  return made


def _scaled(name: str, unit: np.ndarray) -> np.ndarray:
  if name.endswith("norm.weight"):
    return 1 + 0.2 * unit
  if name.endswith("embed_tokens.weight"):
    return 0.5 * unit
  if name.endswith("e_score_correction_bias"):
    # Most biased scores are below 0: where dropped groups are masked by 0 and not by
    # -inf, as in early ports of V3, other experts are chosen.
    return 0.2 * unit - 0.8
  if name.endswith(".bias"):
    return 0.3 * unit
  sharpness = 2.0 if name.endswith("mlp.gate.weight") else 1.0  # of a router
  return sharpness * unit / unit.shape[1] ** 0.5


def tokens(fields: dict[str, Any], seed: int) -> np.ndarray:
  """int64 [ROWS, LENGTH]."""
  unit = uniform(seed, "tokens", (ROWS, LENGTH)) / 12**0.5 + 0.5
  return (unit * fields["vocab_size"]).astype(np.int64)


def write(
  folder: str | os.PathLike, fields: dict[str, Any], tensors: dict[str, np.ndarray]
) -> None:
  """config.json and one file of weights, as a released model's folder has them."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
  path = folder / "model.safetensors"
  safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def checksum(tensors: dict[str, np.ndarray]) -> int:
  """Of all names and numbers: tells whether two sides have made the same weights."""
  total = 0
  for name, array in sorted(tensors.items()):
    total = zlib.crc32(name.encode(), total)
    total = zlib.crc32(np.ascontiguousarray(array).tobytes(), total)
  return total


def measured(seed: int, gradients: dict[str, np.ndarray]) -> dict[str, list[float]]:
  """{stored name: [norm, projection on a direction of the seed]} of gradients."""
  results = {}
  for name, gradient in gradients.items():
    gradient = gradient.astype(np.float64)
    direction = uniform(seed, f"direction of {name}", gradient.shape)
    results[name] = [
      float(np.linalg.norm(gradient)),
      float((gradient * direction).sum()),
    ]
  return results


def every_case() -> list[tuple[str, int]]:
  """(name, seed) of all of them."""
  return [
    (name, seed)
    for name, architecture in ARCHITECTURES.items()
    for seed in architecture.seeds
  ]
