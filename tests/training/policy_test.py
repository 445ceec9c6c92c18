"""The policy's loss from scores, and the gap between sampler and trainer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.sampling import logits
from r1jax.training import policy
from r1jax.training.logprobs import TokenScores, token_logprobs
from tests import tiny

C = tiny.config()
CORRECTION = {
  "correction": "none",
  "correction_level": "token",
  "correction_cap": 2.0,
  "correction_veto": 0.0,
}
OBJECTIVE = CORRECTION | tiny.objective(clip_low=0.2, clip_high=0.2, kl_coef=0.05)


def scored(params, e, **settings):
  return token_logprobs(C, params, e.rows, temperature=0.9, chunk=64, **settings)


@functools.cache
def experience():
  e = tiny.experience(C)
  return e.replace(logp_old_BL=scored(tiny.params(C), e).logp_BL)


def test_old_logprobs_may_be_left_out_where_they_are_the_policys_own():
  def value(params, e):
    return policy.policy_loss(scored(params, e), e, **OBJECTIVE)[0]

  with_old = jax.value_and_grad(value)(tiny.params(C), experience())
  without = jax.value_and_grad(value)(
    tiny.params(C), experience().replace(logp_old_BL=None)
  )
  tiny.assert_same_sums(without, with_old, tolerance=1e-6)


@pytest.mark.parametrize("correction", ["none", "truncate"])
def test_what_is_not_scored_before_is_scored_by_the_way(correction):
  """The first mini-batch of several: as with scores of before, by the same program."""
  e, settings = experience(), {**OBJECTIVE, "correction": correction}
  how = {key: settings[key] for key in CORRECTION}

  @jax.jit
  def value(params, e):
    return policy.policy_loss(scored(params, e), e, **settings)

  before, seen = policy.scored(scored(tiny.params(C), e), e, **how)
  now = policy.unscored(e, correction=correction, correction_veto=0.0)
  before, now = jax.tree.map(jnp.asarray, (before, now))
  assert bool(jnp.isnan(now.logp_old_BL).all())
  want, got = value(tiny.params(C), before), value(tiny.params(C), now)
  assert value._cache_size() == 1
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
  for name, statistic in seen.items():
    assert want[1][name].value() == 0
    np.testing.assert_allclose(got[1][name].value(), statistic.value(), rtol=1e-5)


def test_the_gap_is_measured_where_the_weights_are_those_that_drew():
  e = experience()
  scores = scored(tiny.params(C), e)
  _, off_policy = policy.policy_loss(scores, e, **OBJECTIVE)
  _, on_policy = policy.policy_loss(scores, e.replace(logp_old_BL=None), **OBJECTIVE)
  for name in ("logp_gap_mean", "logp_gap_max", "logp_gap_k3"):
    assert off_policy[f"policy/{name}"].value() == 0
    assert on_policy[f"policy/{name}"].value() > 0


def test_weights_come_from_the_behaviour_and_the_start_of_the_step():
  """Ratios e^0.5, e^2 (above the cap) and e^-1 of the shaped log-probs."""
  e = tiny.experience(C, num_rows=1)
  mask = np.zeros_like(e.rows.mask_BL)
  mask[0, 3:6] = 1
  behaviour = np.full(mask.shape, np.nan, np.float32)
  behaviour[0, 3:6] = (-2.0, -3.5, -0.5)
  e = e.replace(rows=e.rows.replace(mask_BL=mask), logp_behaviour_BL=behaviour)
  plain, shaped = jnp.full(mask.shape, -1.7), jnp.full(mask.shape, -1.5)
  scores = TokenScores(plain, plain, shaped)
  got, seen = policy.scored(scores, e, **CORRECTION | {"correction": "truncate"})
  np.testing.assert_allclose(
    got.importance_BL[0, 3:6], [1.648721, 2.0, 0.3678794], rtol=1e-6
  )
  np.testing.assert_array_equal(got.logp_old_BL, plain)
  assert float(seen["policy/importance_capped"].value()) == pytest.approx(1 / 3)
  got, seen = policy.scored(scores, e, **CORRECTION)
  assert got.importance_BL is None
  assert not any("importance" in name for name in seen)
  got, _ = policy.scored(scores, e, **CORRECTION | {"correction_veto": 0.5})
  assert (got.importance_BL[0, 3:6] == 0).any()


def test_importance_weights_the_policys_gradient_and_nothing_else():
  """With every weight at the cap it is a factor of the surrogate, not of the KL."""
  e = experience().replace(logp_old_BL=None)
  far = e.replace(logp_behaviour_BL=np.full_like(e.logp_behaviour_BL, -50.0))

  def value(params, e, **settings):
    return policy.policy_loss(scored(params, e), e, **{**OBJECTIVE, **settings})[0]

  grad = jax.grad(value)
  cap, params = 0.5, tiny.params(C)
  got = grad(params, far, correction="truncate", correction_cap=cap)
  surrogate = grad(params, e, kl_coef=0.0)
  want = jax.tree.map(
    lambda whole, own: whole - (1 - cap) * own, grad(params, e), surrogate
  )
  tiny.assert_same_sums(got, want, tolerance=1e-5)


def test_the_entropy_bonus_reaches_the_weights():
  """Without advantages or a KL the gradient is -coef times that of the entropies."""
  e, settings = experience(), {"reduction": "token_mean", "entropy_coef": 0.1}
  e = e.replace(advantage_BL=np.zeros_like(e.advantage_BL))

  def value(params):
    scores = scored(params, e, entropy_gradient=True)
    return policy.policy_loss(scores, e, **OBJECTIVE | settings | {"kl_coef": 0.0})[0]

  def want(params):
    return -0.1 * scored(params, e, entropy_gradient=True).entropy_BL.sum()

  got, want = (jax.jit(jax.grad(f))(tiny.params(C)) for f in (value, want))
  tiny.assert_same_sums(got, want, tolerance=1e-5)


def test_gap_by_hand():
  e = tiny.experience(C, num_rows=1)
  mask = np.zeros_like(e.rows.mask_BL)
  mask[0, 3:5] = 1
  behaviour = np.full(mask.shape, np.nan, np.float32)
  behaviour[0, 3:5] = (-1.0, -2.0)
  e = e.replace(rows=e.rows.replace(mask_BL=mask), logp_behaviour_BL=behaviour)
  ours = jnp.full(mask.shape, -1.5)
  seen = policy.gap(TokenScores(ours, ours, ours), e)
  k3 = (np.exp(-0.5) + 0.5 - 1 + np.exp(0.5) - 0.5 - 1) / 2
  assert float(seen["policy/logp_gap_mean"].value()) == pytest.approx(0.5)
  assert float(seen["policy/logp_gap_max"].value()) == pytest.approx(0.5)
  assert float(seen["policy/logp_gap_k3"].value()) == pytest.approx(k3)


@pytest.mark.parametrize(
  "sampling",
  [
    {"temperature": 0.7, "top_k": 5, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.8, "min_p": 0.0},
    {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "min_p": 0.1},
  ],
)
def test_a_trainer_shapes_logits_as_the_sampler_does(sampling):
  raw = np.random.default_rng(0).normal(size=(4, 33)).astype(np.float32)
  shape = logits.shaper(**sampling)
  for row, got in zip(raw, np.exp(shape(jnp.asarray(raw))), strict=True):
    np.testing.assert_allclose(got, tiny.plain_distribution(row, **sampling), atol=1e-6)


def test_plain_sampling_needs_no_shaping():
  assert logits.shaper(temperature=0.7, top_k=0, top_p=1.0, min_p=0.0) is None
