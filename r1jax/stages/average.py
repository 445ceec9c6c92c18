"""The mean of the parameters that several stages have made.

Llama 3 averages models that were trained on other data or with other settings, of each
kind of training (arXiv 2407.21783, section 4.1). Adapters are merged first.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import sharding
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.stages.run import Run, Stage


def prepare_average(run: Run, name: str, config: Mapping[str, Any]) -> None:
  """Raises InputError on what would not work later."""
  del run, name
  stages, weights = config["stages"], config["weights"]
  if len(stages) < 2:
    raise InputError(f"config.stages={stages}: name two stages or more to average")
  if weights and (len(weights) != len(stages) or min(weights) <= 0):
    raise InputError(
      f"config.weights={weights}: give each of {len(stages)} stages a number above 0, "
      "or () for the same to all"
    )


def average(run: Run, name: str, config: Mapping[str, Any], prepared: None) -> None:
  """Leaves a checkpoint of the mean, as its only step.

  Config: `stages`, before this one, and their `weights`.
  """
  del prepared
  specs = parameters.param_specs(run.model)
  shardings = run.partition.of_specs(specs)
  abstract = parameters.abstract(specs, jnp.float32, shardings)
  number = jax.ShapeDtypeStruct((), np.int32, sharding=run.partition.sharding())
  move = jax.jit(moved, donate_argnums=0, out_shardings=shardings)
  stages = config["stages"]
  weights = config["weights"] or [1.0] * len(stages)
  with Stage(run, name, num_steps=1) as stage:
    stage.take_up({"train": {"step": number, "params": abstract}})
    for step in stage.steps():
      with run.clock("update"):
        mean, so_far = None, 0.0
        for made, weight in zip(stages, weights, strict=True):
          own, so_far = run.params_of(made), so_far + weight
          mean = own if mean is None else move(mean, own, np.float32(weight / so_far))
          del own  # room for the next one
      at = sharding.place(np.int32(step), number.sharding)
      state = {"train": {"step": at, "params": mean}}
      stage.end_step(step, {"average/stages": len(stages)}, state, work={})


def moved(mean: Any, own: Any, share: Any) -> Any:
  """A running mean with one tree more, which has a share of the weight so far.

  So the mean of equal trees is them, to the last bit.
  """
  return jax.tree.map(lambda m, p: m + share * (p - m), mean, own)
