"""Prompts at once against the same tokens one after the other."""

import functools

import jax
import jax.extend
import numpy as np
import pytest

from r1jax.models import cache as caches
from r1jax.models import quantized, transformer
from r1jax.sampling import loop_state, prefill
from r1jax.sharding import LOCAL
from tests import tiny


def prefilled(name, dtype=""):
  """(keys, values) of the prompts in each layer."""
  c, prompts = tiny.FAMILY[name], tiny.prompts(tiny.PROMPTS)
  plan = loop_state.Plan(samples=1, max_tokens=1, cache=dtype)
  program = jax.jit(lambda params: prefill.prefill(c, params, prompts, plan, LOCAL)[0])
  shared = program(tiny.params(c))
  return shared.keys, shared.values


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3"])
def test_prompts_are_cached_like_tokens_one_by_one(name):
  c, prompts = tiny.FAMILY[name], tiny.prompts(tiny.PROMPTS)
  step = jax.jit(functools.partial(transformer.forward, c))
  cache = caches.empty(c, *prompts.tokens_QP.shape)
  for place, token_Q in enumerate(prompts.tokens_QP.T):
    positions_Q1 = np.full((len(token_Q), 1), place, np.int32)
    _, cache, _ = step(tiny.params(c), token_Q[:, None], positions_Q1, cache=cache)
  want_keys = tuple(keys for (keys,) in cache.keys)
  want_values = tuple(values[0] if values else None for values in cache.values)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5),
    prefilled(name),
    (want_keys, want_values),
  )


def test_a_small_cache_holds_what_was_computed_in_full():
  for axis, small, full in zip(
    (-2, -1), prefilled("qwen3", "int8"), prefilled("qwen3"), strict=True
  ):
    for got, exact in zip(small, full, strict=True):
      want = quantized.quantize(exact, (axis,))
      np.testing.assert_allclose(got.scale, want.scale, rtol=1e-6)
      assert np.abs(got.values.astype(int) - want.values).max() <= 1
      assert (got.values == want.values).mean() > 0.99


def test_no_array_is_quadratic_in_a_long_prompt():
  c, length = tiny.config(), 1024
  prompts = tiny.prompts([[1] * length])
  plan = loop_state.Plan(samples=1, max_tokens=1)
  program = functools.partial(prefill.prefill, c, plan=plan, partition=LOCAL)
  todo = [jax.make_jaxpr(program)(tiny.params(c), prompts).jaxpr]
  sizes = []
  while todo:
    for eqn in todo.pop().eqns:
      sizes += [out.aval.size for out in eqn.outvars]
      todo += jax.extend.core.jaxprs_in_params(eqn.params)
  assert c.heads * length * 128 <= max(sizes) < length * length
