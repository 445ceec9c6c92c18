"""Rollouts with int8 weights and small caches, beside the trainer's log-probs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import prng
from r1jax.errors import InputError
from r1jax.models import layers, parameters, quantized
from r1jax.models.quantized import Quantized
from r1jax.sampling import decode, logits
from r1jax.training.logprobs import token_logprobs
from tests import tiny

KEY = prng.at(prng.root(0), "rollout", 7)
SETTINGS = {**tiny.REFILL, "max_tokens": 40, "stop_ids": (11,)}


@functools.cache
def params_of(name, weights):
  c = tiny.FAMILY[name]
  return quantized.params_in(weights, tiny.params(c), parameters.param_specs(c))


@functools.cache
def rollout(name, weights="", cache="", temperature=1.0, **changes):
  c = tiny.FAMILY[name]
  controls = logits.controls(12, max_tokens=40, temperature=temperature)
  generate = tiny.generator(c, cache=cache, **{**SETTINGS, **changes})
  prompts = tiny.prompts(tiny.PROMPTS)
  return jax.tree.map(
    np.asarray, generate(params_of(name, weights), prompts, controls, KEY)
  )


def gap(name, out, weights=""):
  """|sampler's log-prob - trainer's| of every token drawn."""
  c = tiny.FAMILY[name]
  # The trainer has whole numbers: those that the weights stand for, or the true ones.
  params = jax.tree.map(
    lambda leaf: layers.matrix(leaf) if isinstance(leaf, Quantized) else leaf,
    params_of(name, weights),
    is_leaf=lambda leaf: isinstance(leaf, Quantized),
  )
  whole = [
    [*tiny.PROMPTS[b // 3], *out.tokens_BT[b, :n].tolist()]
    for b, n in enumerate(out.length_B)
  ]
  rows = tiny.plain_rows(whole, length=46)
  score = jax.jit(lambda params: token_logprobs(c, params, rows).logp_BL)
  logp_BL = np.asarray(score(params))
  return np.concatenate(
    [
      np.abs(logp_BL[b, len(ids) - n : len(ids)] - out.logp_BT[b, :n])
      for b, (ids, n) in enumerate(zip(whole, out.length_B, strict=True))
    ]
  )


@pytest.mark.parametrize("name", tiny.FAMILY)
def test_int8_weights_draw_from_what_their_numbers_stand_for(name):
  """Prefill, every window, refilled slots, latents, experts: the gap is the rounding
  of the weights and nothing else."""
  out = rollout(name, weights="int8")
  assert gap(name, out, "int8").max() < 1e-4
  off = gap(name, out)
  assert 1e-3 < off.mean() < 0.2


@pytest.mark.parametrize("cache", quantized.CACHES)
@pytest.mark.parametrize("name", ["qwen2", "deepseek_v3"])
def test_small_caches_are_off_by_a_little(name, cache):
  off = gap(name, rollout(name, cache=cache))
  print(name, cache, off.mean(), off.max())
  if cache:
    assert 1e-4 < off.mean() < 1
  else:
    assert off.max() < 1e-4
