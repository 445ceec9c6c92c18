"""What stages have in common that train on packed rows without advantages.

Letters: N rows in all, M microbatches, B rows in each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1jax.errors import InputError
from r1jax.stages import collect
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.training import experts


def check(run: Run, config: Mapping[str, Any]) -> None:
  """Raises InputError where `training`, `lora`, `optim` or `moe` would not work."""
  training, shards = config["training"], run.partition.size("batch")
  if training["microbatches"] < 1:
    raise InputError(
      f"config.training.microbatches={training['microbatches']}: must be 1 or more"
    )
  if training["rows"] < 1 or training["rows"] % shards:
    raise InputError(
      f"config.training.rows={training['rows']} does not split over {shards} devices; "
      f"a multiple of {shards} is needed"
    )
  if "mtp_coef" in training:
    coef = training["mtp_coef"]
    if not coef >= 0 or (coef and not run.model.mtp_depth):
      raise InputError(
        f"config.training.mtp_coef={coef!r}: must be 0 or more, and 0 for a model "
        f"without a module that predicts one token further ({run.model.name!r} has "
        f"{run.model.mtp_depth})"
      )
  Trainable.of(run, config).check(config)
  experts.check(run.model, **config["moe"])


def take(rows: Any, index: Sequence[int], *, microbatches: int, size: int) -> Any:
  """[M, B, ...] of some rows, filled up with empty ones.

  Args:
    rows: pytree of numpy arrays [N, ...], in which 0 is padding.
    index: M * B of their numbers at most.
    microbatches, size: M and B.
  """
  index = np.asarray(index, int)

  def one(leaf: np.ndarray) -> np.ndarray:
    out = np.zeros((microbatches * size, *leaf.shape[1:]), leaf.dtype)
    out[: len(index)] = leaf[index]
    return out.reshape(microbatches, size, *leaf.shape[1:])

  return jax.tree.map(one, rows)


def sampler_of(run: Run, config: Mapping[str, Any]) -> Sampler:
  """What a stage draws with that waits for all answers, and replays no experts."""
  asks = {**config["rollout"], "oversample": 0}
  return collect.sampler_of(
    run, {**config, "rollout": asks, "moe": {**config["moe"], "replay": False}}
  )
