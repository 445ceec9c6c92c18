"""Attention among the tokens of rows: every program against sums written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import sharding
from r1jax.models import kernels, splash

SCALE = 0.4
PARTITION = sharding.single_device()
# A prompt with two completions behind it, another sequence, padding.
SEGMENTS = np.repeat([1, 2, 3, 4, 0], [150, 120, 140, 175, 15])
PARENTS = np.repeat([1, 1, 1, 4, 0], [150, 120, 140, 175, 15])
LENGTH = len(SEGMENTS)  # not whole blocks
IDS = {
  "alone": (None, None),
  "packed": (SEGMENTS, None),
  "shared": (SEGMENTS, PARENTS),
}


@functools.cache
def given(length: int = LENGTH) -> tuple:
  """Queries, keys, narrower values, and the derivative by the result; two rows."""
  rng = np.random.default_rng(0)
  shapes = (2, 2, 6), (2, 6), (2, 4), (2, 2, 4)
  draw = [rng.normal(size=(2, length, *shape)) for shape in shapes]
  return tuple(jnp.asarray(x, jnp.float32) for x in draw)


def ids_of(name: str) -> tuple:
  """Segments and parents; the second row is the first one from its last token on."""
  return tuple(
    None if x is None else jnp.asarray(np.stack([x, np.roll(x, 1)]), jnp.int32)
    for x in IDS[name]
  )


def written_out(q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL):
  """Scores of every pair of tokens, in float64, those that are not seen taken out."""
  place = np.arange(q_BLKRH.shape[1])
  seen = np.broadcast_to(place[:, None] >= place, (2, len(place), len(place)))
  if segments_BL is not None:
    segments, parents = np.asarray(segments_BL), np.asarray(segments_BL)
    if parents_BL is not None:
      parents = np.asarray(parents_BL)
    own = segments[:, :, None] == segments[:, None]
    seen = seen & (own | (parents[:, :, None] == segments[:, None]))
  q, k, v = (np.asarray(x, np.float64) for x in (q_BLKRH, k_BLKH, v_BLKH))
  score = np.einsum("blkrh,bckh->bkrlc", q, k) * SCALE
  weight = np.where(seen[:, None, None], np.exp(score), 0)
  weight /= weight.sum(axis=-1, keepdims=True)
  return np.einsum("bkrlc,bckh->blkrh", weight, v)


def run(name: str) -> tuple:
  """Result and derivatives of `causal`."""

  @jax.jit
  def program(q, k, v, bar, segments, parents):
    def result(*qkv):
      return kernels.causal(*qkv, segments, parents, scale=SCALE, partition=PARTITION)

    out, derive = jax.vjp(result, q, k, v)
    return out, *derive(bar)

  return program(*given(), *ids_of(name))


@pytest.fixture(scope="module")
def of_short() -> dict[str, tuple]:
  """Results and derivatives of short rows, which JAX differentiates itself."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(kernels, "SHORT", LENGTH)
    return {name: run(name) for name in IDS}


@pytest.mark.parametrize("name", IDS)
def test_short_rows_are_the_sums_written_out(name, of_short):
  q, k, v, _ = given()
  want = written_out(q, k, v, *ids_of(name))
  np.testing.assert_allclose(of_short[name][0], want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", IDS)
def test_long_rows_and_their_derivatives_are_those_of_short_ones(name, of_short):
  for got, want in zip(run(name), of_short[name], strict=True):
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", IDS)
def test_the_tpu_kernel_and_its_derivatives_are_those_of_short_rows(
  name, of_short, monkeypatch
):
  library = splash.library
  interpreted = functools.partial(library.make_splash_mha, interpret=True)
  monkeypatch.setattr(library, "make_splash_mha", interpreted)
  monkeypatch.setattr(
    jax.lax, "platform_dependent", lambda *arrays, tpu, default: tpu(*arrays)
  )
  for got, want in zip(run(name), of_short[name], strict=True):
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


def loss(q, k, v, segments, parents):
  return kernels.causal(q, k, v, segments, parents, scale=SCALE).sum()


def test_long_rows_never_hold_all_pairs_of_tokens():
  length = 4096
  shapes = (1, length, 1, 4, 8), (1, length, 1, 8), (1, length, 1, 8)
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
  compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays, ids, ids).compile()
  # All scores, of 4 heads in float32, would be 256 MiB.
  assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20


@pytest.mark.parametrize(
  ("length", "platform", "chosen"),
  [(kernels.SHORT, "tpu", 0), (1000, "tpu", 1), (1000, "cuda", 0), (1000, "cpu", 0)],
)
def test_length_and_platform_choose_the_kernel(length, platform, chosen):
  ids = jax.ShapeDtypeStruct((2, length), jnp.int32)
  arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given(length)[:3]]
  traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays, ids, ids)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  for kernel in ("mha_fwd", "mha_dq", "mha_dkv"):
    assert (f"splash_{kernel}_segmented" in text) == chosen
