"""The composed loss: against a loop in numpy, against its parts, and split up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives.policy_gradient import policy_gradient
from tests import tiny

SETTINGS = tiny.objective(clip_low=0.2, clip_high=0.3, kl_coef=0.04)
REDUCTIONS = (
  {"reduction": "sequence_mean"},
  {"reduction": "token_mean"},
  {"reduction": "constant", "length_constant": 10},
)


def batch(seed=0, rows=8, columns=12):
  """Two answers a row of unequal length, prompts and padding between them."""
  rng = np.random.default_rng(seed)
  mask, length, adv, owner, segments = (np.zeros((rows, columns)) for _ in range(5))
  for row in range(rows):
    for part, start in enumerate((1, 7)):
      size = rng.integers(1, 5)
      here = (row, slice(start, start + size))
      mask[here], length[here], adv[here] = 1, size, rng.normal()
      owner[here], segments[here] = 1 + 2 * row + part, 1 + part
  logp, drift, ref, entropy, weight = rng.normal(size=(5, rows, columns))
  old = logp + 0.3 * drift
  arrays = {"logp_BL": logp, "logp_old_BL": old, "logp_ref_BL": logp + 0.5 * ref}
  arrays |= {"adv_BL": adv, "mask_BL": mask, "length_BL": length}
  arrays |= {"importance_BL": np.exp(weight), "entropy_BL": np.exp(entropy)}
  arrays = {k: jnp.asarray(v, jnp.float32) for k, v in arrays.items()}
  return arrays | {"segments_BL": jnp.asarray(segments, jnp.int32)}, owner


def loop_over_answers(
  b,
  owner,
  *,
  reduction,
  length_constant=None,
  kl_coef,
  entropy_coef,
  clip_low,
  clip_high,
  **others,
):
  """The published formulas, one answer and one token at a time."""
  b = {name: np.asarray(value, np.float64) for name, value in b.items()}
  answers = []
  for number in np.unique(owner[owner > 0]):
    costs = []
    for place in zip(*np.nonzero(owner == number), strict=True):
      ratio = np.exp(b["logp_BL"][place] - b["logp_old_BL"][place])
      adv = b["adv_BL"][place]
      gain = min(ratio * adv, np.clip(ratio, 1 - clip_low, 1 + clip_high) * adv)
      d = b["logp_ref_BL"][place] - b["logp_BL"][place]
      cost = -gain * b["importance_BL"][place] + kl_coef * (np.exp(d) - d - 1)
      costs.append(cost - entropy_coef * b["entropy_BL"][place])
    answers.append(costs)
  if reduction == "sequence_mean":
    return np.mean([np.mean(costs) for costs in answers])
  total = sum(map(sum, answers))
  if reduction == "token_mean":
    return total / sum(map(len, answers))
  return total / (len(answers) * length_constant)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda r: r["reduction"])
def test_against_a_loop(reduction):
  arrays, owner = batch()
  settings = SETTINGS | {"entropy_coef": 0.02} | reduction
  total, count, _ = policy_gradient(**arrays, **settings)
  want = loop_over_answers(arrays, owner, **settings)
  assert float(total / count) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda r: r["reduction"])
def test_splits_of_the_batch_give_one_loss_and_gradient(reduction):
  """R5: 1 x 8, 2 x 4 and 8 x 1 rows; sums and counts are added, then divided once."""
  arrays, _ = batch()

  @jax.jit
  def run(rows):
    def part(logp_BL):
      given = rows | {"logp_BL": logp_BL}
      total, count, metrics = policy_gradient(**given, **SETTINGS | reduction)
      return total, (count, metrics)

    return jax.value_and_grad(part, has_aux=True)(rows["logp_BL"])

  def loss_and_gradient(size):
    total = count = 0.0
    gradients = []
    for start in range(0, 8, size):
      rows = {name: value[start : start + size] for name, value in arrays.items()}
      (s, (c, _)), g = run(rows)
      total, count = total + s, count + c
      gradients.append(g)
    return total / count, jnp.concatenate(gradients) / count

  loss, gradient = loss_and_gradient(8)
  assert float(jnp.abs(gradient).max()) > 1e-3
  for size in (4, 1):
    other_loss, other_gradient = loss_and_gradient(size)
    np.testing.assert_allclose(other_loss, loss, rtol=3e-6)
    np.testing.assert_allclose(other_gradient, gradient, rtol=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3", "unbiased"])
def test_gradient_by_finite_differences(estimator):
  arrays, _ = batch(seed=3, rows=2)
  with jax.enable_x64(True):
    arrays = {
      name: value if name == "segments_BL" else jnp.asarray(value, jnp.float64)
      for name, value in arrays.items()
    }
    rest = {name: value for name, value in arrays.items() if name != "logp_BL"}
    settings = SETTINGS | {"kl_estimator": estimator}

    @jax.jit
    def loss(logp_BL):
      total, count, _ = policy_gradient(logp_BL, **rest, **settings)
      return total / count

    logp, step = arrays["logp_BL"], 1e-6
    gradient = jax.grad(loss)(logp)
    for place in np.ndindex(logp.shape):
      move = jnp.zeros_like(logp).at[place].set(step)
      want = (loss(logp + move) - loss(logp - move)) / (2 * step)
      np.testing.assert_allclose(gradient[place], want, atol=1e-7)
      if not arrays["mask_BL"][place]:
        assert gradient[place] == 0.0


@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_token"])
@pytest.mark.parametrize("garbage", [np.nan, -np.inf])
def test_tokens_outside_the_mask_may_hold_anything(garbage, ratio):
  arrays, _ = batch()
  outside = arrays["mask_BL"] == 0
  dirty = {
    name: value
    if name in ("mask_BL", "segments_BL")
    else jnp.where(outside, garbage, value)
    for name, value in arrays.items()
  }

  def loss(logp_BL, arrays):
    settings = SETTINGS | {"entropy_coef": 0.1, "ratio": ratio}
    total, count, metrics = policy_gradient(**arrays | {"logp_BL": logp_BL}, **settings)
    return total / count, metrics

  results = [
    jax.value_and_grad(loss, has_aux=True)(a["logp_BL"], a) for a in (arrays, dirty)
  ]
  jax.tree.map(np.testing.assert_array_equal, *results)


def test_metrics():
  arrays, _ = batch()
  settings = SETTINGS | {"entropy_coef": 0.1}
  total, count, metrics = policy_gradient(**arrays, **settings)
  value = {name: float(mean.value()) for name, mean in metrics.items()}
  names = {"loss/policy", "loss/kl", "loss/entropy", "policy/clip_fraction"}
  assert set(value) == names
  want = value["loss/policy"] + settings["kl_coef"] * value["loss/kl"]
  want -= 0.1 * value["loss/entropy"]
  assert float(total / count) == pytest.approx(want, rel=1e-5)
  mask = arrays["mask_BL"] > 0
  ratio = jnp.exp(arrays["logp_BL"] - arrays["logp_old_BL"])[mask]
  adv = arrays["adv_BL"][mask]
  clipped = ((adv > 0) & (ratio > 1.3)) | ((adv < 0) & (ratio < 0.8))
  assert 0 < float(clipped.mean()) < 1
  assert value["policy/clip_fraction"] == pytest.approx(float(clipped.mean()))


def test_every_setting_changes_the_loss():
  """No setting is read and dropped."""
  arrays, _ = batch()

  def loss(**changed):
    total, count, _ = policy_gradient(**arrays, **SETTINGS | changed)
    return float(total / count)

  gates = {"surrogate": "soft_gate", "gate_positive": 1.0, "gate_negative": 2.0}
  changes = [
    {"clip_low": 0.1},
    {"clip_high": 0.1},
    {"ratio": "sequence"},
    {"surrogate": "cispo"},
    {"surrogate": "cispo", "clip_low": 0.5},
    {"surrogate": "cispo", "clip_high": 0.1},
    {"surrogate": "dual_clip", "clip_dual": 1.31},
    {"surrogate": "dual_clip", "clip_dual": 1.4},
    {"surrogate": "reinforce"},
    gates,
    gates | {"gate_positive": 2.0},
    gates | {"gate_negative": 1.0},
    {"kl_coef": 0.0},
    {"kl_estimator": "k1"},
    {"kl_estimator": "k2"},
    {"kl_estimator": "unbiased"},
    {"entropy_coef": 0.1},
    {"reduction": "token_mean"},
    {"reduction": "constant", "length_constant": 10},
    {"reduction": "constant", "length_constant": 20},
  ]
  losses = [loss()] + [loss(**change) for change in changes]
  assert len({round(value, 7) for value in losses}) == len(losses)


def test_weights_act_on_the_surrogate_alone():
  """Decoupled PPO: proximal / behaviour stands outside of the clipped term."""
  arrays, _ = batch()
  settings = SETTINGS | {"kl_coef": 0.04, "entropy_coef": 0.1}

  def parts(weight):
    given = arrays | {"importance_BL": jnp.full((8, 12), weight)}
    seen = policy_gradient(**given, **settings)[2]
    return {name: float(mean.value()) for name, mean in seen.items()}

  one, half = parts(1.0), parts(0.5)
  assert half["loss/policy"] == pytest.approx(0.5 * one["loss/policy"])
  for name in ("loss/kl", "loss/entropy", "policy/clip_fraction"):
    assert half[name] == one[name]
  without = policy_gradient(**arrays | {"importance_BL": None}, **settings)[2]
  assert float(without["loss/policy"].value()) == pytest.approx(one["loss/policy"])


def test_the_entropy_bonus_pulls_entropies_up():
  """The slope of the loss by a token's entropy is -coef times its weight."""
  arrays, _ = batch()

  def loss(entropy_BL):
    settings = SETTINGS | {"entropy_coef": 0.1}
    total, count, _ = policy_gradient(**arrays | {"entropy_BL": entropy_BL}, **settings)
    return total / count

  slope = jax.grad(loss)(arrays["entropy_BL"])
  share = arrays["mask_BL"] / jnp.maximum(arrays["length_BL"], 1) / 16
  np.testing.assert_allclose(slope, -0.1 * share, rtol=1e-6)


