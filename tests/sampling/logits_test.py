"""The distribution drawn from, against float64, and draws against the distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from r1jax.errors import InputError
from r1jax.sampling import logits
from tests import tiny

LOG_DISTRIBUTION, DRAW = jax.jit(logits.log_distribution), jax.jit(logits.draw)
SAMPLE = jax.jit(logits.sample, static_argnames="plain")

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


LARGE = np.random.default_rng(1).normal(size=(6, 1500)).astype(np.float32) * 2
WIDE = np.stack(
  [
    LARGE[0],
    LARGE[1] + 100,
    np.asarray(LARGE[2].astype(jnp.bfloat16), np.float32),
    np.round(LARGE[3]),  # far more ties than are compared
    np.where(LARGE[4] > 0, 0, LARGE[4]),
    np.where(np.arange(1500) % 2, LARGE[5], -np.inf),
    np.zeros(1500, np.float32),
    np.where(np.arange(1500) % 3, -0.0, LARGE[0] * 1e-38),
  ]
).astype(np.float32)


@pytest.mark.parametrize(
  "settings",
  [
    {"top_p": 0.0},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"temperature": 3.0, "top_p": 0.95},
    {"temperature": 0.1, "top_p": 0.95},
    {"top_k": 1},
    {"top_k": 64},
    {"top_k": 65},
    {"top_k": 700},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.01},
  ],
  ids=str,
)
def test_what_is_kept_of_a_large_vocabulary(settings):
  """The same as by a sort in float64, where the mass is not within rounding of top_p;
  rows full of ties, of logits around 0 and of forbidden tokens among them."""
  got = probabilities(WIDE, **settings)
  for row, prob in zip(WIDE, got, strict=True):
    heat, top_p = settings.get("temperature", 1.0), settings.get("top_p", 1.0)
    # Numbers too small for float32's exponent may count as 0.
    row = np.where(np.abs(row) < np.finfo(np.float32).tiny, 0, row).astype(np.float64)
    weight = np.exp((row - row.max()) / heat)
    order = np.argsort(-row, kind="stable")
    place = np.searchsorted(-row[order], -row)  # the first one of its ties
    mass_before = np.append(0, np.cumsum(weight[order]))[place] / weight.sum()
    keep = place < settings.get("top_k", row.size)
    keep &= weight >= settings.get("min_p", 0.0)
    certain = np.abs(mass_before - top_p) > 1e-5
    keep &= (mass_before < top_p) | (place == 0)
    keep &= row > -np.inf
    assert ((prob > 0) == keep)[certain & (weight > 1e-30)].all()
    for value in np.unique(row):
      assert len({*(prob[row == value] > 0)}) == 1


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
  """R20: temperature, truncation, penalty and stop ids are traced."""
  uniform, seen, drawn = np.full(6, 0.5, np.float32), NORMAL > 0, np.arange(6)

  def sample(**settings):
    controls = logits.controls(6, max_tokens=1, **settings)
    SAMPLE(NORMAL, controls, uniform, seen_SV=seen, drawn_S=drawn)
    LOG_DISTRIBUTION(NORMAL, controls)
    return SAMPLE._cache_size(), LOG_DISTRIBUTION._cache_size()

  assert sample() == sample(
    temperature=0.0,
    top_k=4,
    top_p=0.5,
    min_p=0.1,
    repetition_penalty=1.5,
    min_tokens=3,
    stop_ids=(2, 3),
  )


# --------------------------------------------------- penalty, stop ids, both log-probs


def test_repetition_penalty():
  """CTRL's, on what was seen only, before the temperature."""
  raw = np.asarray([[2.0, 2.0, -1.0, -1.0, 0.0]], np.float32)
  seen = np.asarray([[True, False, True, False, True]])
  controls = logits.controls(1, max_tokens=1, temperature=0.5, repetition_penalty=1.6)
  want = np.asarray([1.25, 2.0, -1.6, -1.0, 0.0]) / 0.5
  got = LOG_DISTRIBUTION(raw, controls, seen_SV=seen)[0]
  np.testing.assert_allclose(got, scipy.special.log_softmax(want), rtol=1e-5)
  greedy = logits.controls(1, max_tokens=1, temperature=0.0, repetition_penalty=1.6)
  token_S, logp_S, _ = SAMPLE(raw, greedy, np.zeros(1, np.float32), seen_SV=seen)
  assert (token_S[0], logp_S[0]) == (1, 0.0)


