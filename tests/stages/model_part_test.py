"""Parts of a reward that models of earlier stages, or a group's majority, say."""

import json
import re
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from r1jax.errors import InputError
from r1jax.stages import model_part, setup
from r1jax.stages.model_part import ModelParts
from r1jax.types import Problem
from tests import learners, small_run

ONE_DEVICE = types.SimpleNamespace(partition=types.SimpleNamespace(size=lambda _: 1))


def judge(folder, name, lines, **changes):
  """A stage that learns from a few lines."""
  s = common.reward_model()
  s.num_steps = 4
  s.data.path = learners.jsonl(folder / f"{name}.jsonl", lines)
  s.data.update({"held_out": 0.25, "balance_lengths": False})
  s.training.update({"batch": 8, "rows": 2, "row_length": 32, "remat": "none"})
  s.update(changes)
  return s


def config(folder):
  """`small_run.py` as R1's last stage: reasoning by rules; of others half by a model
  of helpfulness, which prefers short answers, and half by one of safety."""
  c = small_run.get_config()
  pairs = [{"prompt": f"{i}", "chosen": "1", "rejected": "1234567"} for i in range(12)]
  safe = [
    {"prompt": f"{i}", "completion": "1" * (i % 5 + 1), "label": i % 2}
    for i in range(12)
  ]
  c.helpfulness = judge(folder, "pairs", pairs, reads="answer")
  c.safety = judge(folder, "safe", safe, objective="pointwise")
  c.stages = ("base", "helpfulness", "safety", "zero")
  c.zero.num_steps = 2
  c.zero.rollout.prompts = 4
  of = {"maths": c.zero.data}
  for category, part in (("helpful", "helpfulness"), ("harmless", "safety")):
    of[category] = small_run.chains(category, size=8)
    of[category].update({"verifier": "none", "task_args": c.zero.data.task_args})
    c.zero.reward.models[part] = common.scalar_model(part)
    c.zero.reward.models[part].update({"rows": 2, "row_length": 40})
    c.zero.reward.categories[category] = {"weights": {part: 0.5, "format": 1.0}}
  c.zero.data = ConfigDict({"source": "mixture", "of": of})
  c.zero.reward.weights.language = 1.0
  return c


def test_settings_are_those_of_the_recipe(tmp_path):
  stages = setup.stage_configs(config(tmp_path).to_dict())
  model_part.check(ONE_DEVICE, stages["zero"])
  found = setup.inputs(stages["zero"])
  assert found == {
    "init": "base",
    "reward.models.helpfulness.stage": "helpfulness",
    "reward.models.safety.stage": "safety",
  }


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    ("models.safety.stage", "", r"models\.safety\.stage='': name a stage"),
    ("models.safety.rows", 0, r"models\.safety\.rows=0"),
    ("models.safety.row_length", 32, r"safety\.row_length=32.*need 33"),
    ("models.safety.aggregation", "mean", r"models\.safety\.aggregation='mean'"),
    ("models.safety", {"stage": "safety"}, r"models\.safety=.*needed are aggregation"),
    ("models.format", {}, r"models\.format: 'format' is the name of something else"),
    ("models.other", {}, r"models\.other=\{\}: needed are"),
    ("categories.harmless.weights", {"format": 1.0}, r"models\.safety has no weight"),
    ("weights", {"safty": 1.0}, r"config\.reward\.weights has 'safty' .*'safety'"),
    (
      "categories.harmless.weights",
      {"saftey": 1.0},
      r"config\.reward\.categories\.harmless\.weights has 'saftey'.*'safety'",
    ),
  ],
)
def test_what_cannot_be_is_refused(tmp_path, path, value, said):
  zero = config(tmp_path).zero.to_dict()
  own = zero["reward"]
  *sections, key = path.split(".")
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
  c = config(tmp_path)
  c.zero.reward.models.safety.stage = stage
  with pytest.raises(InputError, match=said):
    setup.stage_configs(c.to_dict())


def problem(name, category):
  return Problem(name, "", "", "none", meta={"category": category})


def parts_of(zero, **verdicts):
  """Without models of their own."""
  made = ModelParts.__new__(ModelParts)
  decode = types.SimpleNamespace(decode=lambda ids, skip_special: ids)
  made._run, made._config = types.SimpleNamespace(tokenizer=decode), zero
  made._verdicts = verdicts
  return made


