"""Values and scores against plain hidden states, packed or alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.data import packing
from r1jax.models import heads, parameters, transformer
from r1jax.training import values
from r1jax.types import TokenRows
from tests import tiny

# The one with most in it always, the others with the slow tests.
FAMILY = [
  pytest.param(name, marks=() if name == "deepseek_v3" else pytest.mark.slow)
  for name in tiny.FAMILY
]
ANSWERS = ((5, (6, 4, 3)), (1, (5, 2)), (3, (1, 2)))  # tokens of prompts, of answers


def head_of(c, seed=1):
  rng = np.random.default_rng(seed)
  weight = rng.normal(size=c.width).astype(np.float32)
  return {"weight": jnp.asarray(weight), "bias": jnp.asarray([0.3])}


def asked(c):
  """(sequences, first token of each answer, groups that share a prompt)."""
  rng = np.random.default_rng(0)
  sequences, first, groups = [], [], []
  for prompt_length, lengths in ANSWERS:
    prompt = rng.integers(0, c.vocab, prompt_length)
    members = len(sequences) + np.arange(len(lengths))
    groups.append(packing.Group(members, prompt_length))
    sequences += [[*prompt, *rng.integers(0, c.vocab, n)] for n in lengths]
    first += [prompt_length] * len(lengths)
  return sequences, first, groups


@pytest.mark.parametrize("name", FAMILY)
def test_packed_values_are_those_of_each_sequence_alone(name):
  """R4; a value is of the state before a token, a score of the state at it."""
  c = tiny.FAMILY[name]
  params = {"model": tiny.params(c), "head": head_of(c)}
  sequences, first, groups = asked(c)
  pack = packing.pack(sequences, first, row_length=17, groups=groups)
  found = jax.jit(functools.partial(values.token_values, c))(params, pack.rows)

  @jax.jit
  def plain(params, rows):
    hidden_BLD, _, _ = transformer.forward(
      c,
      params["model"],
      rows.tokens_BL,
      rows.positions_BL,
      segments_BL=rows.segments_BL,
    )
    return hidden_BLD @ params["head"]["weight"] + params["head"]["bias"][0]

  want_BL = np.asarray(plain(params, tiny.plain_rows(sequences)))
  for i, (row, columns) in enumerate(zip(pack.row_of, pack.columns, strict=True)):
    own, end = columns[first[i] :], len(sequences[i])
    np.testing.assert_allclose(
      found.values_BL[row, own], want_BL[i, first[i] - 1 : end - 1], atol=2e-5
    )
    np.testing.assert_allclose(
      found.scores_BL[row, own], want_BL[i, first[i] : end], atol=2e-5
    )
  outside = pack.rows.mask_BL == 0
  assert not np.asarray(found.values_BL)[outside].any()
  assert not np.asarray(found.scores_BL)[outside].any()
  assert (found.routed is None) == (c.experts is None)


def test_a_value_knows_nothing_of_its_token_and_a_score_does():
  c = tiny.FAMILY["llama"]
  params = {"model": tiny.params(c), "head": head_of(c)}
  rows = tiny.plain_rows([[1, 2, 3, 4], [1, 2, 3, 5]])
  found = jax.jit(functools.partial(values.token_values, c))(params, rows)
  np.testing.assert_array_equal(*found.values_BL)
  differ_L = np.not_equal(*np.asarray(found.scores_BL))
  np.testing.assert_array_equal(differ_L, [False, False, False, True])


@pytest.mark.slow
def test_a_mixture_goes_where_the_rows_say():
  c = tiny.FAMILY["qwen3_moe"]
  params = {"model": tiny.params(c), "head": head_of(c)}
  rows = tiny.plain_rows([[1, 2, 3, 4, 5]])
  run = jax.jit(functools.partial(values.token_values, c, balance=True))
  went_BLZK = np.zeros((1, 5, c.depth, c.experts.per_token), np.int32)
  went_BLZK[..., 1] = 1
  found = run(params, rows.replace(experts_BLZK=went_BLZK))
  got = jnp.moveaxis(found.routed.experts_ZBLK, 0, 2)
  np.testing.assert_array_equal(got, went_BLZK)
  assert found.routed.balance_BL.shape == (1, 5)


def test_nothing_of_the_size_of_the_vocabulary_exists():
  """R11: less memory than an eighth of [B, L, V]."""
  c = dataclasses.replace(tiny.config(depth=1), vocab=65_536)
  num_rows, length = 16, 128
  ids = jax.ShapeDtypeStruct((num_rows, length), jnp.int32)
  numbers = jax.ShapeDtypeStruct((num_rows, length), jnp.float32)
  abstract = {
    "model": parameters.abstract_params(c, jnp.float32),
    "head": parameters.abstract(heads.head_specs(c), jnp.float32),
  }

  def total(params, rows):
    return jnp.square(
      values.token_values(c, params, rows, remat="full").scores_BL
    ).sum()

  rows = TokenRows(ids, ids, ids, numbers, numbers)
  compiled = jax.jit(jax.grad(total)).lower(abstract, rows).compile()
  used = compiled.memory_analysis().temp_size_in_bytes
  assert used < num_rows * length * c.vocab * 4 / 8
