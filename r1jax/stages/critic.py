"""The critic of PPO: a decoder of its own with a scalar head, taught beside the policy.

It begins as the weights that the policy begins with. Its values are asked for when the
old log-probs are, and it is updated in the same mini-batches as the policy.

Letters: M microbatches, B rows in each, L tokens in a row.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from r1jax import optim, prng, sharding
from r1jax.errors import InputError
from r1jax.models import heads, parameters
from r1jax.objectives.value import explained_variance, value_cost, value_loss
from r1jax.stages.run import Run
from r1jax.stages.trainable import matrices
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.training.minibatches import Minibatch
from r1jax.training.values import token_values
from r1jax.types import Array, Statistic, TokenRows, TrainState

# The losses name quantities, of which a stage may have several.
_NAMES = {
  "loss/value": "critic/loss",
  "value/clip_fraction": "critic/clip_fraction",
  "optim/grad_norm": "critic/grad_norm",
}


@struct.dataclass
class Lesson:
  """What an update of the critic sees; float32 [M, B, L] beside the rows."""

  rows: TokenRows
  value_old_BL: Array
  return_BL: Array


class Critic:
  """Values of tokens, and the updates that teach them.

  Args:
    config: all settings of the stage; its own are in `critic`.
  """

  def __init__(self, run: Run, config: Mapping[str, Any]):
    self._run = run
    self._config = config
    self._specs = {
      "model": parameters.param_specs(run.model),
      "head": heads.head_specs(run.model),
    }
    try:
      self._optimizer, self.rate = optim.make_optimizer(
        matrices(self._specs), **config["critic"]["optim"]
      )
      # Patterns of paths are matched here.
      jax.eval_shape(
        self._optimizer.init, parameters.abstract(self._specs, jnp.float32)
      )
    except InputError as e:
      text = str(e).replace("config.optim", "config.critic.optim")
      raise InputError(text) from e
    values = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    clipped = functools.partial(value_cost, clip=config["critic"]["clip"])
    jax.eval_shape(clipped, values, values, values)  # says what cannot be
    partition = run.partition
    shardings = states.state_shardings(
      self._specs, self._optimizer, partition, np.float32
    )
    self._batch_sharding = partition.sharding(None, "batch")
    self._values = steps.make_score(
      self._values_of, shardings.params, self._batch_sharding
    )
    self._update = steps.make_update(
      self._loss, self._optimizer, shardings, self._batch_sharding
    )

  def abstract(self) -> TrainState:
    """What a checkpoint of it is restored into."""
    return states.abstract_state(
      self._specs, self._optimizer, self._run.partition, np.float32
    )

  def fresh(self, init: str) -> TrainState:
    """The state that it begins with, around the weights that `init` stands for."""
    key = prng.at(prng.root(self._run.seed), "critic")
    head = states.init_params(
      self._specs["head"], key, self._run.partition, jnp.float32
    )
    params = {"model": self._run.params_of(init), "head": head}
    return states.state_of(params, self._specs, self._optimizer, self._run.partition)

  def values(self, state: TrainState, rows: TokenRows, count: int) -> jax.Array:
    """[M, B, L] of what it says before each token of the first microbatches."""
    return self._values(state.params, None, rows, count)

  def update(
    self,
    state: TrainState,
    batch: Minibatch,
    values: Sequence[np.ndarray],
    returns: Sequence[np.ndarray],
  ) -> tuple[TrainState, dict[str, Statistic]]:
    """Learns a mini-batch.

    Args:
      values, returns: what it said, and what it should have, of the tokens of each
        answer of the rollout.
    """
    laid = sharding.place(
      (batch.laid(values), batch.laid(returns)), self._batch_sharding
    )
    lesson = Lesson(batch.experience.rows, *laid)
    state, seen = self._update(state, None, lesson, batch.count, batch.denominator)
    return state, {_NAMES.get(name, name): value for name, value in seen.items()}

  def _forward(self, params: Any, rows: TokenRows) -> jax.Array:
    held = {"model": self._run.cast(params["model"]), "head": params["head"]}
    return token_values(
      self._run.model,
      held,
      # It is another model: the policy's experts are not its own.
      rows.replace(experts_BLZK=None),
      remat=self._config["training"]["remat"],
      partition=self._run.partition,
    ).values_BL

  def _values_of(self, params: Any, frozen: None, rows: TokenRows) -> jax.Array:
    del frozen
    return self._forward(params, rows)

  def _loss(
    self, params: Any, frozen: None, lesson: Lesson
  ) -> tuple[jax.Array, dict[str, Statistic]]:
    del frozen
    loss = self._config["loss"]
    total, _, seen = value_loss(
      self._forward(params, lesson.rows),
      lesson.value_old_BL,
      lesson.return_BL,
      lesson.rows.mask_BL,
      lesson.rows.length_BL,
      clip=self._config["critic"]["clip"],
      reduction=loss["reduction"],
      length_constant=loss["length_constant"],
    )
    return total, seen


def explained(
  values: Sequence[np.ndarray], returns: Sequence[np.ndarray], trained_B: np.ndarray
) -> dict[str, float]:
  """How much of the returns the values explained, over tokens that are trained on."""
  chosen = np.flatnonzero(trained_B)
  if not len(chosen):
    return {"critic/explained_variance": 0.0}
  together = (np.concatenate([x[b] for b in chosen]) for x in (values, returns))
  return {"critic/explained_variance": explained_variance(*together)}
