"""The parts of the GRPO stage that are functions of their arguments."""

import types

import numpy as np
import pytest

from configs import common
from r1jax.errors import InputError
from r1jax.stages import grpo, learn


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


def test_groups_without_a_gold_are_not_counted():
  nan = np.nan
  seen = grpo.group_metrics(np.asarray([[1, 1], [nan, nan], [0, 1]], np.float32))
  assert seen == {"group/solved_all": 0.5, "group/solved_none": 0}
  assert grpo.group_metrics(np.asarray([[nan, nan]])) == {}


def test_the_order_of_rows_is_a_function_of_seed_stage_and_step():
  """R21."""

  def order(seed=0, name="zero", step=1, epoch=1):
    run = types.SimpleNamespace(seed=seed)
    return tuple(learn.shuffled(run, name, step, 64, epoch=epoch))

  assert sorted(order()) == list(range(64))
  assert order() == order()
  others = order(seed=1), order(name="one"), order(step=2), order(epoch=2)
  assert len({order(), *others}) == 5


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"correction_cap": -1.0}, r"config\.loss\.correction_cap=-1.0 and .*: above 0"),
    ({"correction_veto": -1.0}, r"correction_veto=-1.0: above 0, and 0 or more"),
    ({"correction": "clip"}, r"config\.loss\.correction='clip' is not known"),
    ({"correction_level": "a"}, r"config\.loss\.correction_level='a' is not known"),
    ({"surrogate": "clop"}, r"config\.loss\.surrogate='clop'.*'clip'"),
    ({"ratio": "sequences"}, r"config\.loss\.ratio='sequences'.*'sequence'"),
    ({"clip_low": None}, r"config\.loss\.clip_low=None"),
    ({"reduction": "constant"}, r"config\.loss\.length_constant=None"),
  ],
)
def test_losses_that_cannot_be_are_refused_before_they_are_traced(changes, said):
  config = common.grpo().to_dict()
  learn.check(config)
  config["loss"] |= changes
  with pytest.raises(InputError, match=said):
    learn.check(config)
