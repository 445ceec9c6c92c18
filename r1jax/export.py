"""A checkpoint, or a model of another format, to a Hugging Face folder.

    python -m r1jax.export --checkpoint=RUN --out=FOLDER [--dtype=bfloat16] [--step=N]
    python -m r1jax.export --model=PATH --out=FOLDER

RUN is a run directory (its last stage is taken), RUN/checkpoints/STAGE, or one of the
steps in there; the last step is taken unless one is named. PATH is a .gguf file, a
Hugging Face folder or hf://org/name. The folder has weights, config, tokenizer and
generation config, and export.json, which says what it was made from; transformers, vLLM
and this program load it. Exit codes: 0 done, 2 bad input.
"""

import dataclasses
import errno
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from rich.console import Console

from r1jax import sharding, terminal, train
from r1jax.checkpoints import Checkpoints, write_json
from r1jax.data.tokenizer import Tokenizer, load_tokenizer
from r1jax.errors import InputError, one_of, refuse
from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.sharding import SAMPLE_RULES, TRAIN_RULES, Partition
from r1jax.stages import run, setup
from r1jax.weights import hf, paths

MARK = "export.json"
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclasses.dataclass(frozen=True)
class Source:
  """What is exported.

  Attributes:
    made_from: {name: value} of it, for people and for `MARK`.
    load: makes the parameters, float32.
  """

  made_from: Mapping[str, Any]
  model: ModelConfig
  tokenizer: Tokenizer
  load: Callable[[], Any]


def of_model(path: str) -> Source:
  """A .gguf file, a Hugging Face folder or hf://org/name."""
  local = paths.local_path(path)
  model = paths.read_config(local)
  shardings = _partition(model).of_specs(parameters.param_specs(model))
  return Source(
    {"model": path},
    model,
    load_tokenizer(local),
    lambda: paths.load_model(local, dtype=jnp.float32, shardings=shardings)[1],
  )


def of_checkpoint(path: str, step: int | None) -> Source:
  """A checkpoint of a run.

  Raises:
    InputError: no run, no stage, no such step.
  """
  workdir, stage, named = _place(Path(path))
  if named is not None and step not in (None, named):
    raise InputError(f"--step={step}, and --checkpoint={path} is step {named}")
  config = _config_of(workdir)
  stages = setup.stage_sections(config)
  if stage is None:
    done = [
      name
      for name, settings in stages.items()
      if settings["kind"] != "reward_model" and _steps(workdir, name)
    ]
    if not done:
      raise InputError(
        f"--checkpoint={path} has no checkpoints yet; the stages of the run are "
        f"{', '.join(stages)}"
      )
    stage = done[-1]
  one_of(stage, stages, key=f"--checkpoint={path}: stage")
  steps, step = _steps(workdir, stage), named if step is None else step
  if not steps or step not in (None, *steps):
    raise InputError(
      f"--step={step}: stage {stage!r} has no such checkpoint; there are: "
      f"{', '.join(map(str, steps)) or 'none'}"
    )
  config = {**config, **setup.of_stage(config, stage)}
  tokenizer = _tokenizer(config, workdir, stage)
  model, _ = setup.make_model(config, tokenizer, sharding.single_device())
  partition = _partition(model)
  _, make = setup.make_model(config, tokenizer, partition)

  def load(name: str = stage, at: int | None = step) -> Any:
    if not name:
      return make()
    if stages[name]["kind"] == "reward_model":
      raise InputError(
        f"--checkpoint={path}: stage {name!r} has made a model with a scalar head, "
        "which says nothing; name another stage"
      )
    return run.params_of(
      _folder(workdir, name),
      model=model,
      partition=partition,
      init=lambda before: load(before, None),
      step=at,
    )

  made_from = {
    "checkpoint": str(workdir),
    "stage": stage,
    "step": steps[-1] if step is None else step,
  }
  return Source(made_from, model, tokenizer, load)


