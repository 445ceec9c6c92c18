import json

import pytest

from r1jax import metrics
from r1jax.pages import lineage
from tests import run_directory


@pytest.fixture
def run(tmp_path):
  return run_directory.recipe(tmp_path / "run")


def stages_of(run):
  found = {}
  for line in metrics.read(run):
    found.setdefault(line["stage"], []).append(line)
  return found


def test_inputs_are_read_from_what_a_stage_was_made_from(run):
  made = lineage.read(run, list(run_directory.RECIPE))
  assert list(made) == list(run_directory.RECIPE)
  assert made["r1"].made_from == {
    "init": "sft",
    "reward.models.helpfulness.stage": "helpful",
    "reward.models.safety.stage": "safety",
  }
  assert made["distilled_1"].made_from == {
    "init": "student_1",
    "examples.stage": "sft_data",
  }
  assert made["base"].made_from == {}
  products = {name: stage.product for name, stage in made.items()}
  assert products["cold_data"] == products["pairs"] == "data"
  assert products["helpful"] == "reward model"
  assert products["r1"] == "weights"
  assert made["cold_data"].num_lines == 1612 and made["sft"].num_lines is None


def test_a_place_in_a_list_is_an_input(run):
  path = run / "checkpoints" / "r1" / "settings.json"
  settings = json.loads(path.read_text())
  settings["stages"] = ["sft", "reasoning"]
  settings["input"] |= {"stages.0": "x", "stages.1": "y", "stages.2": "z"}
  path.write_text(json.dumps(settings))
  made = lineage.read(run, list(run_directory.RECIPE))["r1"]
  assert made.made_from["stages.0"] == "sft"
  assert made.made_from["stages.1"] == "reasoning"
  assert "stages.2" not in made.made_from


def test_what_was_made_from_an_earlier_version_is_marked(run):
  made = lineage.read(run, list(run_directory.RECIPE))
  assert not any(stage.changed for stage in made.values())
  path = run / "checkpoints" / "sft" / "settings.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"num_steps": 51}))
  again = lineage.read(run, list(run_directory.RECIPE))
  assert again["sft"].digest != made["sft"].digest
  changed = {name: stage.changed for name, stage in again.items() if stage.changed}
  assert changed == dict.fromkeys(
    ("at_sft", "pairs", "helpful", "safety_pairs", "safety", "r1"), ("init",)
  )
  drawn = lineage.drawing(again, stages_of(run), "heldout")
  rows = {box.node.name: box.rows for box in drawn.boxes}
  assert "init (since changed)" in rows["r1"] and "init" in rows["distilled"]


def test_a_box_says_what_its_stage_came_to(run):
  stages = stages_of(run)
  stages["zero"] = [line for line in stages["zero"] if line["step"] <= 40]
  made = lineage.read(run, list(run_directory.RECIPE))
  drawn = lineage.drawing(made, lineage.measured(made, stages), "heldout")
  nodes = {box.node.name: box.node for box in drawn.boxes}
  assert not any(name.startswith("at_") for name in nodes)
  assert nodes["cold"].beside == "52.0\u00a0%", "of its evaluation"
  assert nodes["r1"].beside == "87.0\u00a0%" and nodes["base"].beside == ""
  digest = made["r1"].digest[:8]
  assert nodes["r1"].lines == ["grpo → weights", "60 steps", f"{digest} · 4 × 128"]
  assert nodes["zero"].lines[1] == "step 40 of 60"
  assert nodes["pairs"].lines[:2] == ["pairs → data", "1,612 lines"]
  assert nodes["distilled"].beside == "64.0\u00a0%", "the mean of three"
  assert nodes["distilled"].lines == [
    "sft → weights",
    "3 times 50 steps",
    *(f"{i}: {made[f'distilled_{i}'].digest[:8]} · 2 × 128" for i in (1, 2, 3)),
  ]


def test_the_way_of_weights_and_the_ends(run):
  made = lineage.read(run, list(run_directory.RECIPE))
  measured = lineage.measured(made, stages_of(run))
  assert lineage.ends(made, measured) == [
    "r1",
    *(f"{what}_{i}" for i in (1, 2, 3) for what in ("student_rl", "distilled")),
  ]
  assert lineage.path(made, "cold") == ["base", "cold (cold_data)"]
  assert lineage.path(made, "r1") == ["base", "sft (sft_data)", "r1"]
  assert lineage.ancestors(made, "cold") == {"base", "cold_data", "zero"}


def test_an_evaluation_stands_with_the_stage_that_it_evaluates(run):
  made = lineage.read(run, list(run_directory.RECIPE))
  lines = stages_of(run)
  lines["at_cold"][0] |= {"reward/accuracy": 1.0}
  lines["cold"][-1] |= {"eval/heldout/accuracy": 0.9, "eval/other/accuracy": 0.7}
  measured = lineage.measured(made, lines)
  evaluations = {name for name in lines if name.startswith("at_")}
  assert len(evaluations) == 5 and set(lines) - set(measured) == evaluations
  cold = measured["cold"]
  assert cold[-1]["eval/heldout/accuracy"] == 0.52
  assert not any(line.get("eval/heldout/accuracy") == 0.9 for line in cold)
  assert any(line.get("eval/other/accuracy") == 0.7 for line in cold)
  assert cold[-1]["step"] == 40 and "reward/accuracy" not in cold[-1]


def test_a_stage_ends_where_its_data_do(run):
  (run / "checkpoints" / "cold" / "ends.json").write_text("30")
  made = lineage.read(run, list(run_directory.RECIPE))
  assert made["cold"].num_steps == 30 and made["sft"].num_steps == 50


def test_repetitions_are_told_from_parts_of_one_way():
  def stage(kind, **made_from):
    return lineage.Made({"kind": kind}, made_from, (), "", None, 5)

  made = {
    "base": stage("sft"),
    "zero_1": stage("grpo", init="base"),
    "zero_2": stage("grpo", init="zero_1"),
    "student_1": stage("sft"),
    "student_2": stage("sft"),
    "own_1": stage("grpo", init="student_1"),
    "own_2": stage("grpo", init="student_2"),
    "own_3": stage("sft", init="student_2"),
  }
  assert lineage.families(made) == {
    **{name: [name] for name in ("base", "zero_1", "zero_2", "own_3")},
    "student": ["student_1", "student_2"],
    "own": ["own_1", "own_2"],
  }
  assert lineage.told(made).endswith(
    "own, 2 times: weights from student (init); own_3: weights from student (init)"
  )
