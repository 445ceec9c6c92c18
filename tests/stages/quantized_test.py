"""What a stage draws with where weights or caches are small, and what its gap says."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import trees
from r1jax.errors import InputError
from r1jax.models import layers
from r1jax.models.quantized import Quantized
from r1jax.stages import learn
from r1jax.stages.rollouts import Sampler
from r1jax.training import policy
from r1jax.types import Experience
from tests import tiny
from tests.stages.trainable_test import settings, trainable_of

C = tiny.config()
PROMPT = [3, 1, 4]
PROBLEM = types.SimpleNamespace(id="p")


def sampler_of(trainable, **how):
  return Sampler(
    trainable.run,
    trainable,
    prompts=1,
    samples=2,
    prompt_length=4,
    max_tokens=12,
    controls={"temperature": 1.0},
    **how,
  )


def gap_of(trainable, config, sampler, trained):
  """(rollout, the gap metrics that the stage computes of it)."""
  frozen = trainable.frozen("")
  weights = sampler.weights(trained, sampler.hold(frozen))
  out = sampler(weights, [PROMPT], [PROBLEM], jax.random.key(0))
  whole = [PROMPT + ids for ids in sampler.completions(out)]
  rows = tiny.plain_rows(whole, length=16)
  mask_BL, logp_BL = np.zeros((2, 16), np.float32), np.zeros((2, 16), np.float32)
  for b, n in enumerate(out.length_B):
    drawn = slice(len(PROMPT), len(PROMPT) + n)
    mask_BL[b, drawn], logp_BL[b, drawn] = 1, out.logp_BT[b, :n]
  rows = rows.replace(mask_BL=mask_BL)
  scores = learn.score_rows(trainable.run, config, trained, frozen, rows)
  seen = policy.gap(scores, Experience(rows, mask_BL, logp_BL, None, None))
  return out, {name: float(value.value()) for name, value in seen.items()}


@pytest.mark.parametrize("rank", [0, 2])
def test_the_gap_of_a_stage_is_of_rounding_alone(rank):
  changes = {"lora.rank": rank}
  trainable, config = trainable_of(C, **changes), settings(**changes)
  trained = trainable.fresh("zero", "")
  _, exact = gap_of(trainable, config, sampler_of(trainable), trained)
  small = sampler_of(trainable, weights="int8", cache="int8")
  out, off = gap_of(trainable, config, small, trained)
  assert exact["policy/logp_gap_max"] < 1e-5
  assert 1e-3 < off["policy/logp_gap_mean"] < 0.1
  assert 0 < off["policy/logp_gap_k3"] < 0.05
  assert np.isfinite(out.logp_BT).all()


@pytest.mark.parametrize("rank", [0, 2])
def test_int8_weights_are_a_quarter_of_float32_ones(rank):
  """Of matrices, with their scales beside them; an adapter stays as it is."""
  trainable = trainable_of(C, **{"lora.rank": rank})
  trained, frozen = trainable.fresh("zero", ""), trainable.frozen("")
  sampler = sampler_of(trainable, weights="int8")
  weights = sampler.weights(trained, sampler.hold(frozen))
  o = weights["layers"]["0"]["attn"]["o"]
  base = o.base if isinstance(o, layers.Adapted) else o
  assert isinstance(base, Quantized) and base.values.dtype == jnp.int8
  if rank:
    assert o.a.dtype == o.b.dtype == jnp.float32
  own = trained if frozen is None else frozen
  before = trees.num_bytes(own["layers"]["mlp"])
  after = trees.num_bytes([weights["layers"][z]["mlp"] for z in ("0", "1")])
  num_scales = C.depth * (2 * C.ffw + C.width)
  assert after == before / 4 + 4 * num_scales


def test_the_checksum_follows_the_int8_weights():
  trainable = trainable_of(C, **{"lora.rank": 0})
  params = trainable.fresh("zero", "")
  sampler = sampler_of(trainable, weights="int8")

  def checksum(params):
    out = sampler(sampler.weights(params), [PROMPT], [PROBLEM], jax.random.key(0))
    return int(out.weights_checksum)

  largest = jnp.abs(params["embed"]).max()
  moved = {**params, "embed": params["embed"].at[5, 3].set(-largest)}
  assert checksum(params) == checksum(params) != checksum(moved)


def test_other_kinds_are_refused():
  with pytest.raises(InputError, match=r"config\.rollout\.weights='int4' is not known"):
    sampler_of(trainable_of(C), weights="int4")
