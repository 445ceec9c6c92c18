"""Losses on pairs: worked numbers, an oracle in float64, gradients, TRL's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives import preference

# Sums of log-probs, those of the reference, and tokens, of four pairs.
LOGP = np.array([[-10.0, -14.0], [-3.5, -9.0], [-20.25, -4.5], [-6.0, -6.0]])
REF = np.array([[-11.0, -12.5], [-3.0, -8.0], [-18.0, -5.0], [-7.5, -2.0]])
LENGTH = np.array([[5.0, 7.0], [2.0, 6.0], [9.0, 3.0], [4.0, 4.0]])
SETTINGS = {
  "dpo": {"beta": 0.3},
  "rpo": {"beta": 0.3, "nll_coef": 0.7},
  "simpo": {"beta": 2.0, "gamma": 1.0},
}


def plain(kind, logp, ref, length, *, beta, nll_coef=0.0, gamma=0.0):
  """(costs, rewards) in numpy, pair by pair, from the definitions."""
  costs, rewards = [], []
  for (w, l), (ref_w, ref_l), (n_w, n_l) in zip(logp, ref, length, strict=True):
    if kind == "simpo":
      reward_w, reward_l = beta * w / n_w, beta * l / n_l
    else:
      reward_w, reward_l = beta * (w - ref_w), beta * (l - ref_l)
    chance = 1 / (1 + np.exp(-(reward_w - reward_l - gamma)))
    costs.append(-np.log(chance) - nll_coef * w / n_w)
    rewards.append((reward_w, reward_l))
  return np.array(costs), np.array(rewards)


@pytest.mark.parametrize("kind", SETTINGS)
def test_oracle_and_gradient(kind):
  """The gradient by differences of the oracle; the reference has none."""
  is_pair = np.array([1.0, 1.0, 0.0, 1.0])

  def total(logp, ref):
    return preference.preference(
      logp, ref, LENGTH, is_pair, kind=kind, **SETTINGS[kind]
    )[0]

  def plain_total(logp):
    return (plain(kind, logp, REF, LENGTH, **SETTINGS[kind])[0] * is_pair).sum()

  ref = None if kind == "simpo" else jnp.asarray(REF)
  got, slope = jax.jit(jax.value_and_grad(total))(jnp.asarray(LOGP), ref)
  np.testing.assert_allclose(got, plain_total(LOGP), rtol=1e-6)
  for place in np.ndindex(*LOGP.shape):
    nudge = np.zeros_like(LOGP)
    nudge[place] = 1e-6
    want = (plain_total(LOGP + nudge) - plain_total(LOGP - nudge)) / 2e-6
    np.testing.assert_allclose(slope[place], want, rtol=1e-5, atol=1e-7)
  if ref is not None:
    assert not np.any(jax.jit(jax.grad(total, argnums=1))(jnp.asarray(LOGP), ref))


def test_simpo_worked_numbers():
  """Method notes, section 11: the margins of the two are -1 and 2, gamma taken off."""
  for length, want in ((7, 1.313262), (4, 0.126928)):
    cost, reward = preference.simpo(
      np.array([-10.0, -14.0]), None, np.array([5.0, length]), beta=2.0, gamma=1.0
    )
    np.testing.assert_allclose(cost, want, atol=5e-7)
    margin = reward[0] - reward[1] - 1.0
    np.testing.assert_allclose(margin, {7: -1.0, 4: 2.0}[length], atol=1e-6)


def test_dpo_and_rpo_worked_numbers():
  """Llama 3 adds 0.2 of the chosen answer's cross-entropy, of a token or of all."""
  logp, ref = np.asarray([-10.0, -14.0]), np.asarray([-11.0, -12.0])
  for length, nll_coef, want in (
    (5.0, 0.0, 0.554355),
    (5.0, 0.2, 0.954355),
    (1.0, 0.2, 2.554355),
  ):
    lengths = np.asarray([length, 4.0])
    settings = {"beta": 0.1, "nll_coef": nll_coef}
    cost, reward = preference.rpo(logp, ref, lengths, **settings)
    np.testing.assert_allclose(cost, want, atol=1e-6)
    np.testing.assert_allclose(reward[0] - reward[1], 0.3, atol=1e-6)


