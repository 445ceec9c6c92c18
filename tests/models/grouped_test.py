"""Products of sorted rows with the matrix of their group, against one row at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import grouped
from r1jax.models.layers import Adapted

SIZES = {
  "even": [5, 5, 5, 5],
  "all in one": [0, 0, 20, 0],
  "empty ones and rows behind": [0, 7, 0, 3],
  "none": [0, 0, 0, 0],
  "large": [150, 3, 0, 290],
}


def arrays(sizes, rows, inner=6, outer=3):
  rng = np.random.default_rng(sum(sizes))
  x = rng.normal(size=(rows, inner)).astype(np.float32)
  w = rng.normal(size=(len(sizes), inner, outer)).astype(np.float32)
  return x, w, np.asarray(sizes, np.int32)


def plain(x, w, sizes):
  """Row by row."""
  group = np.repeat(np.arange(len(sizes)), sizes)
  out = np.zeros((len(x), w.shape[2]))
  for row, g in enumerate(group):
    out[row] = x[row] @ w[g]
  return out


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_value_and_gradient(sizes):
  x, w, sizes = arrays(sizes, rows=max(sum(sizes), 20))
  weight = np.random.default_rng(1).normal(size=(len(x), 3)).astype(np.float32)

  @jax.jit
  def run(x, w, sizes):
    def total(x, w):
      out = grouped.product(x, w, sizes)
      return (out * weight).sum(), out

    return jax.grad(total, (0, 1), has_aux=True)(x, w)

  (x_bar, w_bar), out = run(x, w, sizes)
  np.testing.assert_allclose(out, plain(x, w, sizes), atol=1e-5)
  group = np.repeat(np.arange(len(sizes)), sizes)
  want_x, want_w = np.zeros_like(x), np.zeros_like(w)
  for row, g in enumerate(group):
    want_x[row] = w[g] @ weight[row]
    want_w[g] += np.outer(x[row], weight[row])
  np.testing.assert_allclose(x_bar, want_x, atol=1e-5)
  np.testing.assert_allclose(w_bar, want_w, atol=2e-4)


def test_blocks_are_what_ragged_dot_is():
  """The kernel of a TPU stands in for the blocks."""
  x, w, sizes = map(jnp.asarray, arrays([4, 0, 9, 2], rows=15))
  weight = jnp.asarray(np.random.default_rng(1).normal(size=(15, 3)), jnp.float32)

  @jax.jit
  def ragged(x, w):
    out, transposed = jax.vjp(lambda w: jax.lax.ragged_dot(x, w, sizes), w)
    return out, transposed(weight)[0], grouped._outer_ragged(x, weight, sizes)

  @jax.jit
  def blocks(x, w):
    return grouped._by_blocks(x, w, sizes), grouped._outer_by_blocks(x, weight, sizes)

  out, outer, transposed = ragged(x, w)
  np.testing.assert_allclose(blocks(x, w)[0], out, atol=1e-5)
  np.testing.assert_allclose(blocks(x, w)[1], outer, atol=1e-5)
  np.testing.assert_allclose(transposed, outer, atol=1e-5)


def test_low_rank_updates_of_each_group():
  x, w, sizes = arrays([4, 0, 9, 2], rows=15)
  rng = np.random.default_rng(2)
  a = rng.normal(size=(4, 6, 2)).astype(np.float32)
  b = rng.normal(size=(4, 2, 3)).astype(np.float32)
  product = jax.jit(functools.partial(grouped.product, sizes_E=jnp.asarray(sizes)))
  merged = w + 0.5 * np.einsum("edr,erf->edf", a, b)
  np.testing.assert_allclose(
    product(x, Adapted(w, a, b, 0.5)), plain(x, merged, sizes), atol=1e-5
  )
