"""A scalar model of an earlier stage as a part of the reward."""

import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from r1jax.errors import InputError
from r1jax.stages import model_part, setup
from r1jax.stages.model_part import ModelPart
from r1jax.stages.run import Run
from r1jax.types import Problem
from tests import learners, small_run

ONE_DEVICE = types.SimpleNamespace(partition=types.SimpleNamespace(size=lambda _: 1))


def with_judge(folder):
  """`small_run.py` with a stage that learns to prefer short answers."""
  c = small_run.get_config()
  judge = common.reward_model()
  judge.num_steps = 4
  judge.data.path = learners.jsonl(
    folder / "pairs.jsonl",
    [{"prompt": f"{i}", "chosen": "1", "rejected": "1234567"} for i in range(12)],
  )
  judge.data.held_out = 0.25
  judge.data.balance_lengths = False
  judge.training.update({"batch": 8, "rows": 2, "row_length": 32, "remat": "none"})
  c.judge = judge
  c.stages = ("base", "judge", "zero")
  c.zero.num_steps = 2
  c.zero.reward.model.update({"stage": "judge", "rows": 2, "row_length": 40})
  c.zero.reward.weights = ConfigDict({"accuracy": 1.0, "model": 0.5})
  return c


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"reward.model.stage": ""}, "config.reward.model.stage=''.*needs both"),
    ({"reward.weights": {"accuracy": 1.0}}, "needs both"),
    ({"reward.model.row_length": 32}, "config.reward.model.row_length=32.*need 33"),
    ({"reward.model.aggregation": "mean"}, "config.reward.model.aggregation"),
    ({"reward.model.rows": 0}, "config.reward.model.rows=0"),
  ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, said):
  zero = with_judge(tmp_path).zero.to_dict()
  for path, value in changes.items():
    *sections, key = path.split(".")
    own = zero
    for section in sections:
      own = own[section]
    own[key] = value
  with pytest.raises(InputError, match=said):
    model_part.check(ONE_DEVICE, zero)


@pytest.mark.parametrize(
  ("stage", "said"),
  [("zero", "must be '' or a stage before it"), ("base", "of the kind 'sft'")],
)
def test_only_an_earlier_reward_model_can_judge(tmp_path, stage, said):
  c = with_judge(tmp_path)
  c.zero.reward.model.stage = stage
  with pytest.raises(InputError, match=said):
    setup.stage_configs(c.to_dict())


def test_every_answer_is_asked_with_its_own_problem():
  part = ModelPart.__new__(ModelPart)
  part._verdicts = lambda problems, ids: np.asarray(
    [10 * int(p.id) + len(own) for p, own in zip(problems, ids, strict=True)]
  )
  problems = [Problem(f"{q}", "", "", "") for q in range(2)]
  parts = part({"accuracy": np.ones((2, 2))}, problems, [[1], [1, 1], [], [1]])
  assert parts["model"].tolist() == [[1, 2], [10, 11]]
  assert parts["accuracy"].shape == (2, 2)


def test_without_a_stage_nothing_is_added():
  config = common.grpo().to_dict()
  run = Run.__new__(Run)
  parts = {"accuracy": np.ones((1, 1))}
  assert ModelPart(run, config)(parts, [], []) is parts


@pytest.mark.slow
def test_a_run_is_rewarded_by_it(tmp_path):
  lines = learners.finish(with_judge(tmp_path), tmp_path / "run")
  steps = [line for line in lines if "loss/policy" in line]
  assert len(steps) == 2
  for line in steps:
    total = line["reward/accuracy"] + 0.5 * line["reward/model"]
    np.testing.assert_allclose(line["reward/total"], total, rtol=1e-5)
    assert line["reward/model"] != 0
