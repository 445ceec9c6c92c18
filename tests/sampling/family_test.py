"""The rollout of every architecture against full forwards of what it drew."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import prng
from r1jax.models import transformer
from r1jax.sampling import logits
from tests import tiny

KEY = prng.at(prng.root(0), "rollout", 7)
# Four prompts, three samples each in five slots, of up to 40 tokens: two windows.
SETTINGS = {**tiny.REFILL, "max_tokens": 40, "stop_ids": (11,)}
TEMPERATURES = np.repeat(np.asarray([0.0, 1.0, 0.7, 1.3], np.float32), 3)


@functools.cache
def rollout(name):
  c = tiny.FAMILY[name]
  controls = logits.controls(12, max_tokens=40)
  controls = controls.replace(temperature=TEMPERATURES)
  generate = tiny.generator(c, record_experts=c.experts is not None, **SETTINGS)
  out = generate(tiny.params(c), tiny.prompts(tiny.PROMPTS), controls, KEY)
  return jax.tree.map(np.asarray, out)


@functools.cache
def full(name):
  """(sequences, float32 logits of each token's successor, experts [B, L, Z, K])."""
  c, out = tiny.FAMILY[name], rollout(name)
  whole = [
    np.concatenate([tiny.PROMPTS[b // 3], out.tokens_BT[b, :n]]).astype(np.int32)
    for b, n in enumerate(out.length_B)
  ]
  rows = tiny.plain_rows(whole)

  @jax.jit
  def run(params):
    hidden_BLD, _, routed = transformer.forward(
      c, params, rows.tokens_BL, rows.positions_BL
    )
    went = None if routed is None else jnp.moveaxis(routed.experts_ZBLK, 0, 2)
    return transformer.unembed(params, hidden_BLD), went

  return whole, *jax.tree.map(np.asarray, run(tiny.params(c)))


@jax.jit
def uniform_at(problem, sample, place):
  key = KEY
  for number in (problem, sample, place):
    key = jax.random.fold_in(key, number)
  return jax.random.uniform(key)


@pytest.mark.parametrize("name", tiny.FAMILY)
def test_each_token_is_the_one_that_a_full_forward_gives(name):
  """R3, R21: refilled slots, shared prompts and windows; greedy and sampled rows."""
  out = rollout(name)
  _, logits_BLV, _ = full(name)
  assert out.stopped_B.any() and (out.length_B > 32).any()
  for b, length in enumerate(out.length_B):
    start = len(tiny.PROMPTS[b // 3]) - 1
    for place in range(length):
      row_V, token = logits_BLV[b, start + place], out.tokens_BT[b, place]
      prob_V = tiny.plain_distribution(row_V, temperature=TEMPERATURES[b])
      uniform = float(uniform_at(100 + b // 3, b % 3, place))
      # A draw may lie on the border of two tokens, to within float32.
      below = np.concatenate([[0.0], np.cumsum(prob_V)])[[token, token + 1]]
      assert below[0] - 1e-5 <= uniform <= below[1] + 1e-5, (b, place)
      np.testing.assert_allclose(
        out.logp_BT[b, place], np.log(prob_V[token]), atol=1e-4
      )


@pytest.mark.parametrize("name", [n for n, c in tiny.FAMILY.items() if c.experts])
def test_recorded_experts_are_those_of_a_full_forward(name):
  out = rollout(name)
  _, _, went_BLZK = full(name)
  for b, length in enumerate(out.length_B):
    before = len(tiny.PROMPTS[b // 3]) - 1
    prompt = out.prompt_experts_QPZK[b // 3, :before]
    own = out.experts_BTZK[b, :length]
    got = np.sort(np.concatenate([prompt, own]))
    np.testing.assert_array_equal(got, np.sort(went_BLZK[b, : before + length]))
    assert (out.experts_BTZK[b, length:] == -1).all()
