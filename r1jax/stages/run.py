"""One start of the command, and what all stages do alike.

A stage takes up its last checkpoint, walks its steps, and after each of them writes
metrics, saves when that is due and stops if it has been asked to. What a step leaves to
be written is written while the devices are at the next one.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from r1jax import limits, metrics
from r1jax.checkpoints import Checkpoints
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import InputError
from r1jax.models import lora, parameters
from r1jax.models.config import ModelConfig
from r1jax.sharding import Partition
from r1jax.stages.profile import Profiler
from r1jax.terminal import Progress
from r1jax.types import Statistic
from r1jax.watchdog import PhaseClock, Watchdog

# Beside what a stage has made: what it was made from.
SETTINGS = "settings.json"
# Kinds of stages that make a file and no weights: text, for later ones to be trained
# on, or numbers.
DATA_KINDS = ("rejection", "pairs", "evaluation")


class Stopped(Exception):
  """The run has been asked to stop, and did so with everything saved."""


@dataclasses.dataclass(frozen=True)
class Run:
  """What the command hands to every stage.

  Attributes:
    stages: names of all stages, in order.
    seed: of every draw.
    model, tokenizer: of the stage that is handed this.
    compute_dtype: of its activations, and of the weights that make them.
    model_params: makes the parameters that its `config.model` stands for.
    models: for every stage these four fields; empty where all stages share them.
    checkpoint: settings of `Checkpoints`, and `step` and `skip_damaged` of `restore`.
    on_change: what happens to a stage whose settings are not those it was run with.
    profile_steps: those of every stage that are traced.
    sample_every: steps between two samples on the terminal; 0 shows none.
    stop_asked: whether this process has been asked to stop.
  """

  workdir: Path
  stages: tuple[str, ...]
  seed: int
  model: ModelConfig
  tokenizer: Tokenizer
  partition: Partition
  compute_dtype: Any
  model_params: Callable[[], Any]
  models: Mapping[str, Mapping[str, Any]]
  writer: metrics.Writer
  clock: PhaseClock
  watchdog: Watchdog
  console: Console
  checkpoint: Mapping[str, Any]
  on_change: str
  profile_steps: tuple[int, ...]
  sample_every: int
  stop_asked: Callable[[], bool]

  @property
  def is_main(self) -> bool:
    return jax.process_index() == 0

  @functools.cached_property
  def machine(self) -> limits.Machine:
    """What its devices could do at most; see `limits.machine`."""
    return limits.machine(self.compute_dtype)

  def say(self, line: str) -> None:
    self.console.print(line, markup=False, soft_wrap=True)

  def folder(self, stage: str) -> Path:
    """Where the checkpoints of a stage are."""
    return self.workdir / "checkpoints" / stage

  def product(self, stage: str) -> Path:
    """The file that a stage of one of `DATA_KINDS` makes; it is there when all is."""
    return self.workdir / "data" / stage / "made.jsonl"

  def take_back(self, stage: str, step: int) -> None:
    """Takes the metrics back to a step of a stage, from which it goes on.

    Lines of later stages go too, but of those that have something to go on from.
    """
    if not self.is_main:
      return
    later = [
      name
      for name in self.stages[self.stages.index(stage) + 1 :]
      if not (self.product(name).exists() or Checkpoints(self.folder(name)).steps())
    ]
    metrics.truncate(self.workdir, stage, step, later)

  def of(self, stage: str) -> "Run":
    """As it is handed to a stage, which may have another model."""
    return dataclasses.replace(self, **self.models[stage]) if self.models else self

  def cast(self, params: Any) -> Any:
    """Parameters as the forward pass takes them; gradients keep the stored dtype.

    The routers' biases stay as they are: they move in steps that bfloat16 would lose.
    """
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: (
        leaf
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("moe/bias")
        else leaf.astype(self.compute_dtype)
      ),
      params,
    )

  def params_of(self, stage: str) -> Any:
    """What a finished stage made, or what `config.model` stands for if "" is named."""
    if not stage:
      return self.model_params()
    its = self.of(stage)
    return params_of(
      self.folder(stage),
      model=its.model,
      partition=self.partition,
      init=its.params_of,
    )


def params_of(
  folder: Path,
  *,
  model: ModelConfig,
  partition: Partition,
  init: Callable[[str], Any],
  step: int | None = None,
) -> Any:
  """Parameters, float32, that a stage's checkpoints stand for.

  Those of a stage with `config.lora` hold an adapter, which is merged with what the
  stage began with.

  Args:
    folder: of the stage's checkpoints.
    init: makes the parameters of the stage named, or those of `config.model` for "".
    step: of the checkpoint; None is the last.
  """
  adapter, made_from = None, folder / SETTINGS
  # Without a word about it, parameters are asked for, and an adapter would not fit.
  settings = json.loads(made_from.read_text()) if made_from.exists() else {}
  if "lora" in settings:
    adapter = lora.of_section(settings["lora"])
  specs = whole = parameters.param_specs(model)
  if adapter is not None:
    specs = lora.adapter_specs(model, adapter)
  abstract = parameters.abstract(specs, jnp.float32, partition.of_specs(specs))
  with Checkpoints(folder) as checkpoints:
    restored, _, _ = checkpoints.restore(
      {"train": {"params": abstract}}, step, partial=True
    )
  trained = restored["train"]["params"]
  if adapter is None:
    return trained
  merge = jax.jit(
    functools.partial(lora.merge, lora=adapter),
    donate_argnums=0,
    out_shardings=partition.of_specs(whole),
  )
  return merge(init(settings["init"]), trained)


@dataclasses.dataclass(frozen=True)
class _Ended:
  """A step whose programs have been started, and of which nothing is written yet."""

  step: int
  seen: Mapping[str, Any]
  statistics: Sequence[Mapping[str, Statistic]]
  work: Mapping[str, limits.Work]
  evaluate: Callable[[], Mapping[str, Any]] | None
  state: Any
  saves: bool
  compiled: int


class Stage:
  """A stage on its way: checkpoints, metrics, progress, the end of each step.

  Use it as a context manager. `first_step` is known once `take_up` has been called.

  A step ends for the host with `end_step`, before the devices are done with it. Its
  numbers are fetched by `settle`, which a stage calls once it has started programs of
  the next step: lines and checkpoint are then written while the devices compute.
  """

  def __init__(self, run: Run, name: str, *, num_steps: int):
    if num_steps < 1:
      raise InputError(f"config.num_steps={num_steps}: must be 1 or more")
    self._run = run
    self._name = name
    self._num_steps = num_steps
    self._restoring = {
      key: run.checkpoint[key]
      for key in ("step", "skip_damaged")
      if run.checkpoint.get(key) is not None
    }
    self._checkpoints = Checkpoints(
      run.folder(name),
      **{k: v for k, v in run.checkpoint.items() if k not in ("step", "skip_damaged")},
    )
    self._progress = Progress(name, num_steps, console=run.console)
    self._compilations = Compilations()
    self._profiler = Profiler(run.workdir / "profile" / name, run.profile_steps)
    self._ended: _Ended | None = None
    self.first_step = 1

  def __enter__(self) -> "Stage":
    self._open = contextlib.ExitStack()
    self._open.enter_context(self._compilations)
    self._open.enter_context(self._checkpoints)
    self._open.enter_context(self._progress)
    return self

  def __exit__(self, *reason: object) -> None:
    self._open.__exit__(*reason)

  def take_up(self, abstract: Any) -> Any | None:
    """The state of the last checkpoint, or None where there is none."""
    state, step = None, -1
    if self._checkpoints.steps():
      state, _, step = self._checkpoints.restore(abstract, **self._restoring)
      self._run.say(f"{self._name}: goes on from step {step}")
    self.first_step = max(step, 0) + 1
    self._began = time.perf_counter()
    self._run.take_back(self._name, step)
    return state

  def steps(self) -> Iterator[int]:
    """The numbers of the steps that are left."""
    for step in range(self.first_step, self._num_steps + 1):
      if self._profiler.is_asked(step):
        self.settle()
        self._profiler.begin(step)
      yield step

  def end_step(
    self,
    step: int,
    seen: Mapping[str, Any],
    state: Any,
    *,
    statistics: Sequence[Mapping[str, Statistic]] = (),
    work: Mapping[str, limits.Work],
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    is_donated: bool = True,
  ) -> None:
    """Leaves the step for `settle`, or settles it, where there is no time for more.

    There is none where the run is over or to be stopped, an evaluation is due, the step
    is traced, or a save is due and the next step donates the state before `settle`.

    Args:
      seen: metrics of the step, numbers or arrays of one.
      state: what a checkpoint of this step holds.
      statistics: more metrics, merged over those of the same name.
      work: by phase, what its speed is computed from.
      evaluate: where it is due, what `evaluation` is given.
      is_donated: whether the stage donates the state before it calls `settle`.

    Raises:
      Stopped: the run was asked to stop; the step is saved.
    """
    self.settle()
    last = step == self._num_steps
    stop = anywhere(self._run.stop_asked())
    saves = last or stop or self._checkpoints.is_due(step)
    self._ended = _Ended(
      step,
      seen,
      statistics,
      work,
      evaluate,
      state if saves else None,
      saves,
      compiled=self._compilations.count,
    )
    if self._profiler.is_asked(step):
      with self._run.clock("update"):
        jax.block_until_ready((state, seen, statistics))
      self._run.say(f"{self._name}: {self._profiler.end()}")
    elif not (last or stop or evaluate is not None or (saves and is_donated)):
      return
    self._settle(self._run.clock("save"))
    if last or stop:
      with self._run.clock("save"):
        self._checkpoints.wait()
    if stop and not last:
      raise Stopped(f"{self._name}: stopped after step {step}, which is saved")

  def settle(self) -> None:
    """Writes what the step before has left, in the phase that the stage is in.

    To be called once programs of the next step have been started. Waiting for the step
    before counts for its update.
    """
    if self._ended is not None:
      self._settle(self._run.watchdog.phase("save"))

  def _settle(self, saving: contextlib.AbstractContextManager) -> None:
    """Fetches numbers, writes the line, evaluates, saves.

    Lines come before the save, so that a run which goes on from it has them all.
    """
    run, ended, self._ended = self._run, self._ended, None
    with run.clock("update", shown="update on the devices"):
      seen, statistics = jax.device_get((dict(ended.seen), list(ended.statistics)))
    now, times = time.perf_counter(), run.clock.take()
    merged: dict[str, Statistic] = {}
    for more in statistics:
      for key, value in more.items():
        merged[key] = merged[key].merge(value) if key in merged else value
    line = {
      **seen,
      **{key: value.value() for key, value in merged.items()},
      **self._speeds(ended.work, times),
      **times,
      "time/step_s": now - self._began,
      "compile/count": ended.compiled,
    }
    self._began = now
    run.writer.write(ended.step, self._name, line)
    self._progress.step(ended.step, line)
    run.watchdog.beat(ended.step)
    if ended.evaluate is not None:
      self.evaluation(ended.step, ended.evaluate)
    if ended.saves:
      with saving, self._compilations.paused():
        self._checkpoints.save(ended.step, ended.state, {}, force=True)

  def _speeds(
    self, work: Mapping[str, limits.Work], times: Mapping[str, float]
  ) -> dict[str, float]:
    """Of each phase tokens per second, and what its least time is of its time."""
    machine, found = self._run.machine, {}
    for phase, (tokens, least_s) in work.items():
      seconds = times[f"time/{phase}_s"]
      found[f"{phase}/tokens_per_s"] = tokens / seconds
      found[f"{phase}/tokens_per_s_per_device"] = tokens / seconds / machine.num_devices
      found[f"{phase}/share_of_limit"] = least_s / seconds
    return found

  def evaluation(self, step: int, evaluate: Callable[[], Mapping[str, Any]]) -> None:
    """Writes the line of an evaluation, with the seconds that it took."""
    run = self._run
    run.clock.take()
    with run.clock("eval"):
      seen = evaluate()
    run.writer.write(step, self._name, {**seen, **run.clock.take()})
    self._progress.evaluation(step, seen)
    self._began = time.perf_counter()

  def sample(self, step: int, record: Mapping[str, Any]) -> None:
    """Shows a rollout on the terminal, every so many steps."""
    every = self._run.sample_every
    if every and step % every == 0:
      self._progress.sample(record)


class Compilations:
  """Counts the programs that XLA compiles while it is open.

  Pauses leave out those of a library that has its own, as orbax has to copy arrays.
  """

  _EVENT = "/jax/core/compile/backend_compile_duration"

  def __init__(self):
    self.count = 0
    self._counts = True

  def __enter__(self) -> "Compilations":
    jax.monitoring.register_event_duration_secs_listener(self._seen)
    return self

  def __exit__(self, *unused: object) -> None:
    jax.monitoring.unregister_event_duration_listener(self._seen)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    self._counts = False
    try:
      yield
    finally:
      self._counts = True

  def _seen(self, event: str, duration_s: float, **unused: Any) -> None:
    del duration_s
    if self._counts and event == self._EVENT:
      self.count += 1


def anywhere(flag: bool) -> bool:
  """Whether the flag is up in any process; all get the same answer."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
