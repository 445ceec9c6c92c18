"""Attention among the tokens of packed rows, through the whole decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import kernels, transformer
from tests import tiny

PROMPT = [3, 1, 4, 1, 5]
COMPLETIONS = [9, 2, 6], [5], [3, 5, 8, 9, 7]
FAMILY = pytest.mark.parametrize("c", tiny.FAMILY.values(), ids=tiny.FAMILY)


def shared_row():
  """(tokens, positions, segments, parents) [1, L]: another sequence, then the group."""
  last = len(PROMPT) - 1
  pieces = [([7, 7], 0, 0, 0), (PROMPT[:-1], 0, 1, 1)]
  pieces += [([PROMPT[-1], *a], last, 2 + i, 1) for i, a in enumerate(COMPLETIONS)]
  of_tokens = [
    (token, first + place, 1 + segment, 1 + parent)
    for tokens, first, segment, parent in pieces
    for place, token in enumerate(tokens)
  ]
  return np.asarray(of_tokens, np.int32).T[:, None]


def states(c, params, tokens, positions, segments=None, parents=None, remat="none"):
  return transformer.forward(
    c,
    params,
    tokens,
    positions,
    segments_BL=segments,
    parents_BL=parents,
    remat=remat,
  )[0]


@FAMILY
def test_a_shared_prompt_is_to_each_completion_as_one_of_its_own(c):
  params = tiny.params(c)
  row = shared_row()
  packed_LD = states(c, params, *row)[0]
  rows = tiny.plain_rows([[*PROMPT, *completion] for completion in COMPLETIONS])
  alone_BLD = states(c, params, rows.tokens_BL, rows.positions_BL, rows.segments_BL)
  for i, completion in enumerate(COMPLETIONS):
    got_TD = packed_LD[row[2, 0] == 3 + i]
    first = len(PROMPT) - 1
    want_TD = alone_BLD[i, first : first + 1 + len(completion)]
    np.testing.assert_allclose(got_TD, want_TD, rtol=0, atol=2e-5)


@functools.cache
def gradient(name: str, remat: str, short: int):
  """Of some function of the states of `shared_row`, whose `short` is in force."""
  c, row = tiny.FAMILY[name], shared_row()
  shape = (row.shape[-1], c.width)
  weights = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

  def loss(params):
    return (states(c, params, *row, remat) * weights).sum()

  assert short == kernels.SHORT
  return jax.jit(jax.grad(loss))(tiny.params(c))


@pytest.mark.parametrize(
  ("name", "remat"), [("qwen2", "none"), ("qwen2", "dots"), ("deepseek_v2", "full")]
)
def test_long_rows_have_the_gradient_of_short_ones(name, remat, monkeypatch):
  want = gradient(name, "none", kernels.SHORT)
  monkeypatch.setattr(kernels, "SHORT", 0)
  tiny.assert_same_sums(gradient(name, remat, 0), want)
