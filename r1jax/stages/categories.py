"""What the category of a problem decides: which parts of the reward count, and how.

DeepSeek-R1's last stage (arXiv 2501.12948, supplement): rules for reasoning; for
general prompts a model of helpfulness or safety, by their data set; language for all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.errors import InputError, one_of
from r1jax.rewards.accuracy import NO_GOLD
from r1jax.types import Problem


def of(problem: Problem) -> str:
  """Its category; "" of one that no source has loaded."""
  return problem.meta.get("category", "")


def weights(
  config: Mapping[str, Any], problems: Sequence[Problem]
) -> list[Mapping[str, float]]:
  """Of the parts of a stage's reward, for each problem."""
  own = config["reward"]
  return [
    own["categories"][of(problem)]["weights"]
    if of(problem) in own["categories"]
    else own["weights"]
    for problem in problems
  ]


def all_weights(config: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
  """Every set of weights, by its key in the config."""
  own = config["reward"]
  return {"config.reward.weights": own["weights"]} | {
    f"config.reward.categories.{category}.weights": settings["weights"]
    for category, settings in own["categories"].items()
  }


def parts(config: Mapping[str, Any]) -> list[str]:
  """The parts that some category weighs."""
  return list(
    dict.fromkeys(name for own in all_weights(config).values() for name in own)
  )


def with_parts(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
  """Settings in which these parts are judged whatever a problem's category is.

  Those that a category does not weigh get the weight 0 there.
  """
  more, own = dict.fromkeys(names, 0.0), config["reward"]
  changed = {
    "weights": more | dict(own["weights"]),
    "categories": {
      category: {"weights": more | dict(settings["weights"])}
      for category, settings in own["categories"].items()
    },
  }
  return {**config, "reward": {**own, **changed}}


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where `reward.categories` has not the form that it needs."""
  for category, settings in config["reward"]["categories"].items():
    if not isinstance(settings, Mapping) or set(settings) != {"weights"}:
      raise InputError(
        f"config.reward.categories.{category}={settings!r}: needed is "
        '{"weights": {part: weight, ...}}'
      )


def check_problems(
  config: Mapping[str, Any],
  problems: Sequence[Problem],
  *,
  needed: Sequence[str] = (),
) -> None:
  """Raises InputError where categories and problems do not go together.

  Args:
    problems: all that are asked.
    needed: parts without which the stage can do nothing with an answer.
  """
  there = {of(problem) for problem in problems}
  for category in config["reward"]["categories"]:
    one_of(category, there, key="a category in config.reward.categories")
  for problem, own in zip(problems, weights(config, problems), strict=True):
    if problem.verifier != NO_GOLD:
      continue
    if own.get("accuracy", 0.0) or "accuracy" in needed:
      why = "weighs" if own.get("accuracy", 0.0) else "of this stage needs"
      raise InputError(
        f"problem {problem.id!r} of the category {of(problem)!r} has the verifier "
        f"{NO_GOLD!r}, and so no part 'accuracy', which config.reward {why}; give the "
        f"category weights of its own in config.reward.categories.{of(problem)}, or "
        "leave such problems out of config.data"
      )


def means(parts_QG: Mapping[str, np.ndarray]) -> dict[str, float]:
  """`reward/<part>`: of each part the mean over the answers that have it.

  A part that no answer has is left out.
  """
  found = {name: part[~np.isnan(part)] for name, part in parts_QG.items()}
  return {f"reward/{name}": part.mean() for name, part in found.items() if part.size}


def totals(problems: Sequence[Problem], total_QG: np.ndarray) -> dict[str, float]:
  """`reward/<category>/total`: the mean over the answers of each category."""
  found: dict[str, list[np.ndarray]] = {}
  for problem, total_G in zip(problems, total_QG, strict=True):
    found.setdefault(of(problem), []).append(total_G)
  return {f"reward/{name}/total": np.mean(own) for name, own in found.items()}
