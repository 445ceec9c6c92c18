"""The distribution drawn from, against float64, and draws against the distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from r1jax.sampling import logits
from tests import tiny

LOG_DISTRIBUTION, DRAW = jax.jit(logits.log_distribution), jax.jit(logits.draw)

NORMAL = np.random.default_rng(0).normal(size=(6, 17)).astype(np.float32) * 2
# Probabilities 1/4, 1/4, 1/8 x 3, 1/16, 1/32 x 2: exact in float32, full of ties.
TIES = np.log([[2, 8, 4, 1, 8, 4, 1, 4]]).astype(np.float32)


def probabilities(logits_SV, **settings):
  rows = len(logits_SV)
  controls = logits.controls(rows, max_tokens=1, **settings)
  return np.exp(np.asarray(LOG_DISTRIBUTION(logits_SV, controls), np.float64))


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"temperature": 0.0},
    {"temperature": 0.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
    {"temperature": 0.05},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 17},
    {"top_k": 1000},
    {"top_p": 1e-6},
    {"top_p": 0.0},
    {"top_p": 0.7},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.9},
    {"temperature": 1.4, "top_p": 0.8, "min_p": 0.1},
    {"temperature": 0.5, "top_k": 9, "top_p": 0.95, "min_p": 0.02},
  ],
  ids=str,
)
def test_against_a_plain_float64_sampler(settings):
  got = probabilities(NORMAL, **settings)
  want = [tiny.plain_distribution(row, **settings) for row in NORMAL]
  np.testing.assert_array_equal(got > 0, np.asarray(want) > 0)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
  ("settings", "kept"),
  [
    ({"top_k": 1}, {1, 4}),
    ({"top_k": 3}, {1, 2, 4, 5, 7}),
    ({"top_k": 6}, {0, 1, 2, 4, 5, 7}),
    ({"top_p": 0.2}, {1, 4}),
    ({"top_p": 0.45}, {1, 4}),
    ({"top_p": 0.55}, {1, 2, 4, 5, 7}),
    ({"top_p": 0.9}, {0, 1, 2, 4, 5, 7}),
    ({"top_p": 0.95}, set(range(8))),
    ({"min_p": 0.45}, {1, 2, 4, 5, 7}),
    ({"min_p": 0.55}, {1, 4}),
    ({"min_p": 7.0}, {1, 4}),
    ({"top_k": 6, "min_p": 0.45}, {1, 2, 4, 5, 7}),
    ({"temperature": 0.0}, {1}),
  ],
  ids=str,
)
def test_ties_stay_together(settings, kept):
  """Equal probabilities share their fate, greedy takes the first; something stays."""
  got = probabilities(TIES, **settings)[0]
  assert set(np.flatnonzero(got)) == kept
  weight = np.where(got > 0, np.exp(TIES[0]), 0)
  np.testing.assert_allclose(got, weight / weight.sum(), rtol=1e-5)


def test_rows_have_controls_of_their_own():
  settings = [
    {"temperature": 0.0},
    {"temperature": 2.0},
    {"top_k": 2},
    {"top_p": 0.3},
    {"min_p": 0.5},
    {"temperature": 0.7, "top_p": 0.9},
  ]
  each = [logits.controls(1, max_tokens=1, **s) for s in settings]
  controls = jax.tree.map(lambda *leaves: np.concatenate(leaves), *each)
  got = np.exp(LOG_DISTRIBUTION(NORMAL, controls))
  want = [
    tiny.plain_distribution(row, **s) for row, s in zip(NORMAL, settings, strict=True)
  ]
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_half_precision_and_forbidden_logits():
  """bfloat16 comes out as float32; a logit of -inf stays impossible under any cut."""
  row = NORMAL[:1].copy()
  row[0, row[0].argmax()] = -np.inf
  for settings in ({}, {"top_p": 0.9}, {"temperature": 0.0}, {"top_k": 17}):
    got = probabilities(row, **settings)
    assert got[row == -np.inf] == 0
    np.testing.assert_allclose(got.sum(), 1, rtol=1e-5)
  half = LOG_DISTRIBUTION(NORMAL.astype(jnp.bfloat16), logits.controls(6, max_tokens=1))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(np.exp(half).sum(-1), 1, rtol=1e-5)


def test_changing_controls_compiles_nothing():
  """R20: temperature and truncation are traced."""
  probabilities(NORMAL)
  before = LOG_DISTRIBUTION._cache_size()
  probabilities(NORMAL, temperature=0.0, top_k=4, top_p=0.5, min_p=0.1)
  assert LOG_DISTRIBUTION._cache_size() == before


def grid(num, offset=0.5):
  return ((np.arange(num) + offset) / num).astype(np.float32)


@pytest.mark.parametrize("num_tokens", [2, 3, 17, 1000])
def test_draw_inverts_the_cumulative_distribution(num_tokens):
  """Over an even grid of uniforms each token comes in proportion, in order."""
  rng = np.random.default_rng(num_tokens)
  prob = rng.dirichlet(np.full(num_tokens, 0.3))
  uniform = grid(4096)
  logp = np.log(prob + 1e-30).astype(np.float32)
  got = np.asarray(DRAW(np.broadcast_to(logp, (4096, num_tokens)), uniform))
  assert got.dtype == np.int32 and (np.diff(got) >= 0).all()
  share = np.bincount(got, minlength=num_tokens) / 4096
  np.testing.assert_allclose(share, prob, atol=1.5 / 4096)


def test_draw_frequencies():
  """Chi-square against the distribution, with the uniforms that decoding uses."""
  prob = tiny.plain_distribution(NORMAL[0], temperature=1.5, top_p=0.95)
  uniform = np.asarray(jax.random.uniform(jax.random.key(0), (4096,)))
  with np.errstate(divide="ignore"):
    logp = np.log(prob).astype(np.float32)
  got = np.asarray(DRAW(np.broadcast_to(logp, (4096, 17)), uniform))
  seen = np.bincount(got, minlength=17)
  assert seen[prob == 0].sum() == 0
  kept = prob > 0
  assert scipy.stats.chisquare(seen[kept], 4096 * prob[kept]).pvalue > 0.01


@pytest.mark.parametrize("num_tokens", [2, 17, 1000, 49152])
def test_no_token_without_mass_is_ever_drawn(num_tokens):
  """Uniforms of 0 and just below 1, and around every step of the cumulative sum, where
  rounding lands on neighbours."""
  rng = np.random.default_rng(num_tokens)
  kept = rng.random(num_tokens) < min(0.15, 40 / num_tokens)
  kept[rng.integers(num_tokens)] = True
  for ends in ((False, False), (True, False), (False, True)):
    kept[0], kept[-1] = ends
    kept[num_tokens // 2] |= not kept.any()
    weight = np.where(kept, np.exp(3 * rng.normal(size=num_tokens)), 0)
    prob = weight / weight.sum()
    with np.errstate(divide="ignore"):
      logp = np.log(prob).astype(np.float32)
    steps = np.round(np.cumsum(prob)[kept] * 2**24)
    near = np.concatenate([steps + shift for shift in range(-3, 4)]) / 2**24
    edges = [0, 1 - 2**-24, 2**-24, 0.5]
    uniform = np.clip(np.concatenate([edges, near])[:256], 0, 1 - 2**-24)
    uniform = np.resize(uniform, 256).astype(np.float32)
    got = np.asarray(DRAW(np.broadcast_to(logp, (256, num_tokens)), uniform))
    assert kept[got].all()
    assert got[0] == np.flatnonzero(kept)[0]
    assert got[1] == np.flatnonzero(kept)[-1]


def test_an_unnormalised_tail_does_not_overrun():
  """Mass that adds up to a little less or more than 1 is drawn from as it is."""
  logp = np.log(np.full((2, 5), 0.2, np.float32)) + np.asarray([[1e-3], [-1e-3]])
  got = DRAW(logp.astype(np.float32), np.full(2, 1 - 2**-24, np.float32))
  np.testing.assert_array_equal(got, [4, 4])
