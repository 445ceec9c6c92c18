"""The composed GRPO loss: against a loop in numpy, against its parts, and split up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives.grpo import grpo

SETTINGS = {"clip_low": 0.2, "clip_high": 0.3, "kl_coef": 0.04}


def batch(seed=0, rows=8, columns=12):
  """Two answers a row of unequal length, prompts and padding between them."""
  rng = np.random.default_rng(seed)
  mask, length, adv, owner = (np.zeros((rows, columns)) for _ in range(4))
  for row in range(rows):
    for part, start in enumerate((1, 7)):
      size = rng.integers(1, 5)
      here = (row, slice(start, start + size))
      mask[here], length[here], adv[here] = 1, size, rng.normal()
      owner[here] = 1 + 2 * row + part
  logp, drift, ref = rng.normal(size=(3, rows, columns))
  old = logp + 0.3 * drift
  arrays = {"logp_BL": logp, "logp_old_BL": old, "logp_ref_BL": logp + 0.5 * ref}
  arrays |= {"adv_BL": adv, "mask_BL": mask, "length_BL": length}
  return {k: jnp.asarray(v, jnp.float32) for k, v in arrays.items()}, owner


def loop_over_answers(
  b, owner, *, reduction, kl_coef, clip_low, clip_high, constant=10
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
      costs.append(-gain + kl_coef * (np.exp(d) - d - 1))
    answers.append(costs)
  if reduction == "sequence_mean":
    return np.mean([np.mean(costs) for costs in answers])
  total = sum(map(sum, answers))
  if reduction == "token_mean":
    return total / sum(map(len, answers))
  return total / (len(answers) * constant)


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "constant"])
def test_against_a_loop(reduction):
  arrays, owner = batch()
  total, count, _ = grpo(**arrays, **SETTINGS, reduction=reduction, length_constant=10)
  want = loop_over_answers(arrays, owner, reduction=reduction, **SETTINGS)
  assert float(total / count) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "constant"])
def test_splits_of_the_batch_give_one_loss_and_gradient(reduction):
  """R5: 1 x 8, 2 x 4 and 8 x 1 rows; sums and counts are added, then divided once."""
  arrays, _ = batch()
  objective = functools.partial(
    grpo, **SETTINGS, reduction=reduction, length_constant=10
  )

  def loss_and_gradient(size):
    total = count = 0.0
    gradients = []
    for start in range(0, 8, size):
      rows = {name: value[start : start + size] for name, value in arrays.items()}

      def part(logp_BL, rows=rows):
        total, count, metrics = objective(**rows | {"logp_BL": logp_BL})
        return total, (count, metrics)

      (s, (c, _)), g = jax.value_and_grad(part, has_aux=True)(rows["logp_BL"])
      total, count = total + s, count + c
      gradients.append(g)
    return total / count, jnp.concatenate(gradients) / count

  loss, gradient = loss_and_gradient(8)
  assert float(jnp.abs(gradient).max()) > 1e-3
  for size in (4, 2, 1):
    other_loss, other_gradient = loss_and_gradient(size)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(other_gradient, gradient, rtol=1e-6)


def test_gradient_by_finite_differences():
  arrays, _ = batch(seed=3, rows=2)
  with jax.enable_x64(True):
    arrays = {name: jnp.asarray(value, jnp.float64) for name, value in arrays.items()}
    rest = {name: value for name, value in arrays.items() if name != "logp_BL"}

    def loss(logp_BL):
      total, count, _ = grpo(logp_BL, **rest, **SETTINGS)
      return total / count

    logp, step = arrays["logp_BL"], 1e-6
    gradient = jax.grad(loss)(logp)
    for place in np.ndindex(logp.shape):
      move = jnp.zeros_like(logp).at[place].set(step)
      want = (loss(logp + move) - loss(logp - move)) / (2 * step)
      np.testing.assert_allclose(gradient[place], want, atol=1e-7)
      if not arrays["mask_BL"][place]:
        assert gradient[place] == 0.0


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_tokens_outside_the_mask_may_hold_anything(garbage):
  arrays, _ = batch()
  outside = arrays["mask_BL"] == 0
  dirty = {
    name: value if name == "mask_BL" else jnp.where(outside, garbage, value)
    for name, value in arrays.items()
  }

  def loss(logp_BL, arrays):
    total, count, metrics = grpo(**arrays | {"logp_BL": logp_BL}, **SETTINGS)
    return total / count, metrics

  results = [
    jax.value_and_grad(loss, has_aux=True)(a["logp_BL"], a) for a in (arrays, dirty)
  ]
  jax.tree.map(np.testing.assert_array_equal, *results)


def test_metrics():
  arrays, _ = batch()
  total, count, metrics = grpo(**arrays, **SETTINGS)
  value = {name: float(mean.value()) for name, mean in metrics.items()}
  assert set(value) == {"loss/policy", "loss/kl", "policy/clip_fraction"}
  assert float(total / count) == pytest.approx(
    value["loss/policy"] + SETTINGS["kl_coef"] * value["loss/kl"], rel=1e-5
  )
  mask = arrays["mask_BL"] > 0
  ratio = jnp.exp(arrays["logp_BL"] - arrays["logp_old_BL"])[mask]
  adv = arrays["adv_BL"][mask]
  clipped = ((adv > 0) & (ratio > 1.3)) | ((adv < 0) & (ratio < 0.8))
  assert 0 < float(clipped.mean()) < 1
  assert value["policy/clip_fraction"] == pytest.approx(float(clipped.mean()))


def test_every_setting_changes_the_loss():
  arrays, _ = batch()

  def loss(**changed):
    total, count, _ = grpo(**arrays, **SETTINGS | changed)
    return float(total / count)

  changes = [
    {"clip_low": 0.1},
    {"clip_high": 0.1},
    {"kl_coef": 0.0},
    {"kl_estimator": "k1"},
    {"kl_estimator": "k2"},
    {"reduction": "token_mean"},
    {"reduction": "constant", "length_constant": 10},
    {"reduction": "constant", "length_constant": 20},
  ]
  losses = [loss()] + [loss(**change) for change in changes]
  assert len({round(value, 7) for value in losses}) == len(losses)


def test_no_reference_is_needed_without_kl():
  arrays, _ = batch()
  with_ref, count, _ = grpo(**arrays, **SETTINGS | {"kl_coef": 0.0})
  arrays["logp_ref_BL"] = None
  without, _, metrics = grpo(**arrays, **SETTINGS | {"kl_coef": 0.0})
  assert float(with_ref) == float(without)
  assert "loss/kl" not in metrics
  assert float(count) == 16.0
  with pytest.raises(ValueError, match="reference"):
    grpo(**arrays, **SETTINGS)


def test_first_update_is_the_plain_policy_gradient():
  """Right after sampling all ratios are 1: nothing is clipped, grad J = A grad lp."""
  arrays, _ = batch()
  arrays["logp_old_BL"] = arrays["logp_BL"]

  def loss(logp_BL):
    total, count, metrics = grpo(
      **arrays | {"logp_BL": logp_BL}, **SETTINGS | {"kl_coef": 0.0}
    )
    return total / count, metrics["policy/clip_fraction"].value()

  gradient, clipped = jax.grad(loss, has_aux=True)(arrays["logp_BL"])
  mask, length = arrays["mask_BL"], jnp.maximum(arrays["length_BL"], 1)
  np.testing.assert_allclose(
    gradient, -arrays["adv_BL"] * mask / length / 16, atol=1e-7
  )
  assert float(clipped) == 0.0


def test_unknown_estimator_names_the_key():
  arrays, _ = batch()
  with pytest.raises(InputError, match="kl_estimator='k4'"):
    grpo(**arrays, **SETTINGS, kl_estimator="k4")
