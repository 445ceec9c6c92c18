"""Judged answers that a stage learns from: those of a file, or of an earlier stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.data import judged
from r1jax.errors import InputError
from r1jax.stages.run import Run


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where `data` names no source, or two."""
  path, stage = config["data"]["path"], config["data"]["stage"]
  if bool(path) == bool(stage):
    raise InputError(
      f"config.data.path={path!r} and stage={stage!r}: give one of the two"
    )


def load(
  run: Run,
  config: Mapping[str, Any],
  objective: str,
  *,
  without: Sequence[str] = (),
) -> tuple[list[judged.Judged], dict[str, int]]:
  """`judged.load_judged` of the settings `data`, some of which are not its.

  Raises:
    InputError: what it raises.
  """
  data = {key: value for key, value in config["data"].items() if key not in without}
  stage = data.pop("stage")
  if stage:
    data["path"] = run.product(stage)
  return judged.load_judged(objective=objective, **data)
