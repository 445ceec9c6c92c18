"""Every named recipe against oracle.py, from rewards to the gradient."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives import corrections, filters, recipes
from r1jax.objectives.policy_gradient import policy_gradient
from r1jax.stages import advantages
from tests.objectives import oracle
from tests.objectives.laid import Layout

NAMES = sorted(recipes.RECIPES)


def keywords(function):
  parameters = inspect.signature(function).parameters.values()
  return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]


@functools.cache
def objective(name):
  """Rows -> ((loss sum, count), its gradient), compiled."""
  settings = recipes.settings(name)["loss"]
  settings = {key: settings[key] for key in keywords(policy_gradient)}

  def run(logp_BL, *rest):
    total, count, _ = policy_gradient(logp_BL, *rest, **settings)
    return total, count

  return jax.jit(jax.value_and_grad(run, has_aux=True))


def advantages_of(name, b):
  """([T] of each answer, numbers of the answers that are trained on)."""
  settings = recipes.settings(name)
  kept = filters.FILTERS[settings["filter"]["kind"]](b.reward >= 1)
  made = advantages.advantages(
    settings,
    b.reward,
    np.ones_like(b.reward),
    [len(x) for x in b.logp],
    greedy_Q=b.greedy if settings["advantage"]["estimator"] == "remax" else None,
    logp=b.old,
    logp_ref=b.ref,
    values=b.value,
    kl_coef=settings["advantage"]["kl_coef"],
  )
  return made.tokens, np.flatnonzero(np.repeat(kept, b.reward.shape[1]))


def learner(name, b, *, order=None, trained=None, **layout):
  """(loss sum, count, gradient sum of each answer), in float32 as it runs.

  Args:
    order: of the answers in the rows.
    trained: answers with a mask.
    layout: of `Layout`.
  """
  tokens, kept = advantages_of(name, b)
  order = np.arange(len(b.logp)) if order is None else order
  trained = kept if trained is None else trained
  laid = Layout([len(b.logp[i]) for i in order], **layout)
  for i, place in zip(order, laid.places, strict=True):
    if i not in trained:
      laid.mask_BL[place] = 0

  def rows(values):
    return laid.rows([values[i] for i in order]).astype(jnp.float32)

  ref = rows(b.ref) if recipes.settings(name)["loss"]["kl_coef"] else None
  (total, count), gradient = objective(name)(
    *(rows(b.logp), rows(b.old), ref, rows(tokens)),
    *(laid.mask_BL, laid.length_BL, laid.segments_BL),
  )
  slopes = laid.answers(gradient)
  return float(total), float(count), [slopes[i] for i in np.argsort(order)]


def assert_same(got, want):
  """Within 1e-5 of the largest slope, and of the loss."""
  largest = np.abs(np.concatenate(want[1])).max()
  assert got[0] == pytest.approx(want[0], rel=1e-5)
  for a, b in zip(got[1], want[1], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("name", NAMES)
def test_against_the_formulas(name):
  b = oracle.answers()
  want, slopes, tokens = oracle.loss(name, b)
  for got, own in zip(advantages_of(name, b)[0], tokens, strict=True):
    np.testing.assert_allclose(got, own, rtol=1e-9, atol=1e-12)
  total, count, gradient = learner(name, b)
  assert_same((total / count, [g / count for g in gradient]), (want, slopes))


@pytest.mark.parametrize("name", NAMES)
def test_order_padding_packing_and_microbatches_change_nothing(name):
  """R4, R5: other rows and row mates; and two halves, added before the division."""
  b = oracle.answers(seed=1)
  total, count, gradient = learner(name, b)
  want = total / count, [g / count for g in gradient]
  order = np.random.default_rng(0).permutation(len(b.logp))
  total, count, gradient = learner(name, b, order=order, per_row=2, padding=5)
  assert_same((total / count, [g / count for g in gradient]), want)
  kept = advantages_of(name, b)[1]
  halves = [learner(name, b, trained=kept[i::2]) for i in (0, 1)]
  count = sum(half[1] for half in halves)
  gradient = [sum(g) / count for g in zip(*(half[2] for half in halves), strict=True)]
  assert_same((sum(half[0] for half in halves) / count, gradient), want)


def test_recipes_have_the_same_whole_sections():
  """So one replaces another without a rest; and each has a source."""
  want = {*keywords(policy_gradient), *keywords(corrections.importance)}
  for name in NAMES:
    settings = recipes.settings(name)
    assert settings["loss"].keys() == want, name
    assert "arXiv" in recipes.RECIPES[name].source
    for section in ("advantage", "truncated", "filter", "shaping"):
      first = recipes.settings(NAMES[0])[section]
      assert settings[section].keys() == first.keys(), (name, section)
    reward = {"weights": {}, "categories": {}, "normalise": "none"}
    reward |= settings.get("reward", {})
    rollout = {"max_tokens": 20_480}
    advantages.check(settings | {"reward": reward, "rollout": rollout})
  assert set(NAMES) == set(oracle.RECIPES)


def test_settings_are_the_callers_own():
  recipes.settings("dapo")["loss"]["clip_high"] = 9.0
  assert recipes.settings("dapo")["loss"]["clip_high"] == 0.28
  with pytest.raises(InputError, match=r"'dapo2'.*did you mean 'dapo'"):
    recipes.settings("dapo2")