def test_dpo_at_the_reference_is_log_two_with_half_the_slope():
  cost, reward = preference.dpo(LOGP, LOGP, LENGTH, beta=0.1)
  np.testing.assert_allclose(cost, np.log(2), rtol=1e-6)
  np.testing.assert_array_equal(reward, 0)
  slope = jax.grad(lambda x: preference.dpo(x, LOGP, LENGTH, beta=0.1)[0].sum())(
    jnp.asarray(LOGP)
  )
  np.testing.assert_allclose(slope, np.tile([-0.05, 0.05], (4, 1)), rtol=1e-6)


def test_trls_numbers():
  """`CPOTrainer.cpo_loss` of TRL 1.16 with loss_type "simpo", which is given means.

  Its DPO is -logsigmoid(beta * delta_score), that of the oracle above.
  """
  cost, reward = preference.simpo(LOGP[:3], None, LENGTH[:3], beta=2.0, gamma=1.0)
  want = [1.3132616875182228, 1.7014132779827524, 2.5788897342925496]
  np.testing.assert_allclose(cost, want, rtol=1e-6)
  np.testing.assert_allclose(reward, [[-4, -4], [-3.5, -3], [-4.5, -3]], rtol=1e-6)


@pytest.mark.parametrize("kind", SETTINGS)
def test_sums_of_parts_and_order(kind):
  """R5: pairs may be split and permuted; what is in no pair may be anything."""
  rng = np.random.default_rng(0)
  logp, ref = -rng.exponential(5, (2, 6, 2))
  length = rng.integers(1, 9, (6, 2)).astype(np.float64)
  is_pair = np.array([1, 1, 0, 1, 1, 0], np.float64)
  logp[is_pair == 0], ref[is_pair == 0] = -np.inf, np.nan

  @jax.jit
  def loss(logp, ref, length, is_pair):
    ref = None if kind == "simpo" else ref
    return preference.preference(
      logp, ref, length, is_pair, kind=kind, **SETTINGS[kind]
    )

  def run(rows):
    return loss(logp[rows], ref[rows], length[rows], is_pair[rows])

  whole, count, seen = run(np.arange(6))
  parts = [run(np.array(rows)) for rows in ([5, 3], [0, 1], [4, 2])]
  np.testing.assert_allclose(sum(part[0] for part in parts), whole, rtol=1e-6)
  assert sum(float(part[1]) for part in parts) == float(count) == 4
  for name, mean in seen.items():
    merged = parts[0][2][name].merge(parts[1][2][name]).merge(parts[2][2][name])
    np.testing.assert_allclose(merged.value(), mean.value(), rtol=1e-5)
  slope = jax.jit(jax.grad(lambda x: loss(x, ref, length, is_pair)[0]))(logp)
  assert np.isfinite(slope).all() and not np.any(slope[is_pair == 0])


def test_metrics():
  *_, seen = preference.preference(LOGP, REF, LENGTH, np.ones(4), kind="dpo", beta=2.0)
  values = {name.removeprefix("preference/"): m.value() for name, m in seen.items()}
  rewards = 2.0 * (LOGP - REF)
  np.testing.assert_allclose(values["accuracy"], 0.75)
  np.testing.assert_allclose(values["reward_chosen"], rewards[:, 0].mean(), rtol=1e-6)
  np.testing.assert_allclose(values["reward_rejected"], rewards[:, 1].mean(), rtol=1e-6)
  margin = (rewards[:, 0] - rewards[:, 1]).mean()
  np.testing.assert_allclose(values["margin"], margin, rtol=1e-6)


def test_settings_of_a_section():
  none = {"beta": 0.1, "gamma": None, "nll_coef": None}
  assert preference.settings_of({"kind": "dpo", **none}) == {"kind": "dpo", "beta": 0.1}
  for changed, message in (
    ({"kind": "rpo"}, r"config\.loss\.nll_coef is missing"),
    ({"kind": "dpo", "nll_coef": 1.0}, r"nll_coef=1\.0 is set.*'dpo' does not use"),
    ({"kind": "simpo", "gamma": -1.0}, r"config\.loss\.gamma=-1\.0: must be 0 or more"),
    ({"kind": "ipo"}, r"config\.loss\.kind='ipo' is not known"),
  ):
    with pytest.raises(InputError, match=message):
      preference.settings_of({**none, **changed})