def _place(path: Path) -> tuple[Path, str | None, int | None]:
  """(run directory, stage, step) of a path into a run directory."""
  path = path.resolve()
  if not path.is_dir():
    raise InputError(f"--checkpoint={path} is not a folder; name the folder of a run")
  if path.name.isdigit() and path.parents[1].name == "checkpoints":
    return path.parents[2], path.parent.name, int(path.name)
  if path.parent.name == "checkpoints":
    return path.parents[1], path.name, None
  if path.name == "checkpoints":
    return path.parent, None, None
  return path, None, None


def _config_of(workdir: Path) -> dict[str, Any]:
  path = workdir / "config.json"
  try:
    return json.loads(path.read_text(encoding="utf-8"))["config"]
  except FileNotFoundError as e:
    raise InputError(
      f"--checkpoint: {path} does not exist, so {workdir} is not the folder of a run"
    ) from e
  except (ValueError, KeyError, TypeError) as e:
    raise InputError(f"--checkpoint: {path} is not the config of a run") from e


def _tokenizer(config: Mapping[str, Any], workdir: Path, stage: str) -> Tokenizer:
  """The one that the stage was run with, of which it has kept the fingerprint."""
  settings = _folder(workdir, stage) / run.SETTINGS
  known = json.loads(settings.read_text()) if settings.exists() else {}
  if config["tokenizer"]["path"]:
    places = [config["tokenizer"]["path"]]
  elif config["model"]["path"]:
    places = [paths.local_path(config["model"]["path"])]
  else:
    places = sorted((workdir / "tokenizer").glob("*.model"))
  for path in places:
    tokenizer = load_tokenizer(path)
    if known.get("tokenizer", tokenizer.fingerprint) == tokenizer.fingerprint:
      return tokenizer
  raise InputError(
    f"stage {stage!r} was run with a vocabulary of fingerprint "
    f"{known.get('tokenizer', 'unknown')}, which is none of: "
    f"{', '.join(map(str, places)) or f'(nothing in {workdir}/tokenizer)'}"
  )


def _folder(workdir: Path, stage: str) -> Path:
  return workdir / "checkpoints" / stage


def _steps(workdir: Path, stage: str) -> list[int]:
  return Checkpoints(_folder(workdir, stage)).steps()


def _partition(model: ModelConfig) -> Partition:
  """All devices that are here, weights split over as many as divide the width."""
  shards = math.gcd(model.width, jax.device_count())
  return Partition(sharding.make_mesh({"data": -1, "fsdp": shards}), TRAIN_RULES)


def partition_by(model: ModelConfig, tp: int, rules: Any) -> Partition:
  """All devices, of which every `tp` hold a whole model.

  Raises:
    InputError: the model does not split over so many, or the devices do not.
  """
  if tp < 1 or jax.device_count() % tp:
    raise InputError(f"--tp={tp}: must divide the {jax.device_count()} devices here")
  partition = Partition(sharding.make_mesh({"data": -1, "tp": tp}), rules)
  try:
    partition.of_specs(parameters.param_specs(model))
  except InputError as e:
    raise InputError(f"--tp={tp}: {e}") from e
  return partition


def load_on(source: Source, *, dtype: str, tp: int) -> tuple[dict, Partition]:
  """Parameters for drawing, see `partition_by`.

  Args:
    dtype: "auto" is float32 on CPU and bfloat16 elsewhere.
  """
  partition = partition_by(source.model, tp, SAMPLE_RULES)
  params = jax.tree.map(
    lambda leaf, at: jax.device_put(leaf.astype(setup.compute_dtype(dtype)), at),
    source.load(),
    partition.of_specs(parameters.param_specs(source.model)),
  )
  return params, partition


