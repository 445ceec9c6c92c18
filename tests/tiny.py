"""Small decoders and plain numpy twins that several tests share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import sharding, trees
from r1jax.data import packing
from r1jax.models import parameters
from r1jax.models.config import Experts, Latent, Llama3Rope, ModelConfig, YarnRope
from r1jax.objectives import recipes
from r1jax.objectives.policy_gradient import policy_gradient
from r1jax.objectives.sft import cross_entropy
from r1jax.sampling import decode, logits, loop_state
from r1jax.training.logprobs import token_logprobs
from r1jax.types import Experience, Mean, ParamSpec, TokenRows

# A rollout that several tests share, compiled once: 5 slots refill for 12 rows, the
# stop ids occur in prompts, and 70 tokens make three attention windows.
PROMPTS = ([3, 1, 4, 1, 5, 9], [7], [2, 2], [6, 2, 8, 5])
STOP = (2, 5)
REFILL = {"samples": 3, "max_tokens": 70, "stop_ids": STOP, "slots": 5}


def config(**changes) -> ModelConfig:
  shape = {"depth": 2, "width": 16, "heads": 4, "kv_heads": 2, "head_dim": 8}
  return ModelConfig(**{**shape, "ffw": 24, "vocab": 33, **changes})


LATENT = Latent(q_rank=10, kv_rank=12, nope_dim=6, rope_dim=4, value_dim=8)
YARN = YarnRope(factor=4.0, original_length=8, mscale=1.0, mscale_all_dim=0.7)
# Softmax over all experts, and V3's choice: groups, bias, shared experts.
QWEN_EXPERTS = Experts(count=6, per_token=2, ffw=8)
V3_EXPERTS = Experts(
  count=8,
  per_token=3,
  ffw=8,
  shared=1,
  first_dense=1,
  scores="sigmoid",
  bias=True,
  groups=4,
  kept_groups=2,
  group_score="top2",
  scale=2.5,
)
# One small decoder of each architecture.
FAMILY = {
  "llama": config(rope_scaling=Llama3Rope(factor=4.0, original_length=16)),
  "qwen2": config(qkv_bias=True, tied_head=False),
  "qwen3": config(qk_norm=True, head_dim=6),
  "qwen3_moe": config(qk_norm=True, experts=QWEN_EXPERTS, tied_head=False),
  "deepseek_v2": config(
    kv_heads=4,
    head_dim=10,
    latent=dataclasses.replace(LATENT, q_rank=0),
    experts=dataclasses.replace(QWEN_EXPERTS, shared=2, first_dense=1, normalise=False),
    rope_scaling=YARN,
    tied_head=False,
  ),
  "deepseek_v3": config(
    depth=3,
    kv_heads=4,
    head_dim=10,
    latent=LATENT,
    experts=V3_EXPERTS,
    mtp_depth=1,
    rope_scaling=YARN,
    tied_head=False,
  ),
}


@functools.cache
def params(c: ModelConfig, seed: int = 0) -> dict:
  """Sharper than a fresh decoder, with norms that are not all one; no compilation."""
  rng = np.random.default_rng(seed)

  def draw(path: str, spec: ParamSpec) -> jax.Array:
    scale = 1.5 * spec.fan_in**-0.5 if spec.fan_in else 0.2
    centre = 0.0 if spec.fan_in else spec.fill
    return jnp.asarray(rng.normal(centre, scale, spec.shape), jnp.float32)

  return trees.map_with_path(draw, parameters.param_specs(c))


def plain_rows(sequences, length: int | None = None) -> TokenRows:
  """One sequence a row, right-padded with 0; all but the first token are trained on."""
  length = length or max(map(len, sequences))
  tokens = np.zeros((len(sequences), length), np.int32)
  inside = np.zeros(tokens.shape, np.int32)
  for row, sequence in enumerate(sequences):
    tokens[row, : len(sequence)] = sequence
    inside[row, : len(sequence)] = 1
  mask = inside.astype(np.float32)
  mask[:, 0] = 0
  counts = np.broadcast_to(mask.sum(1, keepdims=True), mask.shape)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
  return TokenRows(tokens, positions, inside, mask, counts * inside)


def prompts(sequences, *, ids=None, pad: int = 0, capacity: int | None = None):
  """`loop_state.Prompts` of some token lists; problems are numbered 100, 101, ..."""
  capacity = capacity or max(map(len, sequences))
  tokens = np.full((len(sequences), capacity), pad, np.int32)
  for row, sequence in enumerate(sequences):
    tokens[row, : len(sequence)] = sequence
  ids = 100 + np.arange(len(sequences)) if ids is None else np.asarray(ids)
  lengths = np.asarray([len(sequence) for sequence in sequences], np.int32)
  return loop_state.Prompts(tokens, lengths, ids.astype(np.int32))


def plain_distribution(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
  """Probabilities [V] that one row is drawn from, in float64, token by token."""
  logits = np.asarray(logits, np.float64)
  if temperature == 0:
    return np.eye(len(logits))[logits.argmax()]
  prob = np.exp(logits / temperature - (logits / temperature).max())
  prob /= prob.sum()
  order = sorted(range(len(prob)), key=lambda token: -prob[token])
  keep = np.ones(len(prob), bool)
  if top_k:
    keep &= prob >= prob[order[min(top_k, len(prob)) - 1]]
  if top_p < 1:
    mass, last = 0.0, order[0]
    for token in order:
      last = token
      mass += prob[token]
      if mass >= top_p:
        break
    keep &= prob >= prob[last]
  keep &= prob >= min_p * prob.max()
  return np.where(keep, prob, 0) / prob[keep].sum()


@functools.cache
def generator(c: ModelConfig, *, stop_ids: tuple[int, ...] = (), **plan):
  """(params, prompts, controls, key) -> Rollout, compiled once per process."""

  def generate(params, prompts, controls, key):
    controls = stopping(controls, stop_ids)
    return decode.generate(c, params, prompts, controls, key, loop_state.Plan(**plan))

  return jax.jit(generate)


def stopping(controls: logits.Controls, stop_ids: tuple[int, ...]) -> logits.Controls:
  """With these stop ids in every row."""
  same = logits.controls(len(controls.temperature), max_tokens=1, stop_ids=stop_ids)
  return controls.replace(stop_ids_SN=same.stop_ids_SN)


def experience(c: ModelConfig, num_rows: int = 8, row_length: int = 30) -> Experience:
  """Packed rows whose numbers of sequences and of trained tokens differ; some sequences
  lie behind what they begin with in common."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(2, 12, 6 * num_rows)
  sequences = [rng.integers(0, c.vocab, n) for n in lengths]
  first = [int(rng.integers(1, n + 1)) for n in lengths]
  groups = []
  for i in range(0, len(sequences), 3):
    shared = int(rng.integers(0, lengths[i : i + 3].min()))
    groups.append(packing.Group([i, i + 1, i + 2], shared))
    for other in sequences[i + 1 : i + 3]:
      other[:shared] = sequences[i][:shared]
  pack = packing.pack(sequences, first, row_length=row_length, groups=groups)
  rows = jax.tree.map(lambda leaf: leaf[:num_rows], pack.rows)
  assert len(rows.tokens_BL) == num_rows
  assert len(set(rows.mask_BL.sum(1))) > num_rows // 2
  noise = rng.normal(size=(4, *rows.mask_BL.shape)).astype(np.float32)
  old = noise[0] - 3
  return Experience(rows, noise[1], old, old + 0.1 * noise[2], old + 0.3 * noise[3])


