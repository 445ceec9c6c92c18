"""Paths, masks, sizes, and a checksum that no change of one weight escapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import trees
from r1jax.errors import InputError
from tests import tiny

CHECKSUM = jax.jit(trees.checksum)


def tree():
  return {"a": {"b": np.zeros((2, 3)), "c": np.ones(4, np.int8)}, "d": np.float32(1)}


def test_flatten_and_back():
  flat = trees.flatten(tree())
  assert list(flat) == ["a/b", "a/c", "d"]
  back = trees.unflatten(flat)
  assert back.keys() == tree().keys() and back["a"].keys() == tree()["a"].keys()
  named = trees.map_with_path(lambda path, leaf: (path, leaf.shape), tree())
  assert named == {"a": {"b": ("a/b", (2, 3)), "c": ("a/c", (4,))}, "d": ("d", ())}


def test_sizes_of_arrays_and_of_shapes():
  assert trees.count(tree()) == 11
  assert trees.num_bytes(tree()) == 6 * 8 + 4 + 4
  assert trees.num_bytes(jax.eval_shape(lambda: jnp.zeros((3, 5), jnp.bfloat16))) == 30


def test_masks_match_whole_paths():
  got = trees.mask(tree(), ("a/.*", "d"), key="config.freeze")
  assert got == {"a": {"b": True, "c": True}, "d": True}
  assert trees.mask(tree(), ("a/b",), key="k") == {
    "a": {"b": True, "c": False},
    "d": False,
  }
  assert not any(jax.tree.leaves(trees.mask(tree(), (), key="k")))


@pytest.mark.parametrize("pattern", ["a", "b", "A/b"])
def test_a_pattern_that_matches_nothing_is_refused(pattern):
  """R2's kin: a frozen set that is silently empty."""
  with pytest.raises(InputError, match=f"config.freeze: '{pattern}' matches no"):
    trees.mask(tree(), ("d", pattern), key="config.freeze")


def test_digest_is_stable_and_tells_values_apart():
  assert trees.digest("chain") == trees.digest("chain") != trees.digest("chains")
  assert trees.digest({"a": 1}) != trees.digest({"a": 1.0})
  assert len(trees.digest(("x", 2))) == 16


def neighbour(array, index):
  """The array with one element moved to the next float."""
  bits = np.asarray(array).copy().view(f"uint{8 * array.dtype.itemsize}")
  bits[index] ^= 1
  return bits.view(array.dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_one_ulp_of_any_weight_changes_the_checksum(dtype):
  """R2: every element of every array, one at a time."""
  params = {
    path: np.asarray(leaf, dtype)
    for path, leaf in trees.flatten(tiny.params(tiny.config(depth=1))).items()
  }
  want = int(CHECKSUM(params))
  rng = np.random.default_rng(0)
  for path, array in params.items():
    places = list(np.ndindex(array.shape))
    for place in [places[0], places[-1], *rng.permutation(len(places))[:20]]:
      place = places[place] if not isinstance(place, tuple) else place
      changed = {**params, path: neighbour(array, place)}
      assert int(CHECKSUM(changed)) != want, (path, place)


def test_every_bit_counts():
  """R2: signs, exponents and the sign of zero, at every place."""
  zero = np.zeros((2, 3), np.float32)
  sums = {int(CHECKSUM({"w": zero}))}
  for place in np.ndindex(zero.shape):
    for bit in range(32):
      bits = zero.view(np.uint32).copy()
      bits[place] = 1 << bit
      sums.add(int(CHECKSUM({"w": bits.view(np.float32)})))
  assert len(sums) == 1 + 6 * 32


@pytest.mark.parametrize("scale", [-1.0, 2.0, 0.5, -4.0])
def test_scaled_arrays_change_the_checksum(scale):
  """R2: the same bit turned in every element of an even number; in a plain weighted
  sum modulo 2**32 such changes cancel."""
  w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
  assert CHECKSUM({"w": scale * w}) != CHECKSUM({"w": w})
  some = w.copy()
  some[3:5, 7] *= scale
  assert CHECKSUM({"w": some}) != CHECKSUM({"w": w})


def test_moved_weights_change_the_checksum():
  """R2: swapping two weights, two arrays, or two axes is a change."""
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 4, 4)).astype(np.float32)
  want = CHECKSUM({"a": a, "b": b})
  assert CHECKSUM({"a": b, "b": a}) != want
  assert CHECKSUM({"a": a.T, "b": b}) != want
  assert CHECKSUM({"a": a[::-1], "b": b}) != want
  assert CHECKSUM({"a": np.roll(a, 1), "b": b}) != want
  assert CHECKSUM({"a": a.copy(), "b": b.copy()}) == want
  assert CHECKSUM({"a": a, "b": b}).dtype == jnp.uint32
