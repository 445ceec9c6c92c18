"""configs/comparison.py: nine algorithms under equal conditions, and a small run."""

import json
import math
import shutil

import pytest

from configs import common, comparison, quickstart
from r1jax import metrics, trees
from r1jax.compare import curves
from r1jax.errors import InputError
from r1jax.stages import setup

ALL = (*comparison.RECIPES, "expert_iteration")


@pytest.fixture(scope="module", name="stages")
def _stages():
  return setup.stage_configs(comparison.get_config().to_dict())


def drawn(stage):
  """Answers of a stage without a filter."""
  asked = stage["rollout"]["prompts"] * stage["num_steps"]
  if stage["kind"] == "expert":
    asked = stage["data"]["size"] * stage["num_steps"] // stage["round_steps"]
  return asked * stage["rollout"]["group_size"]


def test_all_stages_begin_with_the_quick_starts_base(stages):
  assert tuple(stages) == ("base", *ALL)
  base = setup.stage_configs(quickstart.get_config().to_dict())["base"]
  assert stages["base"] == base
  assert {stages[name]["init"] for name in ALL} == {"base"}


def test_all_stages_draw_the_same_number_of_answers(stages):
  assert {drawn(stages[name]) for name in ALL} == {comparison.ANSWERS}


def test_all_learn_from_the_same_and_are_measured_by_the_same(stages):
  for name in ALL:
    own, first = stages[name], stages["grpo"]
    for section, key in (
      *(("eval", key) for key in ("sets", "temperature", "samples", "max_tokens")),
      *(("rollout", key) for key in ("temperature", "max_tokens", "prompt_length")),
      ("reward", "weights"),
      ("data", "task_args"),
    ):
      assert own[section][key] == first[section][key], (name, section, key)
  assert stages["grpo"]["reward"]["weights"] == {"accuracy": 1.0, "format": 1.0}


def test_updates_are_as_many_and_as_large(stages):
  for name in comparison.RECIPES:
    own, first = (stages[key]["training"]["minibatches"] for key in (name, "grpo"))
    assert own * stages[name]["num_steps"] == first * stages["grpo"]["num_steps"]
    assert stages[name]["optim"] == stages["grpo"]["optim"]


def test_recipes_are_as_published_but_for_what_is_said(stages):
  for name, changes in comparison.RECIPES.items():
    changed = {*trees.flatten(changes), "reward/weights/accuracy"}
    changed |= {"reward/weights/format"}
    for path, value in trees.flatten(common.recipe(name).to_dict()).items():
      if path not in changed:
        section, key = path.split("/", 1)
        assert trees.flatten(stages[name][section])[key] == value, (name, path)


def test_sizes_fit_the_longest_answer(stages):
  longest = stages["grpo"]["rollout"]["max_tokens"]
  assert stages["dr_grpo"]["loss"]["length_constant"] == longest
  # DAPO: 4,096 of 20,480.
  buffer = stages["dapo"]["shaping"]["overlong_buffer"]
  assert buffer == round(longest * 4096 / 20_480)


def test_other_variants_are_refused():
  with pytest.raises(InputError, match="there are: small"):
    comparison.get_config("tiny")


@pytest.mark.slow
def test_the_whole_comparison_in_small(train, tmp_path):
  """Every algorithm runs; what is counted is what was drawn; two seeds are compared."""
  run = tmp_path / "seed0"
  process = train(f"--workdir={run}", config="configs/comparison.py:small")
  _, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors
  lines = metrics.read(run)
  for line in lines:
    assert all(math.isfinite(x) for x in line.values() if isinstance(x, float)), line
  small = setup.stage_configs(comparison.get_config("small").to_dict())
  for name in ALL:
    of_stage = [line for line in lines if line["stage"] == name]
    points = curves.curve(of_stage, small[name], "heldout")
    kept = [
      json.loads(text)
      for kind in ("train", "round")
      for path in (run / "samples" / name).glob(f"{kind}_*.jsonl")
      for text in path.read_text().splitlines()
    ]
    assert points[-1].answers == len(kept) >= drawn(small[name]) == 64
    assert points[-1].tokens == pytest.approx(sum(answer["length"] for answer in kept))

  other = shutil.copytree(run, tmp_path / "seed1")
  facts = json.loads((other / "config.json").read_text())
  facts["config"]["seed"] = 1
  (other / "config.json").write_text(json.dumps(facts))
  out = tmp_path / "out"
  compare = ("-m", "r1jax.compare")
  process = train(run, other, f"--out={out}", config=None, program=compare)
  said, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert said.startswith("Accuracy on 16 problems")
  assert {path.suffix for path in out.iterdir()} == {".md", ".json", ".png", ".svg"}
  process = train(run, run, f"--out={out}", config=None, program=compare)
  _, errors = process.communicate(timeout=120)
  assert (process.returncode, errors.count("\n")) == (2, 1)
  assert errors.startswith("error: the runs have the seeds [0, 0]")
