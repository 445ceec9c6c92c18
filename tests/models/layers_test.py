"""The pieces of a layer, against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import layers

ATTEND = jax.jit(functools.partial(layers.attend, scale=0.5))
JOIN = jax.jit(layers.join)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_rms_norm_in_float32_for_half_precision():
  """Squares of 300 overflow float16; the norm must not."""
  norm = jax.jit(layers.rms_norm)
  x = np.asarray([[300.0, -300.0, 300.0, 300.0]], np.float16)
  got = norm(x, np.asarray([1.0, 2.0, 1.0, 0.0], np.float16), 1e-5)
  assert got.dtype == jnp.float16
  np.testing.assert_allclose(got[0], [1, -2, 1, 0], rtol=1e-3)
  np.testing.assert_array_equal(norm(0 * x, x[0], 1e-5), 0 * x)


def test_linear_contracts_several_axes():
  x, w = normal(0, 2, 3, 4, 5), normal(1, 4, 5, 6)
  got = jax.jit(functools.partial(layers.linear, contract=2))(x, w)
  np.testing.assert_allclose(got, np.einsum("blnh,nhd->bld", x, w), rtol=1e-5)


def test_swiglu_by_hand():
  mlp = {"gate": np.full((1, 1), 2.0), "up": np.full((1, 1), 3.0)}
  got = jax.jit(layers.swiglu)(np.ones((1, 1, 1)), mlp | {"down": np.full((1, 1), 5.0)})
  np.testing.assert_allclose(got, 2 / (1 + np.exp(-2)) * 3 * 5, rtol=1e-6)


def context(seed=0, rows=3, new=2, size=7, k=2, r=3, h=4):
  q = 3 * normal(seed, rows, new, k, r, h)
  keys = normal(seed + 1, rows, k, h, size)
  values = normal(seed + 2, rows, k, size, h)
  mask = normal(seed + 3, rows, new, size) > -0.3
  mask[..., 0] = True
  return q, keys, values, mask


def test_attend_is_softmax_attention():
  q, keys, values, mask = context()
  got, logsumexp = ATTEND(q, keys, values, mask)
  for b, l, k, r in np.ndindex(q.shape[:-1]):
    seen = mask[b, l]
    score = (q[b, l, k, r] @ keys[b, k])[seen] * 0.5
    weight = np.exp(score) / np.exp(score).sum()
    np.testing.assert_allclose(got[b, l, k, r], weight @ values[b, k, seen], atol=1e-5)
    np.testing.assert_allclose(
      logsumexp[b, l, k, r], np.log(np.exp(score).sum()), atol=1e-5
    )


@pytest.mark.parametrize("cut", [1, 4])
def test_two_joined_parts_are_one_context(cut):
  q, keys, values, mask = context()
  whole, _ = ATTEND(q, keys, values, mask)
  first = ATTEND(q, keys[..., :cut], values[:, :, :cut], mask[..., :cut])
  second = ATTEND(q, keys[..., cut:], values[:, :, cut:], mask[..., cut:])
  np.testing.assert_allclose(JOIN([first, second]), whole, atol=1e-5)
  np.testing.assert_allclose(JOIN([second, first]), whole, atol=1e-5)


def test_a_part_with_nothing_to_see_counts_for_nothing():
  q, keys, values, mask = context()
  some = ATTEND(q, keys, values, mask)
  none = ATTEND(q, keys, 1e6 * values, np.zeros_like(mask))
  np.testing.assert_array_equal(JOIN([some, none]), some[0])
  np.testing.assert_array_equal(JOIN([none, some]), some[0])


def test_gradients_stay_finite_beside_masked_scores():
  q, keys, values, mask = context()

  def total(q, keys):
    parts = (
      ATTEND(q, keys, values, mask),
      ATTEND(q, keys, values, jnp.zeros_like(mask)),
    )
    return layers.join(parts).sum()

  for leaf in jax.jit(jax.grad(total, (0, 1)))(q, 100 * keys):
    assert np.isfinite(leaf).all()