def test_seen_is_the_prompt_without_its_padding():
  got = logits.seen(jnp.asarray([[3, 0, 3], [1, 2, 0]]), jnp.asarray([3, 2]), 5)
  np.testing.assert_array_equal(got, [[1, 0, 0, 1, 0], [0, 1, 1, 0, 0]])


def test_stop_ids_have_no_mass_before_min_tokens():
  """Counted a row; what pads the list forbids nothing, the last token least of all."""
  controls = logits.controls(6, max_tokens=9, min_tokens=3, stop_ids=(4, 0))
  drawn = np.arange(6)
  got = np.exp(LOG_DISTRIBUTION(NORMAL, controls, drawn_S=drawn))
  for row, prob, count in zip(NORMAL, got, drawn, strict=True):
    forbidden = np.isin(np.arange(17), [0, 4]) & (count < 3)
    want = scipy.special.softmax(np.where(forbidden, -np.inf, row))
    np.testing.assert_allclose(prob, want, rtol=1e-4)
  np.testing.assert_array_equal(
    logits.is_stop(jnp.asarray([4, 0, 1, 16, 4, 2]), controls), [1, 1, 0, 0, 1, 0]
  )


def test_controls_that_are_refused():
  with pytest.raises(InputError, match="stop_ids has 9 ids; a row can have 8"):
    logits.controls(1, max_tokens=1, stop_ids=range(9))
  with pytest.raises(InputError, match=r"repetition_penalty=0\.0 must be above 0"):
    logits.controls(1, max_tokens=1, repetition_penalty=0.0)


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"temperature": 0.6},
    {"temperature": 0.0, "top_p": 0.5},
    {"top_p": 0.9},
    {"temperature": 1.4, "top_k": 9, "min_p": 0.02},
    {"repetition_penalty": 1.4, "min_tokens": 2, "stop_ids": (0, 3, 5)},
    {"temperature": 0.0, "repetition_penalty": 1.4},
  ],
  ids=str,
)
@pytest.mark.parametrize("num_tokens", [17, 1499, 1500])
def test_sample_draws_from_the_distribution(settings, num_tokens):
  """The token that `draw` takes from `log_distribution`, its log-prob there, and the
  one under softmax(logits)."""
  raw = LARGE[:, :num_tokens].astype(jnp.bfloat16)
  controls = logits.controls(6, max_tokens=1, **settings)
  before = {"seen_SV": LARGE[:, -num_tokens:] > 1, "drawn_S": np.arange(6)}
  for more in ({}, before):
    logp_SV = np.asarray(LOG_DISTRIBUTION(raw, controls, **more))
    for number in (0.0, 0.3, 0.77, 0.95):
      uniform = np.full(6, number, np.float32)
      token_S, logp_S, plain_logp_S = SAMPLE(raw, controls, uniform, plain=True, **more)
      np.testing.assert_array_equal(token_S, DRAW(logp_SV, uniform))
      rows = np.arange(6)
      np.testing.assert_allclose(logp_S, logp_SV[rows, token_S], atol=3e-6)
      plain = scipy.special.log_softmax(raw.astype(np.float64), axis=-1)
      np.testing.assert_allclose(plain_logp_S, plain[rows, token_S], atol=3e-6)
  assert SAMPLE(raw, controls, uniform)[2] is None


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


def test_draw_has_leading_axes_as_it_likes():
  logp = np.log(np.random.default_rng(0).dirichlet(np.ones(9), (2, 3)))
  uniform = grid(6).reshape(2, 3)
  got = DRAW(logp.astype(np.float32), uniform)
  want = (np.cumsum(np.exp(logp), axis=-1) <= uniform[..., None]).sum(-1)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("num_tokens", [1, 2, 97, 32000, 49152, 50257, 151936])
def test_blocks_are_about_the_square_root(num_tokens):
  width = logits._block_width(num_tokens)
  assert 1 / 8 <= width / num_tokens**0.5 <= 8
  assert num_tokens % width == 0 or num_tokens == 97


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
