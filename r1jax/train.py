"""Runs the stages of a config.

    python -m r1jax.train --config=configs/NAME.py --workdir=DIR [--config.key=VALUE]

The same command again continues a run that was stopped, at whatever moment. Exit codes:
0 done, 2 bad input, 130 and 143 stopped by Ctrl-C or SIGTERM with everything saved,
others failures.

On several hosts every host runs the same command with R1JAX_COORDINATOR in its
environment: "auto" where the cluster tells jax.distributed its place (TPU pods, SLURM,
Kubernetes), else HOST:PORT with R1JAX_NUM_PROCESSES and R1JAX_PROCESS_ID.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from r1jax import (
  __version__,
  checkpoints,
  metrics,
  optim,
  report,
  sharding,
  terminal,
  trees,
)
from r1jax.command import parse_flags
from r1jax.errors import InputError, refuse
from r1jax.models import parameters
from r1jax.sharding import TRAIN_RULES, Partition
from r1jax.stages import reference, setup
from r1jax.stages.critic import Critic
from r1jax.stages.lineage import begin, is_done
from r1jax.stages.run import Run, Stopped
from r1jax.stages.trainable import Trainable
from r1jax.training import state as states
from r1jax.watchdog import PhaseClock, Watchdog

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class StopSignal:
  """Remembers the first SIGTERM or Ctrl-C; a second Ctrl-C ends the process at once."""

  def __init__(self):
    self.number: int | None = None

  def __call__(self) -> bool:
    return self.number is not None

  def install(self) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._seen)

  def _seen(self, number: int, frame: object) -> None:
    del frame
    if self.number is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    if self.number is None:
      print(
        f"{signal.Signals(number).name}: stops after this step and saves",
        file=sys.stderr,
        flush=True,
      )
    self.number = number


def train(
  config: ConfigDict,
  workdir: str,
  *,
  config_path: str = "",
  command: Sequence[str] = (),
) -> int:
  """Runs what is left to run of a config in a run directory.

  Args:
    command: the words that continue the run, for `config.json` and the last lines.

  Returns:
    The exit code: 0, or 128 + the signal that the run was stopped by.

  Raises:
    InputError: see `main`.
  """
  began = time.monotonic()
  stop = StopSignal()
  stop.install()
  plain = config.to_dict()
  if plain["cpu_devices"]:
    jax.config.update("jax_num_cpu_devices", plain["cpu_devices"])
  _join_processes()
  is_main = jax.process_index() == 0
  console = Console(quiet=not is_main, highlight=False)
  folder = _folder(workdir)
  stages = setup.stage_configs(plain)
  partition = Partition(sharding.make_mesh(plain["mesh"]), TRAIN_RULES)
  models = _models(plain, stages, partition, folder)
  first = models[next(iter(stages))]
  _refuse_other_stages(folder, stages)
  num_params = parameters.num_params(first["model"])
  log = plain["log"]

  with contextlib.ExitStack() as opened:
    watchdog = opened.enter_context(
      Watchdog(folder if is_main else None, limit_s=log["watchdog_s"] or None)
    )
    writer = opened.enter_context(
      metrics.Writer(
        folder,
        tensorboard=log["tensorboard"],
        wandb=log["wandb"] or None,
        is_main=is_main,
      )
    )
    run = Run(
      workdir=folder,
      stages=tuple(stages),
      seed=plain["seed"],
      partition=partition,
      **first,
      models=models,
      writer=writer,
      clock=PhaseClock(watchdog),
      watchdog=watchdog,
      console=console,
      checkpoint=plain["checkpoint"],
      on_change=plain["on_change"],
      profile_steps=_profile_steps(plain, stages),
      sample_every=log["sample_every"],
      stop_asked=stop,
    )
    terminal.print_resolved(
      config_path=config_path,
      stages=run.stages,
      devices=[device.device_kind for device in jax.devices()],
      mesh=partition.mesh.shape,
      num_params=num_params,
      bytes_per_device=_bytes_per_device(run, plain, stages),
      workdir=folder,
      console=console,
    )
    setup.check_tokenizers(run, stages)
    others: dict[str, list[str]] = {}
    for name in stages:
      if run.of(name).model != run.model:
        size = parameters.num_params(run.of(name).model)
        others.setdefault(f"{size:,}", []).append(name)
    for size, named in others.items():
      run.say(f"{', '.join(named)}: a model of {size} parameters instead")
    made_from = _made_from(run, plain, stages)
    done = {name: is_done(run, name, made_from[name]) for name in stages}
    code = 0
    if is_main:
      checkpoints.write_json(
        folder / "config.json",
        {
          "config": plain,
          "command": shlex.join(command),
          "git": git_commit(),
          "versions": versions(),
          "devices": [str(device) for device in jax.devices()],
          "mesh": dict(partition.mesh.shape),
          "num_params": num_params,
        },
      )
    left = [name for name in stages if not done[name]]
    for name in stages:
      if done[name]:
        run.say(f"{name}: done before with these settings, kept")
    try:
      # All are prepared before the first is run: a mistake in the last shows at once.
      prepared = {}
      for name in left:
        with watchdog.phase("prepare"), setup.keys_of(name, plain):
          prepare, _ = setup.STAGES[stages[name]["kind"]]
          prepared[name] = prepare(run.of(name), name, stages[name])
      if left:
        run.say(str(run.machine))
      for name in left:
        begin(run, name, made_from[name])
        with watchdog.phase(name), setup.keys_of(name, plain):
          _, run_stage = setup.STAGES[stages[name]["kind"]]
          run_stage(run.of(name), name, stages[name], prepared.pop(name))
    except Stopped as e:
      run.say(f"{e}; the same command continues")
      # Another host may have been the one that was told.
      code = 128 + (stop.number or signal.SIGTERM)
    with watchdog.phase("report"):
      page = report.write_report(folder) if is_main else None
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("r1jax:end")
  terminal.closing(
    folder,
    command=command,
    seconds=time.monotonic() - began,
    is_done=code == 0,
    report=page,
    console=console,
  )
  return code


def _models(
  config: Mapping[str, Any],
  stages: Mapping[str, Mapping[str, Any]],
  partition: Partition,
  folder: Path,
) -> dict[str, dict[str, Any]]:
  """`Run.models`: of every stage what its sections `model` and `tokenizer` make."""
  made, found = {}, {}
  for name in stages:
    sections = setup.of_stage(config, name)
    key = json.dumps(sections, sort_keys=True)
    if key not in made:
      with setup.keys_of(name, config):
        tokenizer = setup.make_tokenizer(sections, stages, folder)
        model, make = setup.make_model(
          {**sections, "seed": config["seed"]}, tokenizer, partition
        )
        made[key] = {
          "model": model,
          "tokenizer": tokenizer,
          "compute_dtype": setup.compute_dtype(sections["model"]["compute_dtype"]),
          "model_params": make,
        }
    found[name] = made[key]
  return found


def _join_processes() -> None:
  """Joins the processes of a run on several hosts, if the environment names them."""
  coordinator = os.environ.get("R1JAX_COORDINATOR", "")
  if not coordinator or jax.distributed.is_initialized():
    return
  if coordinator == "auto":
    jax.distributed.initialize()
    return
  numbers = {}
  for name in ("R1JAX_NUM_PROCESSES", "R1JAX_PROCESS_ID"):
    if not os.environ.get(name, "").isdigit():
      raise InputError(
        f"{name}={os.environ.get(name, '')!r}: must be a number, since "
        f"R1JAX_COORDINATOR={coordinator!r} is set"
      )
    numbers[name] = int(os.environ[name])
  jax.distributed.initialize(coordinator, *numbers.values())


def _folder(workdir: str) -> Path:
  """The run directory, made if it is absent."""
  if "://" in workdir:
    raise InputError(
      f"--workdir={workdir}: must be a folder; mount the bucket (gcsfuse, Filestore)"
    )
  folder = Path(workdir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f"--workdir={workdir}: {e.strerror}; name another folder") from e
  return folder


def _profile_steps(
  config: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]
) -> tuple[int, ...]:
  steps = tuple(config["profile"]["steps"])
  last = max(settings.get("num_steps", 1) for settings in stages.values())
  for step in steps:
    if not isinstance(step, int) or not 1 <= step <= last:
      raise InputError(
        f"config.profile.steps={steps}: must be numbers of steps, 1 to {last}"
      )
  return steps


def _refuse_other_stages(folder: Path, stages: Mapping[str, Any]) -> None:
  others = {
    path.name for kind in ("checkpoints", "data") for path in folder.glob(f"{kind}/*")
  }
  if others := sorted(others - set(stages)):
    raise InputError(
      f"--workdir={folder} holds a run of another config, with the stages "
      f"{', '.join(others)}; this one has {', '.join(stages)}: choose another --workdir"
    )


def _made_from(
  run: Run, config: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """{stage: all that its result depends on}, its input by a digest of the same."""
  found, digests = {}, {}
  for name, settings in stages.items():
    its, path = run.of(name), setup.of_stage(config, name)["model"]["path"]
    made_of = {key: digests[stage] for key, stage in setup.inputs(settings).items()}
    found[name] = setup.depends_on(
      settings,
      {
        "seed": run.seed,
        "model": dataclasses.asdict(its.model)
        | {"compute_dtype": np.dtype(its.compute_dtype).name},
        "tokenizer": its.tokenizer.fingerprint,
        "input": made_of | {"model": trees.digest(repr(path))},
      },
    )
    digests[name] = trees.digest(json.dumps(found[name], sort_keys=True))
  return found


def _bytes_per_device(
  run: Run, config: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]
) -> int:
  """Of the largest stage: what is trained, the optimizer's state and, where it has
  them, the reference and the critic; and what is frozen."""

  def size(tree: Any) -> int:
    return sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
      if leaf.sharding.memory_kind != optim.HOST_MEMORY
    )

  largest = 0
  for name, settings in stages.items():
    if "optim" not in settings:
      continue
    its = run.of(name)
    with setup.keys_of(name, config):
      trainable = Trainable.of(its, settings)
      optimizer, _ = trainable.optimizer(settings["optim"])
      state = states.abstract_state(
        trainable.specs, optimizer, run.partition, np.float32
      )
    num_bytes = size(state)
    if settings["kind"] == "grpo":
      num_bytes += reference.is_used(settings) * size(state.params)
      if settings["advantage"]["estimator"] == "gae":
        with setup.keys_of(name, config):
          num_bytes += size(Critic(its, settings).abstract())
    if trainable.lora is not None:
      specs = parameters.param_specs(its.model)
      held = run.partition.of_specs(specs)
      num_bytes += size(parameters.abstract(specs, its.compute_dtype, held))
    largest = max(largest, num_bytes)
  return largest


def git_commit() -> str:
  """The commit of the checkout that runs, "+changes" where files differ from it."""
  where = Path(__file__).parents[1]
  try:
    commit, changes = (
      subprocess.run(
        ["git", *words], cwd=where, capture_output=True, text=True, check=True
      ).stdout.strip()
      for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
    )
  except (OSError, subprocess.CalledProcessError):
    return ""  # installed without a checkout
  return commit + ("+changes" if changes else "")


def versions() -> dict[str, str]:
  found = {name: metadata.version(name) for name in _PACKAGES}
  return {"python": platform.python_version(), "r1jax": __version__, **found}


def _check_flags() -> None:
  if not flags.FLAGS.workdir:
    raise InputError("--workdir=DIR is needed: the folder that the run writes to")


def main(argv: Sequence[str]) -> None:
  """Exits with 2 and one line where the input is bad; see the module."""
  del argv
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  try:
    code = train(
      flags.FLAGS.config,
      flags.FLAGS.workdir,
      config_path=flags.FLAGS["config"].config_filename,
      command=["python", "-m", "r1jax.train", *sys.argv[1:]],
    )
  except InputError as e:
    refuse(e)
  except OSError as e:
    if e.errno not in _UNWRITABLE:
      raise
    refuse(
      f"cannot write to --workdir={flags.FLAGS.workdir}: {e.strerror}. What is there "
      "is kept: make room (or permit writing), and the same command continues"
    )
  sys.exit(code)


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", lock_config=True)
  flags.DEFINE_string("workdir", None, "The run directory.")
  app.run(main, flags_parser=lambda argv: parse_flags(argv, _check_flags))
