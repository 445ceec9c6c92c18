"""What a stage was made from: kept beside its checkpoints, compared before it runs."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from r1jax.checkpoints import Checkpoints, write_json
from r1jax.errors import InputError, one_of
from r1jax.stages.run import DATA_KINDS, SETTINGS, Run

ON_CHANGE = ("error", "rerun")
ENDS = "ends.json"  # beside the checkpoints; see `note_end`


def is_done(run: Run, stage: str, settings: Mapping[str, Any]) -> bool:
  """Whether a stage has been run to its end with these settings.

  Args:
    settings: JSON-like, all that the result of the stage depends on.

  Raises:
    InputError: it was run with others, and `run.on_change` is "error".
  """
  one_of(run.on_change, ON_CHANGE, key="config.on_change")
  makes_data = settings["kind"] in DATA_KINDS
  steps = [] if makes_data else Checkpoints(run.folder(stage)).steps()
  has_made = run.product(stage).exists() if makes_data else bool(steps)
  changed = _changed(run, stage, settings) if has_made else []
  if changed and run.on_change == "error":
    more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
    raise InputError(
      f"--workdir={run.workdir} holds stage {stage!r} of another config: "
      f"{'; '.join(changed[:4])}{more}. Choose another --workdir, set it back, or "
      f"give --config.on_change=rerun to run {stage!r} and what follows from it again"
    )
  if changed or not has_made:
    return False
  if makes_data:
    return True
  last = settings.get("num_steps", 1)  # an average is done in one
  if (ends := run.folder(stage) / ENDS).exists():
    last = min(last, json.loads(ends.read_text()))
  return _taken_up(run, run.folder(stage), steps) >= last


def note_end(run: Run, stage: str, step: int) -> None:
  """Notes the last step of a stage whose data decide it, if `num_steps` does not."""
  if run.is_main:
    write_json(run.folder(stage) / ENDS, step)


def begin(run: Run, stage: str, settings: Mapping[str, Any]) -> None:
  """Notes the settings of a stage that is about to run.

  One that was run with others loses what it made and its samples, and so starts again.
  """
  changed = _changed(run, stage, settings)
  if changed:
    run.say(f"{stage}: runs again, since {'; '.join(changed)}")
  _sync("r1jax:settings")
  if run.is_main:
    folder = _home(run, stage, settings)
    if changed:
      for old in (run.workdir / "samples" / stage, folder):
        shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
  _sync("r1jax:settings written")


def _changed(run: Run, stage: str, settings: Mapping[str, Any]) -> list[str]:
  """What differs from the settings that a stage was begun with."""
  path = _home(run, stage, settings) / SETTINGS
  if not path.exists():
    return []
  return differences(json.loads(path.read_text()), json.loads(json.dumps(settings)))


def _home(run: Run, stage: str, settings: Mapping[str, Any]) -> Path:
  if settings["kind"] in DATA_KINDS:
    return run.product(stage).parent
  return run.folder(stage)


def _taken_up(run: Run, folder: Path, steps: list[int]) -> int:
  """The step that a stage goes on from, as `run.checkpoint` asks."""
  step, skip_damaged = run.checkpoint["step"], run.checkpoint["skip_damaged"]
  if step not in steps and not skip_damaged:
    return steps[-1]
  _, _, found = Checkpoints(folder).restore(
    {"train": {"step": jax.ShapeDtypeStruct((), jnp.int32)}},
    step if step in steps else None,
    skip_damaged=skip_damaged,
    partial=True,
  )
  return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """A clause for each setting that differs, by its path.

  More steps are no difference where the learning rate does not depend on their number:
  the run is the same as far as it went.
  """
  flat = [dict(_leaves(settings)) for settings in (before, now)]
  extends = flat[1].get("optim.schedule") == "constant" and flat[1][
    "num_steps"
  ] >= flat[0].get("num_steps", 0)
  return [
    f"{key} was {flat[0].get(key)!r} and is now {flat[1].get(key)!r}"
    for key in sorted(flat[0].keys() | flat[1].keys())
    if flat[0].get(key) != flat[1].get(key) and not (extends and key == "num_steps")
  ]


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in settings.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _sync(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