def objective(**changes) -> dict:
  """R1's settings of `policy_gradient`, but for some."""
  settings = recipes.settings("grpo_r1")["loss"] | changes
  return {k: v for k, v in settings.items() if not k.startswith("correction")}


def grpo_loss(
  c: ModelConfig, params, e: Experience, partition=sharding.LOCAL, remat="none"
):
  """(loss sum, metrics) of the published objective; cross-entropy among the metrics."""
  rows = e.rows
  scores = token_logprobs(
    c, params, rows, temperature=0.9, chunk=32, remat=remat, partition=partition
  )
  loss, _, metrics = policy_gradient(
    scores.logp_BL,
    e.logp_old_BL,
    e.logp_ref_BL,
    e.advantage_BL,
    rows.mask_BL,
    rows.length_BL,
    rows.segments_BL,
    **objective(clip_low=0.2, clip_high=0.2, kl_coef=0.05),
  )
  supervised, num_tokens = cross_entropy(scores.logp_BL, rows.mask_BL)
  return loss, {**metrics, "loss/cross_entropy": Mean(supervised, num_tokens)}


def assert_same_sums(got, want, tolerance: float = 5e-6) -> None:
  """Trees of sums that may have been added up in another order.

  The bound is a share of the largest entry of an array: an entry may be the small
  difference of large terms.
  """
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
