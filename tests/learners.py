"""Stages of other learners on a model that is made on the spot, run in this process."""

import contextlib
import json
import shutil
import signal
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.compilation_cache import compilation_cache

from configs import common
from r1jax import limits, report, train
from r1jax.checkpoints import Checkpoints
from r1jax.data import examples
from r1jax.data.tokenizer import train_sentencepiece
from tests import small_run

CHAINS = {"task": "op_chain", "task_args": {"min_steps": 1, "max_steps": 2}}
# What one run has compiled, the next ones find there; and the stage `base`.
_KEPT = tempfile.TemporaryDirectory()


def config(*, base=False, **stages):
  """A run of some stages, with characters and tags for tokens.

  Args:
    base: put a stage `base` before them, which has learnt the form of answers.
  """
  c = small_run.get_config()
  c.unlock()
  for name in ("base", "zero"):
    del c[name]
  if base:
    c.base = common.sft()
    c.base.num_steps = 30
    c.base.examples = answers(size=64)
    c.base.optim.learning_rate = 3e-2
    c.base.training.update({"microbatches": 2, "row_length": 32})
  c.update(stages)
  c.stages = (*(["base"] if base else []), *stages)
  c.tokenizer.path = f"{_KEPT.name}/characters.model"
  if not Path(c.tokenizer.path).exists():
    corpus = examples.load_examples("worked", size=64, think_share=0.5, **CHAINS)
    texts = [e.problem.prompt + e.completion for e in corpus]
    train_sentencepiece([*texts, "abxyz[GOOD][BAD]"], path=c.tokenizer.path)
  c.checkpoint.update({"save_every": 1, "keep": 20})
  c.log.update({"tensorboard": False, "sample_every": 0})
  return c


def answers(*, size):
  """Worked examples that are answered at once."""
  return common.worked("op_chain", size=size, think_share=0.0, **CHAINS["task_args"])


def with_base(workdir):
  """Makes a run directory in which the stage `base` is done."""
  kept = Path(_KEPT.name) / "run"
  if not kept.exists():
    c = config(base=True)
    c.checkpoint.save_every = 100
    finish(c, kept)
  shutil.copytree(kept, workdir)
  return workdir


def finish(c, workdir, *, code=0):
  """Runs a config to its end, quickly compiled; the lines of its metrics."""
  # These would take longer than the run.
  measured = limits.Machine(1, 1e9, 1e9, "measured")
  with (
    _quick(),
    mock.patch.object(limits, "machine", lambda dtype: measured),
    mock.patch.object(report, "write_report", lambda workdir: None),
  ):
    assert train.train(c, str(workdir)) == code
  return small_run.numbers(workdir)


@contextlib.contextmanager
def _quick():
  signals = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
  changes = {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": f"{_KEPT.name}/compiled",
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {key: jax.config.values[key] for key in changes}
  try:
    _configure(changes)
    yield
  finally:
    _configure(before)
    for number, handler in signals.items():
      signal.signal(number, handler)


def _configure(changes):
  for key, value in changes.items():
    jax.config.update(key, value)
  compilation_cache.reset_cache()


def stopped(workdir, copy, stage, step):
  """A copy of a run as it was when a step of a stage had been saved."""
  shutil.copytree(workdir, copy)
  for path in (copy / "checkpoints" / stage).iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)
  return copy


def arrays(workdir, stage):
  """{path: array} of the last checkpoint."""
  checkpoints = Path(workdir) / "checkpoints" / stage
  step = Checkpoints(checkpoints).latest()
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    state = reader.restore(checkpoints / str(step) / "state")
  return {path: np.asarray(x) for path, x in state.items()}


def assert_same(got, want, stage):
  """Two runs agree in the metrics and in every byte of the last checkpoint."""
  assert small_run.numbers(got) == small_run.numbers(want)
  ours, theirs = arrays(got, stage), arrays(want, stage)
  assert ours.keys() == theirs.keys()
  for path, array in ours.items():
    np.testing.assert_array_equal(array, theirs[path], err_msg=path)


def jsonl(path, records):
  path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
  return str(path)
