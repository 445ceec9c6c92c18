"""Ratios and surrogates: worked numbers, corners, gradients, what counts as clipped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives import policy
from tests.objectives.laid import Layout

BOUNDS = {"clip_low": 0.2, "clip_high": 0.2}
GATES = {"gate_positive": 1.0, "gate_negative": 1.05}
NONE = dict.fromkeys(
  ("clip_low", "clip_high", "clip_dual", "gate_positive", "gate_negative")
)


def at(name, ratio, adv, **settings):
  """(cost, its slope by log w, clipped) of one token; log w is the log-prob."""

  def cost(log_ratio):
    logp = log_ratio - 2.0
    given = NONE | settings
    cost, clipped = policy.cost(name, logp, log_ratio, jnp.asarray(adv), given)
    return cost, clipped

  (cost, clipped), slope = jax.value_and_grad(cost, has_aux=True)(jnp.log(ratio))
  return float(cost), float(slope), None if clipped is None else bool(clipped)


@pytest.mark.parametrize(
  ("ratio", "adv", "clip", "want_cost", "want_gradient"),
  [
    pytest.param(1.5, +1.0, 0.2, -1.2, False, id="gain_saturates"),
    pytest.param(0.5, +1.0, 0.2, -0.5, True, id="gain_still_free"),
    pytest.param(0.5, -1.0, 0.2, 0.8, False, id="harm_saturates"),
    pytest.param(1.5, -1.0, 0.2, 1.5, True, id="harm_still_free"),
    pytest.param(12.0, +1.0, 10.0, -11.0, False, id="r1_gain_saturates_at_11"),
    pytest.param(12.0, -1.0, 10.0, 12.0, True, id="r1_harm_never_saturates"),
    pytest.param(1e-4, -1.0, 10.0, 1e-4, True, id="r1_harm_near_zero_ratio"),
    pytest.param(10.9, +1.0, 10.0, -10.9, True, id="r1_gain_below_11"),
    pytest.param(3.0, 0.0, 0.2, 0.0, False, id="no_advantage"),
  ],
)
def test_corners_of_the_clip(ratio, adv, clip, want_cost, want_gradient):
  got, slope, clipped = at("clip", ratio, adv, clip_low=clip, clip_high=clip)
  np.testing.assert_allclose(got, want_cost, rtol=1e-5)
  assert (slope != 0.0) == want_gradient
  assert clipped == (not want_gradient and adv != 0)


def test_bounds_are_two_settings():
  """DAPO's worked numbers, and which side counts as clipped."""
  bounds = {"clip_low": 0.2, "clip_high": 0.28}
  np.testing.assert_allclose(at("clip", 1.5, 1.0, **bounds)[0], -1.28, rtol=1e-6)
  np.testing.assert_allclose(at("clip", 0.5, -1.0, **bounds)[0], 0.8, rtol=1e-6)
  for low, high, want in ((0.2, 0.6, (False, True)), (0.6, 0.28, (True, False))):
    bounds = {"clip_low": low, "clip_high": high}
    got = at("clip", 1.5, 1.0, **bounds)[2], at("clip", 0.5, -1.0, **bounds)[2]
    assert got == want


@pytest.mark.parametrize(
  ("ratio", "adv", "want_cost", "want_gradient"),
  [
    pytest.param(5.0, -2.0, 6.0, False, id="harm_stops_at_three_times"),
    pytest.param(2.5, -2.0, 5.0, True, id="harm_below_it"),
    pytest.param(0.5, -2.0, 1.6, False, id="harm_saturates_as_before"),
    pytest.param(5.0, 2.0, -2.4, False, id="gain_saturates_as_before"),
    pytest.param(0.5, 2.0, -1.0, True, id="gain_still_free"),
  ],
)
def test_corners_of_the_dual_clip(ratio, adv, want_cost, want_gradient):
  got, slope, clipped = at("dual_clip", ratio, adv, **BOUNDS, clip_dual=3.0)
  np.testing.assert_allclose(got, want_cost, rtol=1e-5)
  assert (slope != 0.0) == want_gradient == (not clipped)


@pytest.mark.parametrize(
  ("ratio", "want_weight", "want_clipped"),
  [(0.5, 0.5, False), (1.0, 1.0, False), (4.9, 4.9, False), (7.0, 5.0, True)],
)
def test_cispo_keeps_every_tokens_gradient(ratio, want_weight, want_clipped):
  """No lower bound at clip_low 1; ScaleRL's cap of 5 is clip_high 4."""
  for adv in (1.5, -0.5):
    cost, slope, clipped = at("cispo", ratio, adv, clip_low=1.0, clip_high=4.0)
    np.testing.assert_allclose(slope, -want_weight * adv, rtol=1e-6)
    np.testing.assert_allclose(cost, slope * (np.log(ratio) - 2.0), rtol=1e-5)
    assert clipped == want_clipped
  assert at("cispo", 0.5, 1.0, **BOUNDS)[1] == pytest.approx(-0.8)


def test_soft_gate_by_hand():
  """At w = 1 the slope of w A; away from it less on both sides, faster for harm."""
  for adv in (2.0, -2.0):
    cost, slope, clipped = at("soft_gate", 1.0, adv, **GATES)
    tau = 1.0 if adv > 0 else 1.05
    assert cost == pytest.approx(-2 / tau * adv)
    assert slope == pytest.approx(-adv)
    assert clipped is None
  gate = 1 / (1 + np.exp(-0.5))
  cost, slope, _ = at("soft_gate", 1.5, 1.0, **GATES)
  assert cost == pytest.approx(-4 * gate)
  assert slope == pytest.approx(-4 * gate * (1 - gate) * 1.5)
  gate = 1 / (1 + np.exp(-1.05 * 0.5))
  cost, slope, _ = at("soft_gate", 1.5, -1.0, **GATES)
  assert cost == pytest.approx(4 / 1.05 * gate)
  assert slope == pytest.approx(4 * gate * (1 - gate) * 1.5)


