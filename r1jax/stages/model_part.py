"""Parts of a reward that do not come from one answer's text alone.

A scalar model of an earlier stage says a part named in `config.reward.models`: several
may, each about the problems whose category weighs its part. And "majority" is 1 where
an answer agrees with most of its group, which is what stands for a right answer where
no gold is known (TTRL, arXiv 2504.16084).

Letters: Q prompts, G samples per prompt, B = Q * G answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.data.selection import majority
from r1jax.errors import InputError, nearest, one_of
from r1jax.objectives.scalar_models import AGGREGATIONS
from r1jax.rewards import votes
from r1jax.rewards.combine import PARTS
from r1jax.stages import categories
from r1jax.stages.run import Run
from r1jax.stages.scalar_model import Verdicts
from r1jax.types import Problem

MAJORITY = "majority"
_SETTINGS = {"stage", "rows", "row_length", "aggregation"}
# Names of metrics that are no part.
_TAKEN = (*PARTS, MAJORITY, "total", "shaping")


def names(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Those of these parts that a stage's reward has."""
  # An evaluation asks no model.
  models = config["reward"].get("models", ())
  weighed = categories.parts(config)
  return (*models, *([MAJORITY] if MAJORITY in weighed else []))


class Steps(NamedTuple):
  """Of each of some answers.

  Attributes:
    rewards: float [K] of its steps.
    ends: the token that ends each.
  """

  rewards: Sequence[np.ndarray]
  ends: Sequence[Sequence[int]]


class ModelParts:
  """Adds these parts to those that text alone decides.

  Args:
    config: all settings of a stage; the models' stages must be done.
  """

  def __init__(self, run: Run, config: Mapping[str, Any]):
    self._run, self._config = run, config
    self._verdicts = {
      part: Verdicts(run, **settings)
      for part, settings in config["reward"]["models"].items()
    }

  def __call__(
    self,
    parts_QG: Mapping[str, np.ndarray],
    problems: Sequence[Problem],
    completions: Sequence[Sequence[int]],
  ) -> Mapping[str, np.ndarray]:
    """The parts, and these of the B completions; NaN where a problem lacks one."""
    return self.with_steps("", parts_QG, problems, completions)[0]

  def with_steps(
    self,
    steps_of: str,
    parts_QG: Mapping[str, np.ndarray],
    problems: Sequence[Problem],
    completions: Sequence[Sequence[int]],
  ) -> tuple[Mapping[str, np.ndarray], Steps | None]:
    """(the same, and the steps of each completion, where a part is named that a model
    of steps says of every problem)."""
    samples = len(completions) // len(problems)
    weights = categories.weights(self._config, problems)
    added, steps = {}, None
    for part in names(self._config):
      added[part] = np.full((len(problems), samples), np.nan, np.float32)
      chosen = [q for q, own in enumerate(weights) if part in own]
      if not chosen:
        continue
      groups = [completions[q * samples : (q + 1) * samples] for q in chosen]
      if part == MAJORITY:
        said = [
          self._votes(problems[q], own) for q, own in zip(chosen, groups, strict=True)
        ]
      else:
        asked = [problems[q] for q in chosen for _ in range(samples)]
        answers, verdicts = [ids for own in groups for ids in own], self._verdicts[part]
        if part == steps_of:
          steps = Steps(*verdicts.steps(asked, answers))
          said = verdicts.aggregated(steps.rewards)
        else:
          said = verdicts(asked, answers)
      added[part][chosen] = np.reshape(said, (-1, samples))
    return {**parts_QG, **added}, steps

  def _votes(
    self, problem: Problem, completions: Sequence[Sequence[int]]
  ) -> np.ndarray:
    decode = self._run.tokenizer.decode
    return agreement(problem, [decode(ids, skip_special=True) for ids in completions])


def agreement(problem: Problem, texts: Sequence[str]) -> np.ndarray:
  """1 where a text has the most frequent answer of all G, float32 [G].

  A text without an answer has 0; of several answers that are as frequent it is the one
  seen first, see `selection.majority`. The gold answer is not read.
  """
  record = {"verifier": problem.verifier, "meta": problem.meta}
  voted = [votes.vote(text, record) for text in texts]
  keys = [one and one[0] for one in voted]
  most, _ = majority(keys)
  return np.asarray([key is not None and key == most for key in keys], np.float32)


def check(run: Run, config: Mapping[str, Any]) -> None:
  """Raises InputError where what decides on rewards cannot be."""
  categories.check(config)
  models = config["reward"]["models"]
  for key, weights in categories.all_weights(config).items():
    known = [*PARTS, *models, MAJORITY]
    for part in weights:
      if part not in known:
        raise InputError(
          f"{key} has {part!r}{nearest(part, known)}; allowed are {', '.join(known)}, "
          "and what config.reward.models names"
        )
  rollout, shards = config["rollout"], run.partition.size("batch")
  if MAJORITY in names(config) and rollout["group_size"] < 2:
    raise InputError(
      f"config.rollout.group_size={rollout['group_size']}: the part {MAJORITY!r} needs "
      "several answers to agree"
    )
  needed = rollout["prompt_length"] + rollout["max_tokens"] + 1
  for part, own in models.items():
    where = f"config.reward.models.{part}"
    if part in _TAKEN or "/" in part:
      raise InputError(
        f"{where}: {part!r} is the name of something else; choose another"
      )
    if not isinstance(own, Mapping) or set(own) != _SETTINGS:
      raise InputError(f"{where}={own!r}: needed are {', '.join(sorted(_SETTINGS))}")
    if not own["stage"]:
      raise InputError(f"{where}.stage='': name a stage of the kind 'reward_model'")
    if part not in categories.parts(config):
      raise InputError(
        f"{where} has no weight: add {part!r} to config.reward.weights, or to those of "
        "a category in config.reward.categories"
      )
    one_of(own["aggregation"], AGGREGATIONS, key=f"{where}.aggregation")
    if own["row_length"] < needed:
      raise InputError(
        f"{where}.row_length={own['row_length']}: a prompt, its answer and one token "
        f"more may need {needed}; raise it"
      )
    if own["rows"] < 1 or own["rows"] % shards:
      raise InputError(
        f"{where}.rows={own['rows']} does not split over {shards} devices; a multiple "
        f"of {shards} is needed"
      )
