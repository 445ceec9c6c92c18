"""One start of the command, and what all stages do alike.

A stage takes up its last checkpoint, walks its steps, and after each of them writes
metrics, saves when that is due and stops if it has been asked to.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from r1jax import metrics
from r1jax.checkpoints import Checkpoints
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import InputError
from r1jax.models import lora, parameters
from r1jax.models.config import ModelConfig
from r1jax.sharding import Partition
from r1jax.terminal import Progress
from r1jax.watchdog import PhaseClock, Watchdog

# Beside the checkpoints of a stage: what it was made from.
SETTINGS = "settings.json"


class Stopped(Exception):
  """The run has been asked to stop, and did so with everything saved."""


@dataclasses.dataclass(frozen=True)
class Run:
  """What the command hands to every stage.

  Attributes:
    stages: names of all stages, in order.
    seed: of every draw.
    compute_dtype: of activations, and of the weights that make them.
    model_params: makes the parameters that `config.model` stands for.
    checkpoint: settings of `Checkpoints`, and `step` and `skip_damaged` of `restore`.
    on_change: what happens to a stage whose settings are not those it was run with.
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
  writer: metrics.Writer
  clock: PhaseClock
  watchdog: Watchdog
  console: Console
  checkpoint: Mapping[str, Any]
  on_change: str
  sample_every: int
  stop_asked: Callable[[], bool]

  @property
  def is_main(self) -> bool:
    return jax.process_index() == 0

  def say(self, line: str) -> None:
    self.console.print(line, markup=False, soft_wrap=True)

  def folder(self, stage: str) -> Path:
    return self.workdir / "checkpoints" / stage

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
    return params_of(
      self.folder(stage),
      model=self.model,
      partition=self.partition,
      init=self.params_of,
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


class Stage:
  """A stage on its way: checkpoints, metrics, progress, the end of each step.

  Use it as a context manager. `first_step` is known once `take_up` has been called.
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
    if self._run.is_main:
      # Those that have checkpoints go on from them, and need their lines.
      later = [
        stage
        for stage in self._run.stages[self._run.stages.index(self._name) + 1 :]
        if not Checkpoints(self._run.folder(stage)).steps()
      ]
      metrics.truncate(self._run.workdir, self._name, step, later)
    return state

  def end_step(
    self,
    step: int,
    seen: Mapping[str, Any],
    state: Any,
    *,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
  ) -> None:
    """Writes the line of a step, evaluates, saves if that is due, stops if asked to.

    Lines come before the save, so that a run which goes on from it has them all.

    Args:
      seen: the metrics of the step.
      state: what a checkpoint of this step holds.
      evaluate: where it is due, what `evaluation` is given.

    Raises:
      Stopped: the run was asked to stop; the step is saved.
    """
    run = self._run
    last = step == self._num_steps
    stop = anywhere(run.stop_asked())
    seen = {
      **seen,
      **run.clock.take(),
      "time/step_s": time.perf_counter() - self._began,
      "compile/count": self._compilations.count,
    }
    run.writer.write(step, self._name, seen)
    self._progress.step(step, seen)
    run.watchdog.beat(step)
    if evaluate is not None:
      self.evaluation(step, evaluate)
    self._began = time.perf_counter()
    with run.clock("save"), self._compilations.paused():
      self._checkpoints.save(step, state, {}, force=last or stop)
      if last or stop:
        self._checkpoints.wait()
    if stop and not last:
      raise Stopped(f"{self._name}: stopped after step {step}, which is saved")

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
