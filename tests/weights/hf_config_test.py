"""config.json: published files are the presets, and nothing is read that is not meant.

The files are written down as released models have them, fields that do not matter here
included.
"""

import dataclasses
import json

import pytest

from r1jax.errors import InputError
from r1jax.models import rope
from r1jax.models.config import Experts, Latent, Llama3Rope, ModelConfig, YarnRope
from r1jax.models.presets import PRESETS
from r1jax.weights import hf_config

SMOLLM2_135M = {
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
LLAMA_3_1_8B = {
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 128000,
  "eos_token_id": 128001,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 14336,
  "max_position_embeddings": 131072,
  "mlp_bias": False,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  },
  "rope_theta": 500000.0,
  "tie_word_embeddings": False,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.43.0.dev0",
  "use_cache": True,
  "vocab_size": 128256,
}
LLAMA_3_2_1B = LLAMA_3_1_8B | {
  "head_dim": 64,
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "num_hidden_layers": 16,
  "rope_scaling": LLAMA_3_1_8B["rope_scaling"] | {"factor": 32.0},
  "tie_word_embeddings": True,
}
QWEN2_5_1_5B = {
  "architectures": ["Qwen2ForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151643,
  "hidden_act": "silu",
  "hidden_size": 1536,
  "initializer_range": 0.02,
  "intermediate_size": 8960,
  "max_position_embeddings": 131072,
  "max_window_layers": 28,
  "model_type": "qwen2",
  "num_attention_heads": 12,
  "num_hidden_layers": 28,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 131072,
  "tie_word_embeddings": True,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1",
  "use_cache": True,
  "use_mrope": False,
  "use_sliding_window": False,
  "vocab_size": 151936,
}
QWEN2_5_MATH_1_5B = QWEN2_5_1_5B | {
  "max_position_embeddings": 4096,
  "max_window_layers": 21,
  "rope_theta": 10000,
  "sliding_window": 4096,
  "transformers_version": "4.44.0",
}
R1_DISTILL_QWEN_1_5B = QWEN2_5_MATH_1_5B | {
  "max_position_embeddings": 131072,
  "tie_word_embeddings": False,
}
QWEN3_0_6B = {
  "architectures": ["Qwen3ForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151645,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 1024,
  "initializer_range": 0.02,
  "intermediate_size": 3072,
  "max_position_embeddings": 40960,
  "max_window_layers": 28,
  "model_type": "qwen3",
  "num_attention_heads": 16,
  "num_hidden_layers": 28,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": None,
  "rope_theta": 1000000,
  "sliding_window": None,
  "tie_word_embeddings": True,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.51.0",
  "use_cache": True,
  "use_sliding_window": False,
  "vocab_size": 151936,
}
QWEN3_30B_A3B = QWEN3_0_6B | {
  "architectures": ["Qwen3MoeForCausalLM"],
  "decoder_sparse_step": 1,
  "hidden_size": 2048,
  "intermediate_size": 6144,
  "max_window_layers": 48,
  "mlp_only_layers": [],
  "model_type": "qwen3_moe",
  "moe_intermediate_size": 768,
  "norm_topk_prob": True,
  "num_attention_heads": 32,
  "num_experts": 128,
  "num_experts_per_tok": 8,
  "num_hidden_layers": 48,
  "num_key_value_heads": 4,
  "output_router_logits": False,
  "router_aux_loss_coef": 0.001,
  "tie_word_embeddings": False,
}
DEEPSEEK_V2_LITE = {
  "architectures": ["DeepseekV2ForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "auto_map": {
    "AutoConfig": "configuration_deepseek.DeepseekV2Config",
    "AutoModel": "modeling_deepseek.DeepseekV2Model",
    "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM",
  },
  "aux_loss_alpha": 0.001,
  "bos_token_id": 100000,
  "eos_token_id": 100001,
  "first_k_dense_replace": 1,
  "hidden_act": "silu",
  "hidden_size": 2048,
  "initializer_range": 0.02,
  "intermediate_size": 10944,
  "kv_lora_rank": 512,
  "max_position_embeddings": 163840,
  "model_type": "deepseek_v2",
  "moe_intermediate_size": 1408,
  "moe_layer_freq": 1,
  "n_group": 1,
  "n_routed_experts": 64,
  "n_shared_experts": 2,
  "norm_topk_prob": False,
  "num_attention_heads": 16,
  "num_experts_per_tok": 6,
  "num_hidden_layers": 27,
  "num_key_value_heads": 16,
  "pretraining_tp": 1,
  "q_lora_rank": None,
  "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64,
  "rms_norm_eps": 1e-06,
  "rope_scaling": {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
  },
  "rope_theta": 10000,
  "routed_scaling_factor": 1.0,
  "scoring_func": "softmax",
  "seq_aux": True,
  "tie_word_embeddings": False,
  "topk_group": 1,
  "topk_method": "greedy",
  "torch_dtype": "bfloat16",
  "transformers_version": "4.33.1",
  "use_cache": True,
  "v_head_dim": 128,
  "vocab_size": 102400,
}
DEEPSEEK_V3 = DEEPSEEK_V2_LITE | {
  "architectures": ["DeepseekV3ForCausalLM"],
  "bos_token_id": 0,
  "eos_token_id": 1,
  "ep_size": 1,
  "first_k_dense_replace": 3,
  "hidden_size": 7168,
  "intermediate_size": 18432,
  "model_type": "deepseek_v3",
  "moe_intermediate_size": 2048,
  "n_group": 8,
  "n_routed_experts": 256,
  "n_shared_experts": 1,
  "norm_topk_prob": True,
  "num_attention_heads": 128,
  "num_experts_per_tok": 8,
  "num_hidden_layers": 61,
  "num_key_value_heads": 128,
  "num_nextn_predict_layers": 1,
  "q_lora_rank": 1536,
  "rope_scaling": DEEPSEEK_V2_LITE["rope_scaling"]
  | {"mscale": 1.0, "mscale_all_dim": 1.0},
  "routed_scaling_factor": 2.5,
  "scoring_func": "sigmoid",
  "topk_group": 4,
  "topk_method": "noaux_tc",
  "vocab_size": 129280,
}
FP8 = {
  "activation_scheme": "dynamic",
  "fmt": "e4m3",
  "quant_method": "fp8",
  "weight_block_size": [128, 128],
}
PUBLISHED = {
  "smollm2-135m": SMOLLM2_135M,
  "llama-3.1-8b": LLAMA_3_1_8B,
  "llama-3.2-1b": LLAMA_3_2_1B,
  "qwen2.5-1.5b": QWEN2_5_1_5B,
  "qwen2.5-math-1.5b": QWEN2_5_MATH_1_5B,
  "r1-distill-qwen-1.5b": R1_DISTILL_QWEN_1_5B,
  "qwen3-0.6b": QWEN3_0_6B,
  "qwen3-30b-a3b": QWEN3_30B_A3B,
  "deepseek-v2-lite": DEEPSEEK_V2_LITE,
  "deepseek-v3": DEEPSEEK_V3,
}

# Odd shapes of each architecture, no two numbers alike where they may differ.
DENSE = ModelConfig(
  depth=3, width=20, heads=4, kv_heads=2, head_dim=6, ffw=13, vocab=31, name="odd"
)
MIXTURE = dataclasses.replace(
  DENSE, qk_norm=True, experts=Experts(count=9, per_token=2, ffw=7, normalise=False)
)
MLA = Latent(q_rank=11, kv_rank=9, nope_dim=6, rope_dim=8, value_dim=3)
V3 = dataclasses.replace(
  DENSE,
  kv_heads=4,
  head_dim=14,
  norm_eps=1e-6,
  latent=MLA,
  experts=Experts(
    count=12,
    per_token=3,
    ffw=7,
    shared=2,
    first_dense=1,
    scores="sigmoid",
    bias=True,
    groups=4,
    kept_groups=2,
    group_score="top2",
    scale=1.7,
  ),
)
V2 = dataclasses.replace(
  V3,
  experts=Experts(
    count=12, per_token=3, ffw=7, shared=1, first_dense=2, normalise=False, scale=16.0
  ),
)
LLAMA3 = Llama3Rope(factor=3.0, original_length=17, low_freq=1.5, high_freq=5.0)
YARN = YarnRope(factor=2.5, original_length=19)
DEEP_YARN = YarnRope(
  factor=8.0,
  original_length=23,
  beta_fast=16.0,
  beta_slow=2.0,
  mscale=0.9,
  mscale_all_dim=0.7,
)
GAIN_YARN = dataclasses.replace(YARN, attention_factor=1.25, truncate=False)


def with_experts(c: ModelConfig, **changes) -> ModelConfig:
  return dataclasses.replace(c, experts=dataclasses.replace(c.experts, **changes))


ODD = [
  DENSE,
  dataclasses.replace(DENSE, tied_head=False, norm_eps=3e-6, max_length=77),
  dataclasses.replace(DENSE, kv_heads=4, rope_base=123.5, rope_scaling=LLAMA3),
  dataclasses.replace(DENSE, rope_scaling=YARN),
  dataclasses.replace(DENSE, qkv_bias=True),
  dataclasses.replace(DENSE, qkv_bias=True, width=21, rope_scaling=GAIN_YARN),
  dataclasses.replace(DENSE, qk_norm=True, width=21, rope_scaling=LLAMA3),
  MIXTURE,
  with_experts(MIXTURE, normalise=True),
  dataclasses.replace(MIXTURE, tied_head=False, rope_scaling=YARN),
  V2,
  dataclasses.replace(V2, latent=dataclasses.replace(MLA, q_rank=0)),
  dataclasses.replace(V2, rope_scaling=DEEP_YARN),
  with_experts(V2, groups=6, kept_groups=4, shared=0),
  V3,
  dataclasses.replace(V3, mtp_depth=1, rope_scaling=DEEP_YARN, tied_head=False),
  dataclasses.replace(V3, latent=dataclasses.replace(MLA, q_rank=0), width=21),
  with_experts(V3, groups=1, kept_groups=1, first_dense=0, normalise=False),
]


def brief(given: dict) -> str:
  """Of a whole file its kind, of a few fields all."""
  return given["model_type"] if len(given) > 9 else str(given)


def without(fields: dict, *names: str) -> dict:
  return {name: value for name, value in fields.items() if name not in names}


def read(fields: dict, **changes) -> ModelConfig:
  return hf_config.config_from_hf(fields | changes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_the_presets(name):
  assert read(PUBLISHED[name], _name_or_path=name) == PRESETS[name]


@pytest.mark.parametrize("c", [*PRESETS.values(), *ODD], ids=lambda c: c.name)
def test_export_is_read_back_as_it_was(c):
  fields = json.loads(json.dumps(hf_config.config_to_hf(c)))
  assert hf_config.config_from_hf(fields) == c


def test_export_names_the_architecture():
  kinds = [hf_config.config_to_hf(c)["architectures"][0] for c in ODD]
  assert kinds == (
    ["LlamaForCausalLM"] * 4
    + ["Qwen2ForCausalLM"] * 2
    + ["Qwen3ForCausalLM"]
    + ["Qwen3MoeForCausalLM"] * 3
    + ["DeepseekV2ForCausalLM"] * 4
    + ["DeepseekV3ForCausalLM"] * 4
  )


def test_numbers_that_may_have_a_fraction_are_written_with_one():
  """transformers checks types: an integer where it wants a float is an error there."""
  c = dataclasses.replace(with_experts(V3, scale=2), rope_base=10_000)
  fields = hf_config.config_to_hf(c)
  names = ("rms_norm_eps", "routed_scaling_factor", "rope_theta", "attention_dropout")
  assert all(type(fields[name]) is float for name in names)


@pytest.mark.parametrize(
  ("c", "message"),
  [
    (
      dataclasses.replace(DENSE, qkv_bias=True, qk_norm=True),
      r"model.qkv_bias=True .* in a qwen3,",
    ),
    (dataclasses.replace(MIXTURE, qk_norm=False), r"model.qk_norm=False .* qwen3_moe"),
    (dataclasses.replace(MIXTURE, qkv_bias=True), r"model.qkv_bias=True .* qwen3_moe"),
    (with_experts(MIXTURE, shared=1), r"model.experts.shared=1 .* qwen3_moe"),
    (with_experts(MIXTURE, first_dense=1), r"experts.first_dense=1 .* qwen3_moe"),
    (with_experts(MIXTURE, bias=True), r"experts.bias=True .* qwen3_moe"),
    (with_experts(MIXTURE, groups=3), r"experts.groups=3 .* qwen3_moe"),
    (with_experts(MIXTURE, scale=2.0), r"experts.scale=2.0 .* it is 1.0"),
    (with_experts(MIXTURE, scores="sigmoid"), r"experts.scores='sigmoid'"),
    (with_experts(V2, normalise=True), r"experts.normalise=True .* deepseek_v2"),
    (with_experts(V2, bias=True), r"experts.bias=True .* deepseek_v2"),
    (with_experts(V3, bias=False), r"experts.bias=False .* deepseek_v3"),
    (with_experts(V3, group_score="max"), r"experts.group_score='max' .* deepseek_v3"),
    (dataclasses.replace(V2, mtp_depth=1), r"model.mtp_depth=1 .* deepseek_v2"),
    (dataclasses.replace(DENSE, mtp_depth=1), r"model.mtp_depth=1 .* in a llama"),
    (dataclasses.replace(V3, experts=None), r"model.latent without model.experts"),
    (dataclasses.replace(DENSE, width=21), r"model.width=21 .* model.heads=4 divides"),
    (dataclasses.replace(V2, width=21), r"model.width=21 .* deepseek_v2"),
  ],
)
def test_a_shape_that_no_architecture_has_is_refused(c, message):
  with pytest.raises(InputError, match=message):
    hf_config.config_to_hf(c)


@pytest.mark.parametrize(
  ("fields", "name", "attribute", "default"),
  [
    (SMOLLM2_135M, "num_key_value_heads", "kv_heads", 9),
    (SMOLLM2_135M, "rope_theta", "rope_base", 10_000.0),
    (SMOLLM2_135M, "tie_word_embeddings", "tied_head", False),
    (SMOLLM2_135M, "rms_norm_eps", "norm_eps", 1e-6),
    (LLAMA_3_2_1B, "head_dim", "head_dim", 64),
    (QWEN3_0_6B, "head_dim", "head_dim", 128),  # not 1024 / 16
    (QWEN3_30B_A3B, "head_dim", "head_dim", 64),
    (QWEN3_30B_A3B, "norm_topk_prob", "experts.normalise", False),
    (DEEPSEEK_V2_LITE, "routed_scaling_factor", "experts.scale", 1.0),
    (DEEPSEEK_V2_LITE, "num_key_value_heads", "kv_heads", 16),
    (DEEPSEEK_V2_LITE, "topk_method", "experts.groups", 1),
    (DEEPSEEK_V3, "routed_scaling_factor", "experts.scale", 2.5),
    (DEEPSEEK_V3, "norm_topk_prob", "experts.normalise", True),
    (DEEPSEEK_V3, "topk_method", "experts.groups", 8),
    (DEEPSEEK_V3, "num_nextn_predict_layers", "mtp_depth", 0),
  ],
)
def test_absent_fields_are_what_the_reference_says(fields, name, attribute, default):
  got = hf_config.config_from_hf(without(fields, name))
  for part in attribute.split("."):
    got = getattr(got, part)
  assert got == default


REQUIRED = [
  *((SMOLLM2_135M, name) for name in ("model_type", "hidden_size", "vocab_size")),
  (QWEN2_5_1_5B, "num_key_value_heads"),
  (QWEN3_30B_A3B, "num_experts"),
  (QWEN3_30B_A3B, "moe_intermediate_size"),
  *((DEEPSEEK_V2_LITE, name) for name in ("q_lora_rank", "kv_lora_rank", "v_head_dim")),
  *((DEEPSEEK_V3, name) for name in ("n_group", "topk_group", "num_experts_per_tok")),
  *((DEEPSEEK_V3, name) for name in ("first_k_dense_replace", "n_shared_experts")),
]


@pytest.mark.parametrize(("fields", "name"), REQUIRED)
def test_absent_sizes_are_errors(fields, name):
  with pytest.raises(InputError, match=f"config.json: no {name}"):
    hf_config.config_from_hf(without(fields, name))


def test_head_width_must_follow_from_the_config():
  with pytest.raises(InputError, match="no head_dim"):
    read(SMOLLM2_135M, hidden_size=577)
  assert read(SMOLLM2_135M, hidden_size=577, head_dim=64).head_dim == 64


@pytest.mark.parametrize(
  ("fields", "change"),
  [
    (SMOLLM2_135M, {"architectures": ["LlamaForSequenceClassification"]}),
    (SMOLLM2_135M, {"architectures": ["Qwen2ForCausalLM"]}),
    (SMOLLM2_135M, {"model_type": "mistral"}),
    (SMOLLM2_135M, {"model_type": 3}),
    (SMOLLM2_135M, {"rope_interleaved": True}),
    (SMOLLM2_135M, {"attention_bias": True}),
    (SMOLLM2_135M, {"mlp_bias": True}),
    (SMOLLM2_135M, {"hidden_act": "gelu"}),
    (SMOLLM2_135M, {"hidden_act": None}),
    (SMOLLM2_135M, {"pretraining_tp": 2}),
    (SMOLLM2_135M, {"quantization_config": FP8}),
    (SMOLLM2_135M, {"partial_rotary_factor": 0.5}),
    (SMOLLM2_135M, {"original_max_position_embeddings": 2048}),
    (SMOLLM2_135M, {"per_layer_config": {"0": {"head_dim": 32}}}),
    (SMOLLM2_135M, {"num_experts": 8}),
    (SMOLLM2_135M, {"hidden_size": 576.0}),
    (SMOLLM2_135M, {"tie_word_embeddings": "true"}),
    (SMOLLM2_135M, {"rms_norm_eps": True}),
    (QWEN2_5_1_5B, {"use_sliding_window": True}),
    (QWEN2_5_1_5B, {"use_mrope": True}),
    (QWEN2_5_1_5B, {"layer_types": ["full_attention", "sliding_attention"]}),
    (QWEN2_5_1_5B, {"attention_bias": True}),
    (QWEN3_0_6B, {"attention_bias": True}),
    (QWEN3_30B_A3B, {"decoder_sparse_step": 2}),
    (QWEN3_30B_A3B, {"mlp_only_layers": [0]}),
    (QWEN3_30B_A3B, {"num_local_experts": 64}),
    (QWEN3_30B_A3B, {"n_shared_experts": 1}),
    (DEEPSEEK_V2_LITE, {"topk_method": "noaux_tc"}),
    (DEEPSEEK_V2_LITE, {"scoring_func": "sigmoid"}),
    (DEEPSEEK_V2_LITE, {"norm_topk_prob": True}),
    (DEEPSEEK_V2_LITE, {"moe_layer_freq": 2}),
    (DEEPSEEK_V2_LITE, {"num_nextn_predict_layers": 1}),
    (DEEPSEEK_V3, {"topk_method": "greedy"}),
    (DEEPSEEK_V3, {"scoring_func": "softmax"}),
    (DEEPSEEK_V3, {"rope_interleave": False}),
    (DEEPSEEK_V3, {"rope_interleave": None}),
    (DEEPSEEK_V3, {"attention_bias": True}),
    (DEEPSEEK_V3, {"num_key_value_heads": 8}),
    (DEEPSEEK_V3, {"head_dim": 128}),
    (DEEPSEEK_V3, {"qk_head_dim": 128}),
    (DEEPSEEK_V3, {"num_mtp_layers": 0}),
  ],
  ids=brief,
)
def test_what_is_not_computed_is_refused_by_name(fields, change):
  with pytest.raises(InputError, match=next(iter(change))):
    hf_config.config_from_hf(fields | change)


@pytest.mark.parametrize(
  ("fields", "change"),
  [
    (SMOLLM2_135M, {"head_dim": None, "architectures": None, "temperature": 0.6}),
    (QWEN2_5_1_5B, {"layer_types": ["full_attention"] * 28, "sliding_window": None}),
    (QWEN2_5_1_5B, {"use_sliding_window": None, "max_window_layers": 0}),
    (QWEN3_30B_A3B, {"num_local_experts": 128, "output_router_logits": True}),
    (DEEPSEEK_V2_LITE, {"n_group": 8, "topk_group": 3}),  # greedy: no groups
    (DEEPSEEK_V2_LITE, {"head_dim": 64, "qk_head_dim": 192}),
    (DEEPSEEK_V3, {"rope_interleave": True, "num_mtp_layers": 1}),
  ],
  ids=brief,
)
def test_what_does_not_change_the_logits_changes_nothing(fields, change):
  assert hf_config.config_from_hf(fields | change) == hf_config.config_from_hf(fields)


@pytest.fixture(name="transformers", scope="module")
def _transformers():
  return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("c", [*PRESETS.values(), *ODD], ids=lambda c: c.name)
def test_transformers_reads_what_is_exported(transformers, c):
  fields = hf_config.config_to_hf(c)
  theirs = transformers.AutoConfig.for_model(**fields)
  written = json.loads(theirs.to_json_string()) | {"_name_or_path": c.name}
  assert hf_config.config_from_hf(written) == c


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("fields", PUBLISHED.values(), ids=PUBLISHED)
def test_every_field_of_the_reference_is_understood(transformers, fields):
  """It acts, or has one value that is computed, or is known not to matter."""
  kind = type(transformers.AutoConfig.for_model(fields["model_type"]))
  for field in dataclasses.fields(kind):
    try:
      hf_config.config_from_hf(fields | {field.name: object()})
    except InputError as e:
      assert field.name in str(e)
      assert "not understood" not in str(e)


def test_groups_of_deepseek_v2():
  c = read(
    DEEPSEEK_V2_LITE, topk_method="group_limited_greedy", n_group=8, topk_group=3
  )
  assert (c.experts.groups, c.experts.kept_groups) == (8, 3)
  assert c.experts.group_score == "max"
  with pytest.raises(InputError, match="no n_group"):
    hf_config.config_from_hf(
      without(DEEPSEEK_V2_LITE, "n_group") | {"topk_method": "group_limited_greedy"}
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_spellings_of_the_rotary_fields(name):
  """transformers 5 writes the base and the scaling in one object."""
  old = PUBLISHED[name]
  scaling = dict(old.get("rope_scaling") or {})
  kind = scaling.pop("type", scaling.get("rope_type", "default"))
  nested = scaling | {"rope_type": kind, "rope_theta": old["rope_theta"]}
  new = without(old, "rope_theta", "rope_scaling") | {"rope_parameters": nested}
  assert hf_config.config_from_hf(new) == hf_config.config_from_hf(old)
  assert read(old, rope_parameters=nested) == hf_config.config_from_hf(old)
  assert read(new, rope_parameters=nested | {"type": kind}) == read(old)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.*'linear'"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
    ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "'factor'"),
    ({"rope_scaling": {"factor": 2.0}}, "rope_scaling: field 'factor'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "no low_freq_factor"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling: no factor"),
    (
      {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "finetuned": True}},
      "rope_scaling: field 'finetuned'",
    ),
    (
      {"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 2.0}},
      "type='linear' and rope_type='yarn'",
    ),
    ({"rope_scaling": {"rope_type": "yarn", "factor": "2"}}, "factor='2' must be"),
    ({"rope_scaling": [1]}, "rope_scaling="),
    ({"rope_parameters": {"rope_theta": 5}}, "must agree; got bases"),
    ({"rope_parameters": {"full_attention": {}}}, "'full_attention'"),
    (
      {
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0},
      },
      "must agree",
    ),
  ],
)
def test_rotary_scalings_that_are_not_computed_are_refused(change, message):
  with pytest.raises(InputError, match=message):
    hf_config.config_from_hf(SMOLLM2_135M | change)


