"""Importance weights of every kind and level, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives.corrections import importance
from tests.objectives.laid import Layout

OFF = {
  "correction": "none",
  "correction_level": "token",
  "correction_cap": 2.0,
  "correction_veto": 0.0,
}
# Log-ratios of two answers.
FIRST, SECOND = np.asarray([0.5, 0.4, -0.3]), np.asarray([-0.2, -1.0])
LAYOUT = Layout([3, 2], per_row=2)


def weights(**settings):
  """([T] of each answer, metrics); NaN outside of the mask, where the weight is 1."""
  behaviour = LAYOUT.rows([np.full(3, -2.0), np.full(2, -1.0)])
  ours = LAYOUT.rows([FIRST - 2.0, SECOND - 1.0])
  weight_BL, seen = importance(
    ours, behaviour, LAYOUT.mask_BL, LAYOUT.segments_BL, **OFF | settings
  )
  np.testing.assert_array_equal(weight_BL[LAYOUT.mask_BL == 0], 1.0)
  return LAYOUT.answers(weight_BL), {k: float(v.value()) for k, v in seen.items()}


@pytest.mark.parametrize(
  ("ours", "behaviour", "want"),
  [(-1.0, -1.0, 1.0), (-0.5, -1.5, 2.0), (-2.0, -1.0, 0.367879)],
)
def test_truncated_worked_numbers(ours, behaviour, want):
  one = np.ones((1, 1))
  got, _ = importance(
    jnp.full((1, 1), ours),
    jnp.full((1, 1), behaviour),
    one,
    one.astype(int),
    **OFF | {"correction": "truncate"},
  )
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
  ("level", "first", "second"),
  [
    ("token", np.exp(FIRST), np.exp(SECOND)),
    ("sequence", np.full(3, np.exp(0.6)), np.full(2, np.exp(-1.2))),
    ("geometric", np.full(3, np.exp(0.2)), np.full(2, np.exp(-0.6))),
  ],
)
def test_levels_and_kinds(level, first, second):
  cap = 1.2
  for kind, above in (("truncate", cap), ("mask", 0.0)):
    got, seen = weights(correction=kind, correction_level=level, correction_cap=cap)
    want = [np.where(own > cap, above, own) for own in (first, second)]
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6)
    both = np.concatenate([first, second])
    assert seen["policy/importance_capped"] == pytest.approx(np.mean(both > cap))
    mean = np.concatenate(want).mean()
    assert seen["policy/importance_mean"] == pytest.approx(mean, rel=1e-5)
  unbounded, _ = weights(
    correction="mask", correction_level=level, correction_cap=100.0
  )
  np.testing.assert_allclose(np.concatenate(unbounded), both, rtol=1e-6)


def test_veto_drops_the_whole_answer_and_no_other():
  """Its least ratio is exp(-1) = 0.37; the kinds of weights go on beside it."""
  got, seen = weights(correction_veto=0.4)
  np.testing.assert_array_equal(np.concatenate(got), [1, 1, 1, 0, 0])
  assert seen == {
    "policy/importance_mean": pytest.approx(0.6),
    "policy/importance_vetoed": pytest.approx(0.4),
  }
  np.testing.assert_array_equal(np.concatenate(weights(correction_veto=0.3)[0]), 1)
  got, _ = weights(
    correction="truncate", correction_level="geometric", correction_veto=0.4
  )
  np.testing.assert_allclose(got[0], np.exp(0.2), rtol=1e-6)
  np.testing.assert_array_equal(got[1], 0)


def test_extreme_ratios_stay_finite():
  """A long answer's product may be larger than any float."""
  layout = Layout([200], per_row=1)
  ours, behaviour = layout.rows([np.zeros(200)]), layout.rows([np.full(200, -5.0)])
  for kind, want in (("truncate", 2.0), ("mask", 0.0)):
    settings = OFF | {"correction": kind, "correction_level": "sequence"}
    got, _ = importance(ours, behaviour, layout.mask_BL, layout.segments_BL, **settings)
    np.testing.assert_array_equal(layout.answers(got)[0], want)


def test_weights_have_no_gradient():
  def total(ours):
    settings = OFF | {"correction": "truncate", "correction_veto": 1e-4}
    return importance(ours, -ours, LAYOUT.mask_BL, LAYOUT.segments_BL, **settings)[
      0
    ].sum()

  slope = jax.grad(total)(jnp.full(LAYOUT.mask_BL.shape, -0.1))
  np.testing.assert_array_equal(slope, 0.0)


def test_bad_settings_name_their_key():
  with pytest.raises(InputError, match=r"loss\.correction='cap'.*mask, none, truncate"):
    weights(correction="cap")
  with pytest.raises(InputError, match=r"loss\.correction_level='answer'"):
    weights(correction_level="answer")
  with pytest.raises(InputError, match=r"loss\.correction_cap=0\.0"):
    weights(correction="mask", correction_cap=0.0)
