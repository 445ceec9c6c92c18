"""Exact numbers of parameters, from the specs: nothing is allocated."""

import dataclasses
import math

import pytest

from r1jax import trees
from r1jax.models import parameters
from r1jax.models.presets import PRESETS

# As the models' pages and reports have them, without the MTP module; a tied head once.
COUNTS = {
  "smollm2-135m": 134_515_008,
  "smollm2-360m": 361_821_120,
  "smollm2-1.7b": 1_711_376_384,
  "qwen2.5-0.5b": 494_032_768,
  "qwen2.5-1.5b": 1_543_714_304,
  "qwen2.5-3b": 3_085_938_688,
  "qwen2.5-7b": 7_615_616_512,
  "qwen2.5-14b": 14_770_033_664,
  "qwen2.5-32b": 32_763_876_352,
  "qwen2.5-math-1.5b": 1_543_714_304,
  "qwen2.5-math-7b": 7_615_616_512,
  "qwen3-0.6b": 596_049_920,
  "qwen3-1.7b": 1_720_574_976,
  "qwen3-4b": 4_022_468_096,
  "qwen3-8b": 8_190_735_360,
  "qwen3-14b": 14_768_307_200,
  "qwen3-32b": 32_762_123_264,
  "qwen3-30b-a3b": 30_532_122_624,
  "llama-3.2-1b": 1_235_814_400,
  "llama-3.2-3b": 3_212_749_824,
  "llama-3.1-8b": 8_030_261_248,
  "llama-3.3-70b": 70_553_706_496,
  "deepseek-v2-lite": 15_706_484_224,
  "deepseek-v3": 671_026_419_200,
  "deepseek-r1": 671_026_419_200,
  "r1-distill-qwen-1.5b": 1_777_088_000,
  "r1-distill-qwen-7b": 7_615_616_512,
  "r1-distill-qwen-14b": 14_770_033_664,
  "r1-distill-qwen-32b": 32_763_876_352,
  "r1-distill-llama-8b": 8_030_261_248,
  "r1-distill-llama-70b": 70_553_706_496,
}


def by_hand(c) -> int:
  """The same from the formulas of the papers."""
  d, n, k, h = c.width, c.heads, c.kv_heads, c.head_dim
  if c.latent is None:
    attention = d * h * (2 * n + 2 * k)
    attention += h * (n + 2 * k) * c.qkv_bias + 2 * h * c.qk_norm
  else:
    q, kv, nope, rope, value = dataclasses.astuple(c.latent)
    queries = d * q + q + q * n * (nope + rope) if q else d * n * (nope + rope)
    keys_values = d * (kv + rope) + kv + kv * n * (nope + value)
    attention = queries + keys_values + n * value * d
  dense, e = 3 * d * c.ffw, c.experts
  ffw = c.depth * dense
  if e is not None:
    mixture = d * e.count + e.bias * e.count + 3 * d * e.ffw * (e.count + e.shared)
    ffw = e.first_dense * dense + (c.depth - e.first_dense) * mixture
  ends = c.vocab * d * (1 if c.tied_head else 2) + d
  return c.depth * (attention + 2 * d) + ffw + ends


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"tiny"}))
def test_numbers_of_parameters(name):
  c = PRESETS[name]
  assert parameters.num_params(c, mtp=False) == by_hand(c) == COUNTS[name]


@pytest.mark.parametrize(
  ("name", "active"),
  [
    ("llama-3.1-8b", COUNTS["llama-3.1-8b"]),  # all
    ("qwen3-30b-a3b", 3_353_032_704),
    ("deepseek-v2-lite", 2_661_150_208),
    ("deepseek-v3", 37_552_297_472),
  ],
)
def test_active_parameters(name, active):
  assert parameters.num_active_params(PRESETS[name]) == active


def test_parts_of_deepseek_v3():
  """arXiv 2412.19437, section 2.1, counted per layer."""
  c = PRESETS["deepseek-v3"]
  counts = {
    path: math.prod(spec.shape[1:])
    for path, spec in trees.flatten(parameters.param_specs(c)).items()
  }

  def under(prefix):
    return sum(count for path, count in counts.items() if path.startswith(prefix))

  assert under("layers/attn/") == under("dense/attn/") == 187_107_328
  assert under("layers/moe/") == 11_320_164_608
  assert under("dense/mlp/") == 396_361_728
  assert parameters.num_params(c) - COUNTS["deepseek-v3"] == 11_610_068_224
  # Without the embedding, of which a token takes one row.
  assert parameters.num_active_params(c) - c.vocab * c.width == 36_625_618_432


def test_names():
  assert all(c.name == name for name, c in PRESETS.items())
  assert COUNTS.keys() == PRESETS.keys() - {"tiny"}


STUDENTS = {
  "r1-distill-qwen-1.5b": "qwen2.5-math-1.5b",
  "r1-distill-qwen-7b": "qwen2.5-math-7b",
  "r1-distill-qwen-14b": "qwen2.5-14b",
  "r1-distill-qwen-32b": "qwen2.5-32b",
  "r1-distill-llama-8b": "llama-3.1-8b",
  "r1-distill-llama-70b": "llama-3.3-70b",
}


@pytest.mark.parametrize("student", STUDENTS)
def test_students_are_their_bases_with_longer_positions_and_a_head(student):
  base = PRESETS[STUDENTS[student]]
  assert PRESETS[student] == dataclasses.replace(
    base, name=student, tied_head=False, max_length=131_072
  )
