"""Choosing experts, going through them, and keeping their loads even."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import moe
from r1jax.models.config import Experts
from r1jax.sharding import LOCAL
from tests import tiny

V3_LIKE = Experts(
  count=3, per_token=2, ffw=1, scores="sigmoid", bias=True, normalise=True, scale=2.5
)


def routed(scores, e, bias=None, replayed=None):
  """(experts, gates) of one token with given scores."""
  scores = np.asarray(scores, np.float32)
  logits = np.log(scores / (1 - scores)) if e.scores == "sigmoid" else np.log(scores)
  weights = {"router": jnp.diag(jnp.asarray(logits))}
  if bias is not None:
    weights["bias"] = jnp.asarray(bias)
  run = jax.jit(functools.partial(moe.route, e=e))
  experts, gates, seen = run(
    np.ones((1, 1, len(scores)), np.float32), weights, replayed_BLK=replayed
  )
  np.testing.assert_allclose(seen[0, 0], scores, rtol=1e-5)
  order = np.argsort(experts[0, 0])
  return np.asarray(experts[0, 0])[order].tolist(), np.asarray(gates[0, 0])[order]


def test_bias_chooses_and_does_not_weigh():
  """Biased scores .6, .7, .7; gates from .7 and .2 alone."""
  experts, gates = routed([0.8, 0.7, 0.2], V3_LIKE, bias=[-0.2, 0.0, 0.5])
  assert experts == [1, 2]
  np.testing.assert_allclose(gates, [1.944444, 0.555556], rtol=1e-5)
  assert routed([0.8, 0.7, 0.2], V3_LIKE)[0] == [0, 1]


GROUPED = Experts(
  count=8,
  per_token=2,
  ffw=1,
  scores="sigmoid",
  groups=4,
  kept_groups=1,
  group_score="top2",
  scale=2.5,
)
SCORES = [0.95, 0.1, 0.6, 0.6, 0.5, 0.5, 0.2, 0.2]


def test_a_group_counts_by_its_two_best():
  """Sums 1.05, 1.2, 1.0, 0.4: the second group, not the one with the best expert."""
  experts, gates = routed(SCORES, GROUPED)
  assert experts == [2, 3]
  np.testing.assert_allclose(gates, [1.25, 1.25], rtol=1e-5)
  by_best = dataclasses.replace(GROUPED, group_score="max")
  assert routed(SCORES, by_best)[0] == [0, 1]


def test_dropped_groups_stay_dropped_where_biased_scores_are_negative():
  experts, _ = routed(SCORES, dataclasses.replace(GROUPED, bias=True), bias=[-2.0] * 8)
  assert experts == [2, 3]


def test_gates_without_normalisation_are_the_scores():
  e = Experts(count=4, per_token=2, ffw=1, normalise=False)
  _, gates = routed([0.4, 0.3, 0.2, 0.1], e)
  np.testing.assert_allclose(gates, [0.4, 0.3], rtol=1e-5)


def test_replayed_experts_with_gates_of_now():
  """-1 chooses anew."""
  e = Experts(count=4, per_token=2, ffw=1)
  scores = [0.4, 0.3, 0.2, 0.1]
  experts, gates = routed(scores, e, replayed=jnp.asarray([[[3, 1]]]))
  assert experts == [1, 3]
  np.testing.assert_allclose(gates, [0.75, 0.25], rtol=1e-5)
  assert routed(scores, e, replayed=jnp.asarray([[[-1, -1]]]))[0] == [0, 1]


def test_the_mixture_is_each_token_through_its_experts():
  c = tiny.FAMILY["deepseek_v3"]
  weights = jax.tree.map(lambda leaf: leaf[0], tiny.params(c)["layers"]["moe"])
  x = np.random.default_rng(0).normal(size=(3, 5, c.width)).astype(np.float32)
  run = jax.jit(functools.partial(moe.mixture, e=c.experts, partition=LOCAL))
  out, experts, _ = run(x, weights)
  gates = moe.route(x, weights, c.experts)[1]

  def swiglu(x_D, w):
    gate = x_D @ w["gate"]
    return (gate / (1 + np.exp(-gate)) * (x_D @ w["up"])) @ w["down"]

  for row, place in np.ndindex(3, 5):
    want = swiglu(x[row, place], weights["shared"])
    for number, gate in zip(experts[row, place], gates[row, place], strict=True):
      own = jax.tree.map(lambda w, number=number: w[number], weights["experts"])
      want += gate * swiglu(x[row, place], own)
    np.testing.assert_allclose(out[row, place], want, atol=2e-5)


def test_no_token_is_dropped_when_all_choose_the_same():
  c = tiny.FAMILY["qwen3_moe"]
  weights = jax.tree.map(lambda leaf: leaf[0], tiny.params(c)["layers"]["moe"])
  x = np.random.default_rng(0).normal(size=(1, 1, c.width)).astype(np.float32)
  run = jax.jit(functools.partial(moe.mixture, e=c.experts, partition=LOCAL))
  many, _, _ = run(np.tile(x, (4, 40, 1)), weights)
  one, _, _ = run(x, weights)
  np.testing.assert_allclose(many, np.broadcast_to(one, many.shape), atol=1e-5)


def test_balance_of_a_sequence():
  """f = [2, 2, 0, 0], P = [.425, .275, .175, .125]."""
  scores = np.asarray([[[0.9, 0.5, 0.3, 0.3], [0.8, 0.6, 0.4, 0.2]]], np.float32)
  balance = jax.jit(functools.partial(moe.balance, per_token=2))
  np.testing.assert_allclose(
    balance(scores, segments_BL=None), np.full((1, 2), 1.4), rtol=1e-6
  )
  even = np.full((1, 4, 4), 0.5, np.float32)
  turning = even + 0.01 * np.eye(4, dtype=np.float32)
  turning[0] += 0.01 * np.roll(np.eye(4), 1, axis=1)
  np.testing.assert_allclose(balance(turning, segments_BL=None), 1, rtol=1e-5)


def test_balance_is_of_each_sequence_whatever_lies_beside_it():
  rng = np.random.default_rng(0)
  scores = jax.nn.sigmoid(rng.normal(size=(2, 7, 4)).astype(np.float32))
  segments = np.asarray([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1]], np.int32)
  balance = jax.jit(functools.partial(moe.balance, per_token=2))
  packed = balance(scores, segments_BL=segments)
  alone = balance(scores[:1, 3:5], segments_BL=None)
  np.testing.assert_allclose(packed[:1, 3:5], alone, rtol=1e-5)
  np.testing.assert_allclose(
    packed[1:], balance(scores[1:], segments_BL=None), rtol=1e-5
  )


def test_the_bias_falls_where_the_load_is_above_the_mean():
  """Loads 3, 1, 0, 4 at a rate of .001, two layers alike."""
  bias = jnp.zeros((2, 4))
  got = moe.updated_bias(bias, jnp.asarray([[3.0, 1.0, 0.0, 4.0]] * 2), 0.001)
  np.testing.assert_allclose(got, [[-0.001, 0.001, 0.001, -0.001]] * 2)


def test_load_counts_valid_tokens_only():
  experts = jnp.asarray([[[[0, 1], [2, 1]], [[3, 0], [1, 1]]]])
  valid = jnp.asarray([[1.0, 1.0], [1.0, 0.0]])
  np.testing.assert_array_equal(moe.load(experts, valid, 4), [[2, 2, 1, 1]])


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v2", "deepseek_v3"])
def test_gradients_reach_router_and_experts_and_not_the_bias(name):
  c = tiny.FAMILY[name]
  weights = jax.tree.map(lambda leaf: leaf[0], tiny.params(c)["layers"]["moe"])
  x = np.random.default_rng(0).normal(size=(2, 9, c.width)).astype(np.float32)

  @jax.jit
  @jax.grad
  def gradient(weights):
    return (moe.mixture(x, weights, c.experts, LOCAL)[0] ** 2).sum()

  got = gradient(weights)
  bias = got.pop("bias", 0.0)
  np.testing.assert_array_equal(bias, np.zeros_like(bias))
  for leaf in jax.tree.leaves(got):
    assert np.abs(leaf).max() > 1e-3
