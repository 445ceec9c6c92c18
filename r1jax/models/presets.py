"""Named shapes: data, not code.

Each is the published config.json of the model of that name; where forms of a model
differ (base and Instruct), a comment says how.
"""

import dataclasses
from typing import Any

from r1jax.models.config import Experts, Latent, Llama3Rope, ModelConfig, YarnRope

_COLUMNS = ("depth", "width", "heads", "kv_heads", "head_dim", "ffw")


def _sizes(*numbers: int) -> dict[str, Any]:
  return dict(zip(_COLUMNS, numbers, strict=True))


_FREE_HEAD = {"tied_head": False}
_LONG = {"max_length": 131_072}

_SMOLLM2 = {
  "vocab": 49_152,
  "rope_base": 100_000.0,
  "norm_eps": 1e-5,
  "max_length": 8_192,
}
# Base forms. The others have max_length 32,768, and from 14B on norm_eps 1e-6.
_QWEN2_5 = {
  "vocab": 151_936,
  "rope_base": 1e6,
  "norm_eps": 1e-6,
  "qkv_bias": True,
  "max_length": 32_768,
}
_QWEN2_5_7B = _QWEN2_5 | _FREE_HEAD | _LONG | {"vocab": 152_064}
_QWEN2_5_14B = _QWEN2_5_7B | {"norm_eps": 1e-5}
_MATH = {"rope_base": 10_000.0, "max_length": 4_096}
# Instruct forms. Base forms have max_length 32,768.
_QWEN3 = {
  "vocab": 151_936,
  "rope_base": 1e6,
  "norm_eps": 1e-6,
  "qk_norm": True,
  "max_length": 40_960,
}
_QWEN3_8B = _QWEN3 | _FREE_HEAD
_LLAMA_3_2 = _LONG | {
  "vocab": 128_256,
  "rope_base": 500_000.0,
  "rope_scaling": Llama3Rope(factor=32.0, original_length=8_192),
  "norm_eps": 1e-5,
}
_LLAMA_3_1 = _LLAMA_3_2 | _FREE_HEAD
_LLAMA_3_1 |= {"rope_scaling": Llama3Rope(factor=8.0, original_length=8_192)}
_V3_YARN = YarnRope(factor=40.0, original_length=4_096, mscale=1.0, mscale_all_dim=1.0)
_V3_LATENT = Latent(q_rank=1_536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)
_DEEPSEEK_V3 = {
  "vocab": 129_280,
  "rope_scaling": _V3_YARN,
  "norm_eps": 1e-6,
  "latent": _V3_LATENT,
  "experts": Experts(
    count=256,
    per_token=8,
    ffw=2_048,
    shared=1,
    first_dense=3,
    scores="sigmoid",
    bias=True,
    groups=8,
    kept_groups=4,
    group_score="top2",
    scale=2.5,
  ),
  "mtp_depth": 1,
  "tied_head": False,
  "max_length": 163_840,
}
_DEEPSEEK_V2_LITE = _DEEPSEEK_V3 | {
  "vocab": 102_400,
  "rope_scaling": dataclasses.replace(_V3_YARN, mscale=0.707, mscale_all_dim=0.707),
  "latent": dataclasses.replace(_V3_LATENT, q_rank=0),
  "experts": Experts(
    count=64, per_token=6, ffw=1_408, shared=2, first_dense=1, normalise=False
  ),
  "mtp_depth": 0,
}
_QWEN3_30B_A3B = _QWEN3_8B | {"experts": Experts(count=128, per_token=8, ffw=768)}

_SHAPES = {
  # Trained from scratch in minutes on a laptop; its tokenizer brings the vocabulary.
  # The base of its wavelengths fits sequences of tens of tokens.
  "tiny": {"vocab": 64, "rope_base": 1_000.0} | _sizes(3, 96, 4, 4, 24, 256),
  "smollm2-135m": _SMOLLM2 | _sizes(30, 576, 9, 3, 64, 1_536),
  "smollm2-360m": _SMOLLM2 | _sizes(32, 960, 15, 5, 64, 2_560),
  "smollm2-1.7b": _SMOLLM2
  | {"rope_base": 130_000.0}
  | _sizes(24, 2_048, 32, 32, 64, 8_192),
  "qwen2.5-0.5b": _QWEN2_5 | _sizes(24, 896, 14, 2, 64, 4_864),
  "qwen2.5-1.5b": _QWEN2_5 | _LONG | _sizes(28, 1_536, 12, 2, 128, 8_960),
  "qwen2.5-3b": _QWEN2_5 | _sizes(36, 2_048, 16, 2, 128, 11_008),
  "qwen2.5-7b": _QWEN2_5_7B | _sizes(28, 3_584, 28, 4, 128, 18_944),
  "qwen2.5-14b": _QWEN2_5_14B | _sizes(48, 5_120, 40, 8, 128, 13_824),
  "qwen2.5-32b": _QWEN2_5_14B | _sizes(64, 5_120, 40, 8, 128, 27_648),
  "qwen3-0.6b": _QWEN3 | _sizes(28, 1_024, 16, 8, 128, 3_072),
  "qwen3-1.7b": _QWEN3 | _sizes(28, 2_048, 16, 8, 128, 6_144),
  "qwen3-4b": _QWEN3 | _sizes(36, 2_560, 32, 8, 128, 9_728),
  "qwen3-8b": _QWEN3_8B | _sizes(36, 4_096, 32, 8, 128, 12_288),
  "qwen3-14b": _QWEN3_8B | _sizes(40, 5_120, 40, 8, 128, 17_408),
  "qwen3-32b": _QWEN3_8B | _sizes(64, 5_120, 64, 8, 128, 25_600),
  "qwen3-30b-a3b": _QWEN3_30B_A3B | _sizes(48, 2_048, 32, 4, 128, 6_144),
  "llama-3.2-1b": _LLAMA_3_2 | _sizes(16, 2_048, 32, 8, 64, 8_192),
  "llama-3.2-3b": _LLAMA_3_2 | _sizes(28, 3_072, 24, 8, 128, 8_192),
  "llama-3.1-8b": _LLAMA_3_1 | _sizes(32, 4_096, 32, 8, 128, 14_336),
  "llama-3.3-70b": _LLAMA_3_1 | _sizes(80, 8_192, 64, 8, 128, 28_672),
  "deepseek-v2-lite": _DEEPSEEK_V2_LITE | _sizes(27, 2_048, 16, 16, 192, 10_944),
  "deepseek-v3": _DEEPSEEK_V3 | _sizes(61, 7_168, 128, 128, 192, 18_432),
}
_SHAPES |= {
  "qwen2.5-math-1.5b": _SHAPES["qwen2.5-1.5b"] | _MATH,
  "qwen2.5-math-7b": _SHAPES["qwen2.5-7b"] | _MATH,
  "deepseek-r1": _SHAPES["deepseek-v3"],
}
_SHAPES |= {
  "r1-distill-qwen-1.5b": _SHAPES["qwen2.5-math-1.5b"] | _LONG | _FREE_HEAD,
  "r1-distill-qwen-7b": _SHAPES["qwen2.5-math-7b"] | _LONG,
  "r1-distill-qwen-14b": _SHAPES["qwen2.5-14b"],
  "r1-distill-qwen-32b": _SHAPES["qwen2.5-32b"],
  "r1-distill-llama-8b": _SHAPES["llama-3.1-8b"],
  "r1-distill-llama-70b": _SHAPES["llama-3.3-70b"],
}

PRESETS = {name: ModelConfig(**shape, name=name) for name, shape in _SHAPES.items()}
