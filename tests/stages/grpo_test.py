"""The parts of the GRPO stage that are functions of their arguments."""

import types

import numpy as np
import pytest

from r1jax.stages import grpo


@pytest.mark.parametrize(
  ("accuracy", "solved_all", "solved_none"),
  [
    ([[1, 1], [0, 1], [0, 0], [0, 0]], 0.25, 0.5),
    ([[1, 1], [1, 1]], 1, 0),
    # A task may give a part of a point: neither solved nor without any success.
    ([[0.5, 0.5], [0, 0.01]], 0, 0),
  ],
)
def test_groups_without_a_signal_are_counted(accuracy, solved_all, solved_none):
  """R14."""
  seen = grpo.group_metrics(np.asarray(accuracy, np.float32))
  assert seen == {"group/solved_all": solved_all, "group/solved_none": solved_none}


def test_the_order_of_rows_is_a_function_of_seed_stage_and_step():
  """R21."""

  def order(seed=0, name="zero", step=1):
    return tuple(grpo.shuffled(types.SimpleNamespace(seed=seed), name, step, 64))

  assert sorted(order()) == list(range(64))
  assert order() == order()
  assert len({order(), order(seed=1), order(name="one"), order(step=2)}) == 4