def export(
  source: Source,
  out: Path,
  *,
  dtype: str,
  max_shard_gb: float,
  overwrite: bool,
  command: Sequence[str] = (),
  console: Console | None = None,
) -> None:
  """Writes the folder.

  Args:
    command: the words of the command, for `MARK`.

  Raises:
    InputError: see `_check_out`; an unknown dtype, a size that is not positive, a shape
      that no architecture has.
  """
  began = time.monotonic()
  one_of(dtype, setup.DTYPES, key="--dtype")
  if not max_shard_gb > 0:
    raise InputError(f"--max_shard_gb={max_shard_gb}: must be above 0")
  _check_out(out, overwrite)
  console = Console(highlight=False) if console is None else console
  console.print(
    terminal.pairs(
      {
        **source.made_from,
        "name": source.model.name,
        "parameters": f"{parameters.num_params(source.model):,}",
        "stored as": dtype,
        "output": out,
      }
    ),
    "",
  )
  out.mkdir(parents=True, exist_ok=True)
  made = {
    "made_from": dict(source.made_from),
    "dtype": dtype,
    "command": shlex.join(command),
    "git": train.git_commit(),
    "versions": train.versions(),
  }
  # First of all, so that what a kill leaves is known to be ours.
  write_json(out / MARK, made)
  for left in out.glob(".*.part"):
    left.unlink()
  names = hf.save_hf(
    out,
    source.model,
    source.load(),
    source.tokenizer,
    dtype=setup.DTYPES[dtype],
    max_shard_bytes=round(max_shard_gb * 1e9),
  )
  size = sum((out / name).stat().st_size for name in names)
  console.print(
    terminal.pairs(
      {
        "done in": terminal.duration(time.monotonic() - began),
        "weights": f"{terminal.num_bytes(size)} in {len(names)} file"
        + "s" * (len(names) > 1),
        "talk to it": shlex.join(["python", "-m", "r1jax.chat", f"--model={out}"]),
        "train it": f"--config.model.path={shlex.quote(str(out))}",
      }
    ),
    "",
  )


def _check_out(out: Path, overwrite: bool) -> None:
  """Raises InputError where a file is in the way that is no earlier export's."""
  if out.exists() and not out.is_dir():
    raise InputError(f"--out={out} is a file; name a folder")
  if not out.exists() or not any(out.iterdir()):
    return
  if not (out / MARK).exists():
    raise InputError(
      f"--out={out} is not empty, and no earlier export ({MARK} is not there); name "
      "another folder"
    )
  if not overwrite:
    raise InputError(
      f"--out={out} holds an earlier export; --overwrite writes over it, or name "
      "another folder"
    )


def check_flags(
  *, checkpoint: str | None, model: str | None, out: str | None, step: int | None
) -> None:
  """Raises InputError where the flags do not go together."""
  if bool(checkpoint) == bool(model):
    raise InputError("one of --checkpoint=RUN and --model=PATH is needed")
  if not out:
    raise InputError("--out=FOLDER is needed: the folder that is written")
  if model and step is not None:
    raise InputError(f"--step={step} goes with --checkpoint")


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise InputError(f"{rest[1:]} is not expected; settings are --key=value")
    names = ("checkpoint", "model", "out", "step")
    check_flags(**{name: flags.FLAGS[name].value for name in names})
  except (flags.Error, InputError) as e:
    refuse(e)
  return rest


def main(argv: Sequence[str]) -> None:
  """Exits with 2 and one line where the input is bad; see the module."""
  del argv
  given = flags.FLAGS
  if not given["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  try:
    _check_out(Path(given.out), given.overwrite)  # before the source is read
    if given.model:
      source = of_model(given.model)
    else:
      source = of_checkpoint(given.checkpoint, given.step)
    export(
      source,
      Path(given.out),
      dtype=given.dtype,
      max_shard_gb=given.max_shard_gb,
      overwrite=given.overwrite,
      command=["python", "-m", "r1jax.export", *sys.argv[1:]],
    )
  except InputError as e:
    refuse(e)
  except OSError as e:
    if e.errno not in _UNWRITABLE:
      raise
    refuse(f"cannot write to --out={given.out}: {os.strerror(e.errno)}")


if __name__ == "__main__":
  flags.DEFINE_string("checkpoint", None, "A run directory, or a part of one.")
  flags.DEFINE_string("model", None, "A model, in place of a checkpoint.")
  flags.DEFINE_string("out", None, "The folder that is written.")
  flags.DEFINE_string("dtype", "float32", "What weights are stored as.")
  flags.DEFINE_integer("step", None, "Of the checkpoint; the last by default.")
  flags.DEFINE_float(
    "max_shard_gb", hf.MAX_SHARD_BYTES / 1e9, "Of the weights in one file, GB."
  )
  flags.DEFINE_bool("overwrite", False, "Write over an earlier export.")
  app.run(main, flags_parser=_parse_flags)
