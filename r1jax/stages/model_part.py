"""The part "model" of a reward: what a scalar model of an earlier stage says.

Letters: Q prompts, G samples per prompt, B = Q * G answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.errors import InputError, one_of
from r1jax.objectives.scalar_models import AGGREGATIONS
from r1jax.stages.run import Run
from r1jax.stages.scalar_model import Verdicts
from r1jax.types import Problem

NAME = "model"


class ModelPart:
  """Adds the part to those that text alone decides.

  Args:
    config: all settings of a stage; the model's stage must be done.
  """

  def __init__(self, run: Run, config: Mapping[str, Any]):
    own = dict(config["reward"]["model"])
    stage = own.pop("stage")
    self._verdicts = Verdicts(run, stage, **own) if stage else None

  def __call__(
    self,
    parts_QG: Mapping[str, np.ndarray],
    problems: Sequence[Problem],
    completions: Sequence[Sequence[int]],
  ) -> Mapping[str, np.ndarray]:
    """The parts, with what the model says of the B completions where there is one."""
    if self._verdicts is None:
      return parts_QG
    samples = len(completions) // len(problems)
    asked = [problem for problem in problems for _ in range(samples)]
    said_B = self._verdicts(asked, completions)
    return {**parts_QG, NAME: said_B.reshape(len(problems), samples)}


def check(run: Run, config: Mapping[str, Any]) -> None:
  """Raises InputError where `reward.model` of a stage cannot be."""
  own, weights = config["reward"]["model"], config["reward"]["weights"]
  if bool(own["stage"]) != (NAME in weights):
    raise InputError(
      f"config.reward.model.stage={own['stage']!r} and config.reward.weights="
      f"{dict(weights)}: the part {NAME!r} needs both, a stage and a weight"
    )
  if not own["stage"]:
    return
  one_of(own["aggregation"], AGGREGATIONS, key="config.reward.model.aggregation")
  rollout, shards = config["rollout"], run.partition.size("batch")
  needed = rollout["prompt_length"] + rollout["max_tokens"] + 1
  if own["row_length"] < needed:
    raise InputError(
      f"config.reward.model.row_length={own['row_length']}: a prompt, its answer and "
      f"one token more may need {needed}; raise it"
    )
  if own["rows"] < 1 or own["rows"] % shards:
    raise InputError(
      f"config.reward.model.rows={own['rows']} does not split over {shards} devices; a "
      f"multiple of {shards} is needed"
    )
