"""One update over microbatches, and one scoring pass, each a compiled program.

Letters: M microbatches there is room for, B rows in a microbatch, L tokens in a row.

The trip count is traced: a rollout that packs into few rows costs few microbatches and
compiles nothing. Losses come as sums; one global denominator divides once, so any split
into microbatches or devices gives one gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax.training import experts
from r1jax.types import Mean, Statistic, TrainState

# (params, frozen, microbatch) -> (loss sum, metrics)
LossFn = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, Statistic]]]


def take(tree_MX: Any, index: jax.Array) -> Any:
  """Entry `index` of the leading axis of every leaf."""
  return jax.tree.map(
    lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree_MX
  )


def gradient(
  loss_fn: LossFn, params: Any, frozen: Any, batch_MBL: Any, num_microbatches: jax.Array
) -> tuple[Any, dict[str, Statistic]]:
  """Sums of gradients (float32) and merged metrics over the first microbatches.

  Args:
    frozen: what the loss reads beside the parameters, and that has no gradient.
    batch_MBL: pytree with leaves [M, B, ...].
    num_microbatches: int32 scalar, at most M.
  """

  def one(index: jax.Array) -> tuple[Any, dict[str, Statistic]]:
    batch = take(batch_MBL, index)
    grads, metrics = jax.grad(loss_fn, has_aux=True)(params, frozen, batch)
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads), metrics

  shapes = jax.eval_shape(one, jnp.asarray(0))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

  def add(index, sums):
    (grads, metrics), (more_grads, more) = sums, one(index)
    merged = {name: metrics[name].merge(more[name]) for name in metrics}
    return jax.tree.map(jnp.add, grads, more_grads), merged

  return jax.lax.fori_loop(0, num_microbatches, add, zeros)


def make_update(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  shardings: TrainState,
  batch_sharding: Any,
  *,
  bias_rate: float = 0.0,
) -> Callable:
  """Compiles an update of a `TrainState`.

  It is (state, frozen, batch_MBL, num_microbatches, denominator) -> (state, metrics).
  The state is donated; what is `frozen` (see `gradient`) is not. `denominator` is the
  global count that the summed loss is divided by (0 for an update in which nothing may
  be trained on: its gradient is 0). Metrics gain `optim/grad_norm`, taken before
  clipping. With a `bias_rate` the routers' biases move by it, see `experts.balanced`.
  """

  def update(state, frozen, batch_MBL, num_microbatches, denominator):
    sums, metrics = gradient(loss_fn, state.params, frozen, batch_MBL, num_microbatches)
    grads = jax.tree.map(
      lambda g, p: (g / jnp.maximum(denominator, 1.0)).astype(p.dtype),
      sums,
      state.params,
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if bias_rate:
      params = experts.balanced(params, metrics, bias_rate)
    norm = optax.tree.norm(grads)
    metrics = {**metrics, "optim/grad_norm": Mean(norm, jnp.asarray(1.0))}
    return TrainState(state.step + 1, params, opt_state), metrics

  return jax.jit(
    update,
    donate_argnums=0,
    # What is frozen stays where it lies.
    in_shardings=(shardings, None, batch_sharding, None, None),
    out_shardings=(shardings, None),
  )


def make_score(
  score_fn: Callable, param_shardings: Any, batch_sharding: Any
) -> Callable:
  """Compiles (params, frozen, batch_MBL, num_microbatches) -> scores [M, B, ...].

  `score_fn(params, frozen, microbatch)` returns a pytree of [B, ...]; entries of
  microbatches beyond the count are 0.
  """

  def score(params, frozen, batch_MBL, num_microbatches):
    shapes = jax.eval_shape(lambda: score_fn(params, frozen, take(batch_MBL, 0)))
    num_places = jax.tree.leaves(batch_MBL)[0].shape[0]
    empty = jax.tree.map(
      lambda leaf: jnp.zeros((num_places, *leaf.shape), leaf.dtype), shapes
    )

    def body(index, out):
      seen = score_fn(params, frozen, take(batch_MBL, index))
      return jax.tree.map(
        lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, index, 0),
        out,
        seen,
      )

    return jax.lax.fori_loop(0, num_microbatches, body, empty)

  return jax.jit(
    score,
    in_shardings=(param_shardings, None, batch_sharding, None),
    out_shardings=batch_sharding,
  )
