"""Rotary embeddings: distances, wavelengths, and how they are stretched."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import rope
from r1jax.models.config import Latent, Llama3Rope, YarnRope
from tests import tiny

C4 = tiny.config(head_dim=4, rope_base=100.0)
C8 = tiny.config(head_dim=8, rope_base=100.0)

# DeepSeek-V3: 64 rotary dimensions, stretched forty times from 4,096.
YARN = YarnRope(factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0)
V3 = tiny.config(
  kv_heads=4, head_dim=192, latent=Latent(8, 8, 128, 64, 128), rope_scaling=YARN
)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def turned(x_H, position):
  """One head vector at one position."""
  cos_sin = rope.rotary({4: C4, 8: C8}[len(x_H)], jnp.full((1, 1), position))
  return rope.rotate(jnp.asarray(x_H)[None, None, None], cos_sin)[0, 0, 0]


@pytest.mark.parametrize("shift", [1, 7, 1000])
def test_scores_depend_on_the_distance_only(shift):
  q_H, k_H = normal(0, 8), normal(1, 8)

  def score(at, seen):
    return np.asarray(turned(q_H, at)) @ np.asarray(turned(k_H, seen))

  np.testing.assert_allclose(score(5 + shift, 2 + shift), score(5, 2), atol=2e-4)
  assert abs(score(6, 2) - score(5, 2)) > 1e-2


def test_pairs_half_a_head_apart_turn_by_their_own_wavelength():
  """Pair (i, i + H/2) turns by position * base ** (-2i / H), keeping its length."""
  x_H = jnp.asarray([1.0, 0.0, 0.0, 2.0])
  fast, slow = 3.0, 3.0 * 100.0**-0.5
  want = [np.cos(fast), -2 * np.sin(slow), np.sin(fast), 2 * np.cos(slow)]
  np.testing.assert_allclose(turned(x_H, 3), want, rtol=1e-6)
  np.testing.assert_array_equal(turned(x_H, 0), x_H)


def test_yarn_of_deepseek_v3():
  """The borders, the ramp between them, and the scale of the softmax."""
  plain = 10_000.0 ** (-np.arange(0, 64, 2) / 64)
  kept = rope.frequencies(V3) / plain
  np.testing.assert_allclose(kept[:11], 1, rtol=1e-6)
  np.testing.assert_allclose(kept[[11, 16, 22]], [0.925, 0.55, 0.1], rtol=1e-6)
  np.testing.assert_allclose(kept[23:], 0.025, rtol=1e-6)
  assert rope.rotary_gain(V3) == 1
  np.testing.assert_allclose(rope.softmax_scale(V3), 0.1352338, rtol=1e-6)
  np.testing.assert_allclose(rope.softmax_scale(V3) / 192**-0.5, 1.368888**2, rtol=1e-6)


def test_yarn_of_other_models_scales_cos_and_sin():
  scaling = YarnRope(factor=4.0, original_length=64)
  c = dataclasses.replace(C8, rope_scaling=scaling)
  assert rope.softmax_scale(c) == 8**-0.5
  gain = 0.1 * math.log(4.0) + 1
  np.testing.assert_allclose(rope.rotary_gain(c), gain)
  cos, sin = jax.jit(lambda at: rope.rotary(c, at))(jnp.asarray([[0, 5]]))
  np.testing.assert_allclose(cos**2 + sin**2, gain**2, rtol=1e-5)
  given = dataclasses.replace(scaling, attention_factor=1.5)
  assert rope.rotary_gain(dataclasses.replace(c, rope_scaling=given)) == 1.5
  assert not np.allclose(
    rope.frequencies(c),
    rope.frequencies(
      dataclasses.replace(c, rope_scaling=dataclasses.replace(scaling, truncate=False))
    ),
  )


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones():
  """Llama 3.1: 8,192 positions stretched eight times."""
  scaling = Llama3Rope(factor=8.0, original_length=8192, low_freq=1.0, high_freq=4.0)
  c = tiny.config(head_dim=128, rope_base=500_000.0, rope_scaling=scaling)
  plain = 500_000.0 ** (-np.arange(0, 128, 2) / 128)
  wavelength = 2 * np.pi / plain
  kept = rope.frequencies(c) / plain
  np.testing.assert_allclose(kept[wavelength < 8192 / 4], 1, rtol=1e-6)
  np.testing.assert_allclose(kept[wavelength > 8192], 1 / 8, rtol=1e-6)
  between = (wavelength > 8192 / 4) & (wavelength < 8192)
  assert between.sum() >= 3
  smooth = (8192 / wavelength[between] - 1) / 3
  np.testing.assert_allclose(kept[between], (1 - smooth) / 8 + smooth, rtol=1e-5)