def test_yarn_of_qwen2_5():
  """Instruct models of Qwen2.5 are used with it for long contexts."""
  given = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
  c = read(QWEN2_5_1_5B, rope_scaling=given)
  assert c.rope_scaling == YarnRope(factor=4.0, original_length=32768)
  assert rope.rotary_gain(c) == pytest.approx(1.138629, abs=1e-6)  # 0.1 ln 4 + 1


def test_yarn_options():
  given = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 512}
  given |= {"attention_factor": 1.5, "truncate": False, "beta_fast": None}
  want = YarnRope(factor=4.0, original_length=512, attention_factor=1.5, truncate=False)
  assert read(QWEN2_5_1_5B, rope_scaling=given).rope_scaling == want


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_a_first_length_that_is_not_told_is_the_models_own(kind):
  given = {"rope_type": kind, "factor": 4.0}
  if kind == "llama3":
    given |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
  assert read(SMOLLM2_135M, rope_scaling=given).rope_scaling.original_length == 8192


def test_a_folder_of_quantized_weights_has_the_shape_of_the_others(tmp_path):
  """What quantization_config says is checked where weights are read."""
  fields = DEEPSEEK_V3 | {"quantization_config": FP8, "_name_or_path": "deepseek-v3"}
  (tmp_path / "config.json").write_text(json.dumps(fields))
  assert hf_config.read_config(tmp_path) == PRESETS["deepseek-v3"]
  assert hf_config.read_fields(tmp_path) == fields


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "config.json does not exist"),
    ("{", "not JSON"),
    ("[]", "not an object"),
    ("{}", "no model_type"),
  ],
)
def test_files_that_are_no_config(tmp_path, text, message):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(InputError, match=rf"{tmp_path.name}.*{message}"):
    hf_config.read_config(tmp_path)