def test_the_kl_coefficient_may_be_traced():
  """An adaptive coefficient compiles nothing anew."""
  arrays, _ = batch()

  @jax.jit
  def loss(kl_coef):
    return policy_gradient(**arrays, **SETTINGS | {"kl_coef": kl_coef})[0]

  for coef in (0.0, 0.1):
    want = policy_gradient(**arrays, **SETTINGS | {"kl_coef": coef})[0]
    np.testing.assert_allclose(loss(coef), want, rtol=1e-6)
  assert loss._cache_size() == 1


def test_no_reference_is_needed_without_kl():
  arrays, _ = batch()
  with_ref, count, _ = policy_gradient(**arrays, **SETTINGS | {"kl_coef": 0.0})
  arrays["logp_ref_BL"] = None
  without, _, metrics = policy_gradient(**arrays, **SETTINGS | {"kl_coef": 0.0})
  assert float(with_ref) == float(without)
  assert "loss/kl" not in metrics
  assert float(count) == 16.0
  with pytest.raises(ValueError, match="reference"):
    policy_gradient(**arrays, **SETTINGS)


def test_first_update_is_the_plain_policy_gradient():
  """Right after sampling all ratios are 1: nothing is clipped, grad J = A grad lp."""
  arrays, _ = batch()
  arrays |= {"logp_old_BL": arrays["logp_BL"], "importance_BL": None}

  def loss(logp_BL):
    total, count, metrics = policy_gradient(
      **arrays | {"logp_BL": logp_BL}, **SETTINGS | {"kl_coef": 0.0}
    )
    return total / count, metrics["policy/clip_fraction"].value()

  gradient, clipped = jax.grad(loss, has_aux=True)(arrays["logp_BL"])
  mask, length = arrays["mask_BL"], jnp.maximum(arrays["length_BL"], 1)
  np.testing.assert_allclose(
    gradient, -arrays["adv_BL"] * mask / length / 16, atol=1e-7
  )
  assert float(clipped) == 0.0


def test_bad_settings_name_their_key():
  arrays, _ = batch()
  for key in ("ratio", "surrogate", "kl_estimator", "reduction"):
    with pytest.raises(InputError, match=rf"loss\.{key}='k4'"):
      policy_gradient(**arrays, **SETTINGS | {key: "k4"})
  with pytest.raises(ValueError, match="entropies"):
    given = arrays | {"entropy_BL": None}
    policy_gradient(**given, **SETTINGS | {"entropy_coef": 0.1})
