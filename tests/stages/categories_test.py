"""Weights by category, and problems without a gold answer."""

import types

import numpy as np
import pytest

from configs import common
from r1jax.errors import InputError
from r1jax.rewards.pool import RewardPool
from r1jax.stages import categories, evaluate, own_answers, sets
from r1jax.stages.rollouts import Judging, records
from r1jax.types import Problem


def problem(name, category, verifier="exact"):
  return Problem(name, name, "", verifier, meta={"category": category})


PROBLEMS = [problem("p", "maths"), problem("q", "talk", "none"), problem("r", "maths")]


def settings(**of):
  config = common.grpo().to_dict()
  config["reward"]["categories"] = {name: {"weights": own} for name, own in of.items()}
  return config


def test_a_category_has_weights_of_its_own_or_the_common_ones():
  config = settings(talk={"format": 0.5, "language": 1.0})
  common_ones = {"accuracy": 1.0, "format": 1.0}
  found = categories.weights(config, [*PROBLEMS[:2], Problem("s", "", "", "")])
  assert found == [common_ones, {"format": 0.5, "language": 1.0}, common_ones]
  assert categories.parts(config) == ["accuracy", "format", "language"]
  wider = categories.with_parts(config, ["repetition", "format"])
  assert categories.weights(wider, PROBLEMS[:2]) == [
    {"repetition": 0.0, "format": 1.0, "accuracy": 1.0},
    {"repetition": 0.0, "format": 0.5, "language": 1.0},
  ]
  assert categories.parts(config) == ["accuracy", "format", "language"]


@pytest.mark.parametrize(
  ("of", "message"),
  [
    ({"maths": {}}, r"'q'.*'talk' has the verifier 'none'.*categories\.talk"),
    ({"talk": {"accuracy": 1.0}}, r"'q'.*config\.reward weighs"),
    ({"talk": {}, "tlak": {}}, r"categories='tlak' is not known.*'talk'"),
  ],
)
def test_problems_that_do_not_go_with_categories_are_refused(of, message):
  with pytest.raises(InputError, match=message):
    sets.reward_pool(settings(**of), PROBLEMS)


def test_a_part_that_a_stage_needs_must_be_there():
  config = settings(talk={"format": 1.0})
  assert sets.reward_pool(config, PROBLEMS).names == ["accuracy", "format"]
  with pytest.raises(InputError, match=r"config\.reward of this stage needs"):
    sets.reward_pool(config, PROBLEMS, needed=["accuracy"])


def test_a_category_is_a_section_of_weights():
  config = settings()
  config["reward"]["categories"] = {"talk": {"format": 1.0}}
  with pytest.raises(InputError, match=r'categories\.talk=.*needed is \{"weights"'):
    categories.check(config)


class Pool(RewardPool):
  """Without processes: format 1, and accuracy 1 for the text "right"."""

  def _ready(self, records):
    pass

  def _judge(self, items):
    found = [{"accuracy": float(text == "right"), "format": 1.0} for text, _ in items]
    return found, {"timeouts": 0, "crashes": 0}, {}


def judged(texts):
  """[Q, G] parts of PROBLEMS."""
  pool = Pool(dict.fromkeys(("accuracy", "format")))
  judging = Judging(pool, PROBLEMS, 2)
  for q in range(len(PROBLEMS)):
    judging.add(q, texts[2 * q : 2 * q + 2])
  return judging.result()[0]


TEXTS = ["right", "wrong", "right", "hello", "right", "right"]


def test_without_a_gold_there_is_no_accuracy():
  parts = judged(TEXTS)
  nan = np.nan
  np.testing.assert_array_equal(parts["accuracy"], [[1, 0], [nan, nan], [1, 1]])
  assert parts["format"].all()
  parts["model"] = np.full((3, 2), nan)
  assert categories.means(parts) == {"reward/accuracy": 0.75, "reward/format": 1.0}
  seen = categories.totals(PROBLEMS, np.asarray([[2, 1], [0, 1], [2, 2]]))
  assert seen == {"reward/maths/total": 1.75, "reward/talk/total": 0.5}


def lines():
  """As `rollouts.records` makes them."""
  parts = judged(TEXTS)
  found = []
  for q in range(3):
    for g in range(2):
      reward = {name: own[q, g] for name, own in parts.items()}
      reward = {name: value for name, value in reward.items() if not np.isnan(value)}
      found.append({"reward": reward, "length": 3, "stop": "eos", "weights": 1})
  return found


def summary(some):
  evaluation = evaluate.Evaluation.__new__(evaluate.Evaluation)
  evaluation._samples = 2
  return dict(evaluation._summary(some))


def test_accuracy_of_an_evaluation_is_of_what_has_a_gold():
  seen = summary(lines())
  assert (seen["accuracy"], seen["format"], seen["n"]) == (0.75, 1.0, 3)
  assert seen["accuracy_low"] < 0.75 < seen["accuracy_high"]
  seen = summary(lines()[2:4])
  assert "accuracy" not in seen and (seen["format"], seen["n"]) == (1.0, 1)


def test_means_of_own_answers_are_of_those_that_have_the_part():
  # The first line may lack a part that others have.
  seen = own_answers.summary(lines()[2:])
  assert (seen["reward/accuracy"], seen["reward/format"]) == (1.0, 1.0)


def test_records_leave_out_what_a_problem_does_not_have():
  run = types.SimpleNamespace(
    tokenizer=types.SimpleNamespace(decode=lambda ids: "asked"), seed=0
  )
  rollout = types.SimpleNamespace(length_B=np.ones(6), stopped_B=np.ones(6, bool))
  found = records(
    run,
    step=1,
    stage="all",
    problems=PROBLEMS,
    prompts=[[]] * 3,
    texts=TEXTS,
    rollout=rollout,
    parts_QG=judged(TEXTS),
    total_QG=np.ones((3, 2)),
  )
  shown = [set(line["reward"]) for line in found[::2]]
  assert shown == [{"total", "accuracy", "format"}, {"total", "format"}, shown[0]]
