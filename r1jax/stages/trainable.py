"""What a stage trains: all parameters of the model, or an adapter of frozen ones.

Where `config.lora.rank` is 0 the trained tree is the parameters, and the frozen one
None. Else the trained tree is the adapter alone, which gradients, optimizer state,
checkpoints and the reference are of, and the frozen one the parameters that the stage
starts from, in the dtype that they are computed with.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax import optim, prng, trees
from r1jax.errors import InputError
from r1jax.models import lora, parameters
from r1jax.stages.run import Run
from r1jax.training import state as states


@dataclasses.dataclass(frozen=True)
class Trainable:
  """Makes the two trees of a stage, and of them what the model computes with."""

  run: Run
  lora: lora.Lora | None

  @classmethod
  def of(cls, run: Run, config: Mapping[str, Any]) -> "Trainable":
    """That of a stage's settings."""
    return cls(run, lora.of_section(config["lora"]))

  def check(self, config: Mapping[str, Any]) -> None:
    """Raises InputError where `lora` or `optim` do not fit the model or each other."""
    bias_rate = config["moe"]["bias_rate"]
    if self.lora is not None and bias_rate:
      raise InputError(
        f"config.moe.bias_rate={bias_rate}: the routers' biases are frozen where "
        f"config.lora.rank={self.lora.rank}; set one of the two to 0"
      )
    optimizer, _ = self.optimizer(config["optim"])
    # Patterns of paths are matched here.
    jax.eval_shape(optimizer.init, parameters.abstract(self.specs, jnp.float32))

  def optimizer(
    self, section: Mapping[str, Any]
  ) -> tuple[optax.GradientTransformation, optim.Schedule]:
    """What a stage's `optim` asks for, of the trained tree."""
    return optim.make_optimizer(matrices(self.specs), **section)

  @property
  def specs(self) -> dict:
    """Of the trained tree."""
    if self.lora is None:
      return parameters.param_specs(self.run.model)
    return lora.adapter_specs(self.run.model, self.lora)

  @property
  def update_passes(self) -> int:
    """Forward passes whose products are as many as an update's.

    Of frozen matrices only the gradients of their inputs are computed.
    """
    return 3 if self.lora is None else 2

  def fresh(self, stage: str, init: str) -> Any:
    """The trained tree that a stage begins with, float32."""
    if self.lora is None:
      return self.run.params_of(init)
    key = prng.at(prng.root(self.run.seed), f"{stage}/lora")
    return states.init_params(self.specs, key, self.run.partition, jnp.float32)

  def frozen(self, init: str) -> Any | None:
    """The frozen tree of a stage, in compute dtype."""
    if self.lora is None:
      return None
    return self.run.cast(self.run.params_of(init))

  def policy(self, trained: Any, frozen: Any | None) -> Any:
    """What the model computes with; gradients reach the trained tree in its dtype."""
    return self.join(self.run.cast(trained), frozen)

  def join(self, trained: Any, frozen: Any | None) -> Any:
    """One tree of both, of arrays, shapes or shardings."""
    if self.lora is None:
      return trained
    return lora.attach(frozen, trained, self.lora)

  def announce(self, stage: str) -> None:
    """Says how large an adapter is."""
    if self.lora is not None:
      own, all_ = trees.count(self.specs), parameters.num_params(self.run.model)
      self.run.say(
        f"{stage}: trains an adapter of rank {self.lora.rank}, {own:,} numbers "
        f"({own / all_:.2%} of the model's {all_:,})"
      )


def matrices(specs: dict) -> dict[str, tuple[int, int]]:
  """{path: (axes of layers and experts, axes of inputs)} of what are matrices."""
  found = {}
  for path, spec in trees.flatten(specs).items():
    base, _, last = path.rpartition("/")
    # The rank is the input of an adapter's second half, and a token of the embedding.
    single = {"embed": 1, "b": 1, "a": parameters.num_inputs(base)}
    inputs = single.get(last, parameters.num_inputs(path))
    if inputs:
      found[path] = (parameters.num_stacked(spec), inputs)
  return found
