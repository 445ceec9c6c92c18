"""The problems of a stage and of its evaluations, and who judges answers to them."""

from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.data import decontamination, problems
from r1jax.data import examples as worked
from r1jax.errors import InputError
from r1jax.rewards import code, endpoint, judge
from r1jax.rewards.combine import choose_parts
from r1jax.rewards.judge import JudgedPool
from r1jax.rewards.pool import RewardPool
from r1jax.stages import categories, model_part
from r1jax.stages.run import Run
from r1jax.types import Problem


def load(
  run: Run, name: str, config: Mapping[str, Any]
) -> tuple[Sequence[Problem], dict[str, Sequence[Problem]]]:
  """Problems to train on, and sets to evaluate on that share none of their text."""
  eval_sets = {
    key: problems.load_problems(**value)
    for key, value in config["eval"]["sets"].items()
  }
  train_set = problems.load_problems(**config["data"])
  said = [f"{name}: {train_set.name} {counts(train_set.counts)}"]
  said += [f"{key} {counts(value.counts)}" for key, value in eval_sets.items()]
  kept: Sequence[Problem] = train_set
  if config["decontaminate"]:
    held_out = [problem for one in eval_sets.values() for problem in one]
    kept, found = decontamination.decontaminate(
      train_set, held_out, n=config["decontaminate"]
    )
    said.append(f"decontamination dropped {found.count}")
    if not kept:
      raise InputError(
        f"all {len(train_set)} problems share {config['decontaminate']} words with an "
        f"evaluation set, for instance {found.examples[0]}; look at config.data, or "
        "raise config.decontaminate (0 is off)"
      )
  run.say("; ".join(said))
  return kept, eval_sets


def counts(counts: Mapping[str, int]) -> str:
  lost = [f"{key.replace('_', ' ')} {n}" for key, n in counts.items() if n]
  return f"({', '.join(lost)})"


def examples(run: Run, settings: Mapping[str, Any]) -> list[worked.Example]:
  """Worked examples; those of a stage must have been made.

  Args:
    settings: of `load_examples`.
  """
  own = dict(settings)
  if is_to_come(own):
    own["path"] = run.product(own["stage"])
  return worked.load_examples(**own)


def is_to_come(settings: Mapping[str, Any]) -> bool:
  """Whether examples are those of a stage, which are read when they are needed."""
  if settings["source"] != "stage":
    return False
  if not settings.get("stage"):
    raise InputError(
      "config.examples.stage is missing with source='stage': name a stage that makes "
      "examples"
    )
  return True


def reward_pool(
  config: Mapping[str, Any],
  problems: Sequence[Problem],
  *,
  needed: Sequence[str] = (),
) -> RewardPool:
  """Judges the parts with a weight, and those that every evaluation shows.

  Args:
    config: all settings of the stage.
    problems: all that are asked.
    needed: parts without which the stage can do nothing with an answer.

  Raises:
    InputError: settings of `reward` that cannot be, or that the problems need and that
      are not there.
  """
  own = config["reward"]
  categories.check_problems(config, problems, needed=needed)
  others = model_part.names(config)  # not of text
  names = dict.fromkeys([*categories.parts(config), "accuracy", "format"])
  names = [name for name in names if name not in others]
  limits = ("num_workers", "timeout_s", "batch_timeout_s", "memory_limit_mb")
  settings = {key: own[key] for key in limits}
  parts = choose_parts(
    names,
    target_language=own["language"],
    format_kind=own["format"],
    repetition_ngram=own["repetition_ngram"],
    code_settings=code.prepare(problems, timeout_s=own["timeout_s"], **own["code"]),
  )
  ask = endpoint.of_section(own["judge"])
  if ask is not None:
    return JudgedPool(parts, ask=ask, counts=ask.counts, **settings)
  judged = [problem.id for problem in problems if problem.verifier == judge.VERIFIER]
  if judged:
    raise InputError(
      f"{len(judged)} problems have the verifier {judge.VERIFIER!r}, the first is "
      f"{judged[0]!r}, and there is nobody to ask; set config.reward.judge.url, or "
      "another config.data.verifier"
    )
  return RewardPool(parts, **settings)
