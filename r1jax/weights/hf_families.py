"""What config.json of Hugging Face folders may say, for each model_type: data.

What a field means, and what its absence means, is as in transformers 5.24.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.models.config import Llama3Rope, YarnRope

# Below, {field: attribute of the same meaning}.
MODEL = {
  "num_hidden_layers": "depth",
  "hidden_size": "width",
  "num_attention_heads": "heads",
  "intermediate_size": "ffw",
  "vocab_size": "vocab",
  "rms_norm_eps": "norm_eps",
  "tie_word_embeddings": "tied_head",
  "max_position_embeddings": "max_length",
}
LATENT = {
  "q_lora_rank": "q_rank",
  "kv_lora_rank": "kv_rank",
  "qk_nope_head_dim": "nope_dim",
  "qk_rope_head_dim": "rope_dim",
  "v_head_dim": "value_dim",
}
_EXPERTS = {"num_experts_per_tok": "per_token", "moe_intermediate_size": "ffw"}
_DEEPSEEK_EXPERTS = _EXPERTS | {
  "n_routed_experts": "count",
  "n_shared_experts": "shared",
  "first_k_dense_replace": "first_dense",
  "routed_scaling_factor": "scale",
}
GROUPS = {"n_group": "groups", "topk_group": "kept_groups"}
ROPES = {
  "llama3": (
    Llama3Rope,
    {
      "factor": "factor",
      "original_max_position_embeddings": "original_length",
      "low_freq_factor": "low_freq",
      "high_freq_factor": "high_freq",
    },
  ),
  "yarn": (
    YarnRope,
    {
      "factor": "factor",
      "original_max_position_embeddings": "original_length",
      **{name: name for name in ("beta_fast", "beta_slow", "attention_factor")},
      **{name: name for name in ("mscale", "mscale_all_dim", "truncate")},
    },
  ),
}

# What absent and null fields mean; those that are not here must be there.
DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
ROPE_DEFAULTS = {
  "llama3": {},
  "yarn": {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.0, "mscale_all_dim": 0.0}
  | {"attention_factor": None, "truncate": True},
}

# Fields with one value that is computed, which absence means too; export writes them.
FIXED = {"hidden_act": "silu", "attention_dropout": 0.0}
# The same of other programs that write config.json, which export does not imitate.
FOREIGN_FIXED = {"rope_interleaved": False, "is_llama_config": True}
FOREIGN_FIXED |= {"use_mrope": False, "is_encoder_decoder": False}

HARMLESS = frozenset(
  # The tokenizer's ids and how to sample: of generation, not of the logits.
  {"bos_token_id", "eos_token_id", "pad_token_id", "max_length", "do_sample"}
  | {"temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens"}
  # The initial draw, which weights replace.
  | {"initializer_range"}
  # How weights are stored and which kernels run: the same function.
  | {"torch_dtype", "dtype", "use_cache", "chunk_size_feed_forward"}
  | {"_attn_implementation_autoset", "attn_implementation", "experts_implementation"}
  # What a call returns beside the logits, and heads of other classes.
  | {"return_dict", "output_hidden_states", "output_attentions"}
  | {"tie_last_hidden_states", "id2label", "label2id", "num_labels", "problem_type"}
  # Who wrote the file, and code that other programs would run.
  | {"transformers_version", "transformers.js_config", "auto_map"}
  | {"unsloth_fixed", "unsloth_version"}
)
# They matter only where use_sliding_window is true, which is refused.
_WINDOWS = frozenset({"sliding_window", "max_window_layers"})
# About the balance loss in the other program's training.
_BALANCE = frozenset({"router_aux_loss_coef", "output_router_logits"})
# The same, and over how many devices experts are spread.
_DEEPSEEK_HARMLESS = frozenset(
  {"aux_loss_alpha", "seq_aux", "output_router_logits", "ep_size"}
)


@dataclasses.dataclass(frozen=True)
class Family:
  """What config.json of a model_type may say beside what it may of all.

  Attributes:
    architecture: the one class that is computed.
    implied: attributes of ModelConfig that follow from the type.
    fixed: as `FIXED`.
    defaults: as `DEFAULTS`.
    harmless: fields that do not change the logits.
    nullable: fields whose null means something, so that they must be there.
    renamed: {another spelling that transformers reads: field}.
    head_dim: where absent; None is width / heads.
    even_split: transformers insists that heads divide the width.
    experts: {field: attribute of Experts}.
    implied_experts: attributes of Experts that follow from the type.
    topk_methods: {value: whether experts are chosen by groups}; the first is the
      default.
    latent, mtp: it has latent attention; it may have modules that predict further.
  """

  architecture: str
  implied: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  harmless: frozenset[str] = frozenset()
  nullable: tuple[str, ...] = ()
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  head_dim: int | None = None
  even_split: bool = False
  experts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  implied_experts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  topk_methods: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  latent: bool = False
  mtp: bool = False


_DEEPSEEK_FIXED = {"attention_bias": False, "pretraining_tp": 1, "moe_layer_freq": 1}
FAMILIES = {
  "llama": Family(
    "LlamaForCausalLM",
    fixed={"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
    even_split=True,
  ),
  "qwen2": Family(
    "Qwen2ForCausalLM",
    implied={"qkv_bias": True},
    fixed={"use_sliding_window": False},
    harmless=_WINDOWS,
    nullable=("num_key_value_heads",),
  ),
  "qwen3": Family(
    "Qwen3ForCausalLM",
    implied={"qk_norm": True},
    fixed={"attention_bias": False, "use_sliding_window": False},
    harmless=_WINDOWS,
    nullable=("num_key_value_heads",),
    head_dim=128,
  ),
  "qwen3_moe": Family(
    "Qwen3MoeForCausalLM",
    implied={"qk_norm": True},
    fixed={"attention_bias": False, "use_sliding_window": False}
    | {"decoder_sparse_step": 1, "mlp_only_layers": []},
    defaults={"norm_topk_prob": False},
    harmless=_WINDOWS | _BALANCE,
    nullable=("num_key_value_heads",),
    renamed={"num_local_experts": "num_experts"},
    experts=_EXPERTS | {"num_experts": "count", "norm_topk_prob": "normalise"},
  ),
  # norm_topk_prob is not computed by transformers in V2, and in DeepSeek's own program
  # goes without the scaling factor.
  "deepseek_v2": Family(
    "DeepseekV2ForCausalLM",
    fixed=_DEEPSEEK_FIXED
    | {"mlp_bias": False, "scoring_func": "softmax", "norm_topk_prob": False},
    defaults={"routed_scaling_factor": 1.0},
    harmless=_DEEPSEEK_HARMLESS,
    nullable=("q_lora_rank",),
    renamed={"num_experts": "n_routed_experts"},
    even_split=True,
    experts=_DEEPSEEK_EXPERTS,
    implied_experts={"normalise": False},
    topk_methods={"greedy": False, "group_limited_greedy": True},
    latent=True,
  ),
  "deepseek_v3": Family(
    "DeepseekV3ForCausalLM",
    fixed=_DEEPSEEK_FIXED | {"rope_interleave": True, "scoring_func": "sigmoid"},
    defaults={"routed_scaling_factor": 2.5, "norm_topk_prob": True},
    harmless=_DEEPSEEK_HARMLESS,
    nullable=("q_lora_rank",),
    renamed={"num_local_experts": "n_routed_experts"}
    | {"num_mtp_layers": "num_nextn_predict_layers"},
    experts=_DEEPSEEK_EXPERTS | {"norm_topk_prob": "normalise"},
    implied_experts={"scores": "sigmoid", "bias": True, "group_score": "top2"},
    topk_methods={"noaux_tc": True},
    latent=True,
    mtp=True,
  ),
}