def test_a_model_is_asked_about_the_problems_that_weigh_its_part(tmp_path):
  asked = {}

  def said_by(name, points):
    def say(problems, ids):
      asked[name] = [problem.id for problem in problems]
      own = zip(problems, ids, strict=True)
      return np.asarray([points * int(p.id) + len(one) for p, one in own])

    return say

  made = parts_of(
    config(tmp_path).zero.to_dict(),
    helpfulness=said_by("helpfulness", 10),
    safety=said_by("safety", 100),
  )
  names = ("helpful", "maths", "harmless", "helpful")
  problems = [problem(f"{q}", name) for q, name in enumerate(names, start=1)]
  ids = [[1], [1, 1], [], [1], [1, 1, 1], [1], [], [1]]
  given = {"format": np.ones((4, 2))}
  parts = made(given, problems, ids)
  nothing = [np.nan, np.nan]
  np.testing.assert_array_equal(
    parts["helpfulness"], [[11, 12], nothing, nothing, [40, 41]]
  )
  np.testing.assert_array_equal(
    parts["safety"], [nothing, nothing, [303, 301], nothing]
  )
  assert asked == {"helpfulness": ["1", "1", "4", "4"], "safety": ["3", "3"]}
  assert parts["format"] is given["format"] and len(given) == 1
  # Where no problem of a step weighs a part its model is not asked.
  asked.clear()
  parts = made(given, problems[1:2], ids[:2])
  assert not asked and np.isnan(parts["safety"]).all()


def test_without_models_nothing_is_added():
  made = ModelParts(None, common.grpo().to_dict())
  given = {"accuracy": np.ones((1, 1))}
  assert made(given, [problem("p", "")], [[1]]) == given


def test_the_answer_that_most_of_a_group_give_is_taken_for_right():
  """TTRL: of 7, 7.0, 8, 7 and none three agree."""
  zero = common.grpo().to_dict()
  zero["reward"]["weights"] = {"majority": 1.0}
  texts = [f"<answer>{one}</answer>" for one in ("7", "7.0", "8", "7")] + [""]
  texts += ["", "", "", "<answer>b</answer>", "<answer>a</answer>"]
  parts = parts_of(zero)({}, [problem("p", ""), problem("q", "")], texts)
  np.testing.assert_array_equal(parts["majority"], [[1, 1, 0, 1, 0], [0, 0, 0, 1, 0]])
  zero["rollout"]["group_size"] = 1
  with pytest.raises(InputError, match=r"group_size=1: the part 'majority' needs"):
    model_part.check(ONE_DEVICE, zero)


@pytest.mark.slow
def test_a_step_has_categories_and_models(tmp_path):
  c = config(tmp_path)
  c.zero.reward.weights.majority = 0.25
  lines = learners.finish(c, tmp_path / "run")
  steps = [line for line in lines if "loss/policy" in line]
  assert len(steps) == 2
  files = sorted((tmp_path / "run" / "samples" / "zero").glob("train_*.jsonl"))
  samples = [json.loads(line) for own in files for line in own.read_text().splitlines()]
  wanted = {
    "maths": {"accuracy": 1.0, "format": 1.0, "language": 1.0, "majority": 0.25},
    "helpful": {"helpfulness": 0.5, "format": 1.0},
    "harmless": {"safety": 0.5, "format": 1.0},
  }
  parts = {"total": [], "helpfulness": [], "safety": [], "accuracy": []}
  met = set()
  for line in samples:
    category = line["problem_id"].split("/")[0]
    met.add(category)
    own = wanted[category]
    total = sum(weight * line["reward"][part] for part, weight in own.items())
    np.testing.assert_allclose(line["reward"]["total"], total, rtol=1e-5, atol=1e-6)
    for part, found in parts.items():
      if part in line["reward"]:
        found.append(line["reward"][part])
        assert part == "total" or part in own
  assert met == set(wanted)
  for step in steps:
    names = [key.split("/")[1] for key in step if re.fullmatch("reward/.*/total", key)]
    assert set(names) <= met
  # 4 groups of 4 in each of two steps.
  assert len(parts["total"]) == 32
  total = np.mean([step["reward/total"] for step in steps])
  np.testing.assert_allclose(total, np.mean(parts["total"]), rtol=1e-5)
  for part in ("helpfulness", "safety"):
    assert any(f"reward/{part}" in step for step in steps)
    assert np.std(parts[part]) > 0


@pytest.mark.slow
def test_a_model_of_steps_supervises_them(tmp_path):
  """Process supervision: tokens of an answer have advantages of their own."""
  c = small_run.get_config()
  lines = [
    {"prompt": f"{i}", "completion": "1\n23\n4", "labels": [1, i % 2, 0]}
    for i in range(12)
  ]
  c.steps = judge(tmp_path, "steps", lines, objective="process")
  c.stages = ("base", "steps", "zero")
  c.zero.num_steps = 2
  c.zero.advantage.update({"estimator": "process", "steps": "quality"})
  c.zero.reward.models.quality = common.scalar_model("steps")
  c.zero.reward.models.quality.update({"rows": 2, "row_length": 40})
  c.zero.reward.weights.quality = 1.0
  found = [
    line for line in learners.finish(c, tmp_path / "run") if "loss/policy" in line
  ]
  assert len(found) == 2
  for line in found:
    assert 0 < line["reward/quality"] < 1
    assert line["optim/grad_norm"] > 0
    total = sum(line[f"reward/{part}"] for part in ("accuracy", "format", "quality"))
    np.testing.assert_allclose(line["reward/total"], total, rtol=1e-5)
