"""How many steps there are, of a set whose size is known when the stage runs."""

import json
import types

import pytest

from configs import common
from r1jax.errors import InputError
from r1jax.stages import lineage, sets, sft


@pytest.fixture(name="run")
def _run(tmp_path):
  lines = []
  return types.SimpleNamespace(
    folder=lambda stage: tmp_path, is_main=True, say=lines.append, lines=lines
  )


def config(**changes):
  s = common.sft()
  s.unlock()
  s.examples = {"source": "stage", "stage": "own"}
  s.training.update({"rows": 2, "microbatches": 2})
  s.update(changes)
  return s.to_dict()


@pytest.mark.parametrize(
  ("epochs", "num_rows", "steps"),
  [(2.0, 10, 5), (2.5, 10, 7), (0.1, 10, 1), (3.0, 4, 3)],
)
def test_epochs(run, epochs, num_rows, steps):
  found = sft.steps_of(run, "cold", config(epochs=epochs), num_rows, 4)
  assert found == steps
  assert json.loads((run.folder("cold") / lineage.ENDS).read_text()) == steps
  assert run.lines == [f"cold: {epochs:g} epochs of {num_rows} rows are {steps} steps"]


def test_num_steps_are_the_most(run):
  assert sft.steps_of(run, "cold", config(epochs=2.0, num_steps=3), 10, 4) == 3
  assert run.lines[0].endswith("are 5 steps, of which config.num_steps allows 3")


def test_without_epochs_nothing_is_noted(run):
  assert sft.steps_of(run, "cold", config(num_steps=7), 10, 4) == 7
  assert not run.lines and not (run.folder("cold") / lineage.ENDS).exists()


def test_a_step_is_on_all_rows_of_a_small_set_that_a_stage_made(run):
  assert sft.rows_of_step(run, "cold", config(), 3) == 3
  assert sft.rows_of_step(run, "cold", config(), 4) == 4
  assert len(run.lines) == 1
  # Of others the size can be looked up, and the order of rows says what is wrong.
  of_file = config(examples={"source": "jsonl", "path": "a", "stage": None})
  assert sft.rows_of_step(run, "cold", of_file, 3) == 4


def test_the_path_of_the_rate_ends_with_the_steps():
  assert sft.ends_with_steps(config())
  assert not sft.ends_with_steps(config(optim={"total_steps": 30}))


def test_examples_of_a_stage_need_its_name():
  with pytest.raises(InputError, match=r"config\.examples\.stage is missing"):
    sets.is_to_come({"source": "stage"})
  assert not sets.is_to_come({"source": "jsonl", "path": "a"})
