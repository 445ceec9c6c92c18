"""One gradient for any split, one program for any number of microbatches."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import sharding, trees
from r1jax.models import lora, parameters
from r1jax.training import step
from r1jax.training.logprobs import token_logprobs
from r1jax.types import Load, Mean, TrainState
from tests import tiny

C = tiny.config(depth=1)
LOSSES = {"grpo": (1.0, 0.0), "sft": (0.0, 1.0)}


def loss(params, frozen, e, weights):
  """Both objectives on one scoring pass: (weighted sum, metrics)."""
  del frozen
  policy, metrics = tiny.grpo_loss(C, params, e)
  supervised = metrics["loss/cross_entropy"].total
  return weights[0] * policy + weights[1] * supervised, metrics


@jax.jit
def gradient(params, batch_MBL, num_microbatches, weights):
  loss_fn = functools.partial(loss, weights=weights)
  return step.gradient(loss_fn, params, None, batch_MBL, num_microbatches)


def split(tree, num_microbatches):
  return jax.tree.map(
    lambda leaf: leaf.reshape(num_microbatches, -1, *leaf.shape[1:]), tree
  )


@pytest.mark.parametrize("name", LOSSES)
def test_any_split_into_microbatches_gives_one_gradient(name):
  """R5: 1 x 8, 2 x 4 and 8 x 1, rows of unequal token counts; metrics merge too."""
  batch, weights = tiny.experience(C), jnp.asarray(LOSSES[name])
  grads, metrics = gradient(tiny.params(C), split(batch, 1), 1, weights)
  assert float(optax.tree.norm(grads)) > 0.1
  for num_microbatches in (2, 8):
    got = gradient(
      tiny.params(C), split(batch, num_microbatches), num_microbatches, weights
    )
    tiny.assert_same_sums(got[0], grads)
    for key, mean in metrics.items():
      np.testing.assert_allclose(got[1][key].total, mean.total, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(got[1][key].count, mean.count)


def test_microbatches_beyond_the_count_are_ignored():
  """R5, R12: garbage in unused places changes nothing; fewer compile nothing."""
  batch, weights = split(tiny.experience(C), 8), jnp.asarray(LOSSES["grpo"])
  spoilt = jax.tree.map(lambda leaf: leaf.copy(), batch)
  for leaf in jax.tree.leaves(spoilt):
    leaf[3:] = 7
  spoilt.logp_old_BL[3:] = np.nan
  want = gradient(tiny.params(C), batch, 3, weights)
  before = gradient._cache_size()
  got = gradient(tiny.params(C), spoilt, 3, weights)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  other = gradient(tiny.params(C), batch, 2, weights)
  assert float(want[1]["loss/kl"].count) > float(other[1]["loss/kl"].count) > 0
  none = gradient(tiny.params(C), batch, 0, weights)
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(none))
  assert gradient._cache_size() == before


def linear_loss(params, frozen, batch):
  """Its gradient with respect to w is the sum of x, with respect to b their number,
  both as often as what is frozen says."""
  x_BL = batch["x_BL"]
  total = frozen * ((params["w"] * x_BL).sum() + params["b"] * x_BL.size)
  return total, {"x": Mean(x_BL.sum(), jnp.asarray(x_BL.size, jnp.float32))}


def linear_batch(num_places=4):
  x = np.arange(num_places * 6, dtype=np.float32).reshape(num_places, 2, 3)
  return {"x_BL": x}


def test_gradient_sums_by_hand():
  params = {"w": jnp.ones(()), "b": jnp.zeros((), jnp.bfloat16)}
  run = jax.jit(functools.partial(step.gradient, linear_loss))
  grads, metrics = run(params, 1.0, linear_batch(), 3)
  assert float(grads["w"]) == np.arange(18).sum() == float(metrics["x"].total)
  assert float(grads["b"]) == 18 == float(metrics["x"].count)
  assert grads["b"].dtype == jnp.float32
  twice, _ = run(params, 2.0, linear_batch(), 3)
  assert float(twice["w"]) == 2 * float(grads["w"])
  # 512 + 1 is 512 in bfloat16: the sum over microbatches must not be.
  grads, _ = run(params, 1.0, {"x_BL": np.zeros((500, 2, 3), np.float32)}, 171)
  assert float(grads["b"]) == 1026


REPLICATED = NamedSharding(sharding.single_device().mesh, PartitionSpec())
ONE = jax.device_put(jnp.ones(()), REPLICATED)


def linear_update(optimizer):
  update = step.make_update(linear_loss, optimizer, REPLICATED, REPLICATED)
  params = jax.device_put({"w": jnp.ones(()), "b": jnp.zeros(())}, REPLICATED)
  opt_state = jax.device_put(optimizer.init(params), REPLICATED)
  start = TrainState(jax.device_put(jnp.asarray(0), REPLICATED), params, opt_state)
  return update, start


def test_update_divides_once_and_reports_the_norm_before_clipping():
  """R5: the sum over microbatches over the one denominator, then the optimizer."""
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5))
  update, start = linear_update(optimizer)
  after, metrics = update(start, ONE, linear_batch(), 2, 33.0)
  gradient = np.asarray([66 / 33, 12 / 33])
  norm = np.linalg.norm(gradient)
  np.testing.assert_allclose(metrics["optim/grad_norm"].total, norm, rtol=1e-6)
  np.testing.assert_allclose(after.params["w"], 1 - 0.5 * gradient[0] / norm, rtol=1e-5)
  np.testing.assert_allclose(after.params["b"], -0.5 * gradient[1] / norm, rtol=1e-5)
  assert int(after.step) == 1
  assert float(metrics["x"].value()) == 5.5


def test_update_with_nothing_to_train_on_is_no_update():
  """R5, R14: a count of 0 divides nothing by nothing."""
  update, start = linear_update(optax.sgd(0.5))
  after, metrics = update(start, ONE, linear_batch(), 0, 0.0)
  assert float(after.params["w"]) == 1 and float(after.params["b"]) == 0
  assert float(metrics["optim/grad_norm"].total) == 0
  assert float(metrics["x"].value()) == 0


def test_update_compiles_once_and_donates():
  """R12, R20: the trip count and the denominator are traced."""
  update, state = linear_update(optax.adam(0.1))
  for num_microbatches, denominator in ((4, 24.0), (1, 6.0), (0, 0.0), (3, 2.0)):
    before = state
    state, _ = update(state, ONE, linear_batch(), num_microbatches, denominator)
    assert before.params["w"].is_deleted() and not ONE.is_deleted()
  assert update._cache_size() == 1
  assert int(state.step) == 4


def test_score_fills_the_places_it_is_asked_for():
  """R12: entries beyond the count are 0; any count is one program."""
  score = step.make_score(
    lambda params, frozen, batch: {"y": params["w"] * batch["x_BL"] + frozen},
    REPLICATED,
    REPLICATED,
  )
  params = {"w": jnp.asarray(2.0)}
  for num_microbatches in (4, 2, 0):
    got = np.asarray(score(params, ONE, linear_batch(), num_microbatches)["y"])
    want = 2 * linear_batch()["x_BL"] + 1
    want[num_microbatches:] = 0
    np.testing.assert_array_equal(got, want)
  assert score._cache_size() == 1


def test_router_biases_follow_the_loads_of_the_whole_batch():
  """Two microbatches whose loads even out, but for one expert."""
  bias = jnp.zeros((1, 3))

  def loss(params, frozen, batch):
    del frozen
    loads = Load(batch["load_BZE"].sum(0))
    return (params["layers"]["w"] * 1.0).sum(), {"moe/load": loads}

  params = {"layers": {"w": jnp.ones(2), "moe": {"bias": bias}}}
  optimizer = optax.adam(0.1)
  update = step.make_update(loss, optimizer, REPLICATED, REPLICATED, bias_rate=0.01)
  start = TrainState(jnp.asarray(0), params, optimizer.init(params))
  start = jax.device_put(start, REPLICATED)
  loads = np.asarray([[[[4.0, 0.0, 0.0]]], [[[0.0, 4.0, 1.0]]]], np.float32)
  after, metrics = update(start, None, {"load_BZE": loads}, 2, 1.0)
  np.testing.assert_allclose(
    after.params["layers"]["moe"]["bias"], [[-0.01, -0.01, 0.01]]
  )
  np.testing.assert_allclose(metrics["moe/load"].value(), 4 / 3)


def test_of_what_is_frozen_no_gradient_is_made():
  """The largest array of an adapter's update is a matrix of one layer."""
  experts = dataclasses.replace(tiny.QWEN_EXPERTS, ffw=170, first_dense=6)
  c = tiny.config(depth=12, width=128, ffw=6 * 170, experts=experts)
  how = lora.Lora(rank=2, alpha=4.0, paths=(".*/attn/.*", ".*/(gate|up|down)"))

  def loss(adapter, frozen, rows):
    params = lora.attach(frozen, adapter, how)
    scores = token_logprobs(c, params, rows, remat="full")
    return -scores.logp_BL.sum(), {}

  rows = tiny.plain_rows([[1, 2, 3, 4]])
  base, adapter = (
    parameters.abstract(specs, jnp.float32)
    for specs in (parameters.param_specs(c), lora.adapter_specs(c, how))
  )
  run = jax.jit(functools.partial(step.gradient, loss))
  batch = jax.tree.map(lambda leaf: leaf[None], rows)
  compiled = run.lower(adapter, base, batch, 1).compile()
  made = re.findall(r"= \w+\[([\d,]+)\]\S* ([\w-]+)\(", compiled.as_text())
  largest = max(
    math.prod(map(int, shape.split(",")))
    for shape, what in made
    if what not in ("parameter", "get-tuple-element")
  )
  assert largest == 128 * 6 * 170
  used = compiled.memory_analysis()
  assert used.temp_size_in_bytes + used.output_size_in_bytes < trees.num_bytes(base) / 3