def test_reinforce_is_the_log_likelihood():
  cost, slope, clipped = at("reinforce", 3.0, 0.7)
  assert cost == pytest.approx(-0.7 * (np.log(3.0) - 2.0))
  assert (slope, clipped) == (pytest.approx(-0.7), None)


@pytest.mark.parametrize("name", sorted(policy.SURROGATES))
def test_identical_weights_give_the_plain_policy_gradient(name):
  """Method fact: at w = 1 nothing is clipped and grad J = A grad logp, for all."""
  settings = NONE | BOUNDS | GATES | {"clip_dual": 3.0}
  for adv in (1.3, -0.4):
    _, slope, clipped = at(name, 1.0, adv, **settings)
    assert slope == pytest.approx(-adv)
    assert not clipped


def packed():
  """log-probs, old ones, advantages of four answers, and where they lie."""
  rng = np.random.default_rng(1)
  lengths = [3, 1, 4, 2]
  layout = Layout(lengths, per_row=2)
  logp = [rng.normal(size=n) for n in lengths]
  old = [x + rng.uniform(-0.5, 0.5, len(x)) for x in logp]
  adv = [np.full(n, rng.normal()) for n in lengths]
  return layout, *(layout.rows(x, fill=0.0) for x in (logp, old, adv))


@pytest.mark.parametrize("name", ["clip", "dual_clip", "soft_gate"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_gradient_by_finite_differences(ratio, name):
  """The others have constants in them, and are compared with formulas above."""
  settings = NONE | BOUNDS | GATES | {"clip_dual": 1.3}
  with jax.enable_x64(True):
    layout, logp, old, adv = packed()

    @jax.jit
    def total(logp):
      log_ratio = policy.RATIOS[ratio](logp, old, layout.mask_BL, layout.segments_BL)
      cost, _ = policy.cost(name, logp, log_ratio, adv, settings)
      return (cost * layout.mask_BL).sum()

    gradient, step = jax.grad(total)(logp), 1e-6
    for place in np.argwhere(layout.mask_BL):
      move = jnp.zeros_like(logp).at[tuple(place)].set(step)
      want = (total(logp + move) - total(logp - move)) / (2 * step)
      np.testing.assert_allclose(gradient[tuple(place)], want, atol=1e-7)


def test_only_the_new_log_prob_is_differentiated():
  def cost(logp, old, adv):
    log_ratio = policy.token_ratio(logp, old, None, None)
    settings = NONE | {"clip_low": 9.0, "clip_high": 9.0}
    return policy.cost("clip", logp, log_ratio, adv, settings)[0]

  new, old, adv = jax.grad(cost, argnums=(0, 1, 2))(-1.0, -1.2, 2.0)
  assert float(new) != 0.0
  assert (float(old), float(adv)) == (0.0, 0.0)


def test_sequence_ratio_by_hand():
  """GSPO's worked numbers: 1.010050 of a geometric mean, 1.040811 of a product."""
  d = np.asarray([0.01, -0.02, 0.04, 0.01])
  layout = Layout([4])
  logp_BL, old_BL = layout.rows([d]), layout.rows([np.zeros(4)])
  (got,) = layout.answers(
    policy.sequence_ratio(logp_BL, old_BL, layout.mask_BL, layout.segments_BL)
  )
  np.testing.assert_allclose(np.exp(got), 1.010050, atol=1e-6)
  np.testing.assert_allclose(np.exp(4 * got), 1.040811, atol=1e-6)
  bounds = {"clip_low": 3e-4, "clip_high": 4e-4}
  assert at("clip", float(np.exp(got[0])), 1.0, **bounds)[0] == pytest.approx(-1.0004)


def test_sequence_token_ratio_is_gspos_where_an_answer_has_one_advantage():
  """The same values; gradients the same by answer, as all tokens weigh the same."""
  layout, logp, old, adv = packed()

  @functools.partial(jax.jit, static_argnums=0)
  def run(name, logp):
    def total(logp):
      log_ratio = policy.RATIOS[name](logp, old, layout.mask_BL, layout.segments_BL)
      cost, _ = policy.cost("clip", logp, log_ratio, adv, NONE | BOUNDS)
      return (cost * layout.mask_BL).sum(), log_ratio

    return jax.value_and_grad(total, has_aux=True)(logp)

  (cost, ratio), gradient = run("sequence", logp)
  (cost_token, ratio_token), gradient_token = run("sequence_token", logp)
  inside = layout.mask_BL > 0
  np.testing.assert_allclose(ratio_token[inside], ratio[inside], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(cost_token, cost, rtol=1e-5)
  np.testing.assert_allclose(gradient_token, gradient, rtol=1e-5, atol=1e-6)
  for own in layout.answers(gradient):
    np.testing.assert_allclose(own, own[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "dual_clip", "cispo", "soft_gate"])
def test_a_setting_that_is_needed_is_named(name):
  with pytest.raises(InputError, match=rf"config\.loss\.\w+=None.*'{name}'"):
    at(name, 1.0, 1.0)
