import json

import pytest

from r1jax import metrics
from r1jax.pages import lineage, recipe
from tests import run_directory


@pytest.fixture
def run(tmp_path):
  return run_directory.recipe(tmp_path / "run")


def stages_of(run, made):
  found = {}
  for line in metrics.read(run):
    found.setdefault(line["stage"], []).append(line)
  return lineage.measured(made, found)


def test_a_row_for_each_stage_that_was_evaluated(run):
  made = lineage.read(run, list(run_directory.RECIPE))
  heldout, longer = recipe.tables(stages_of(run, made))
  assert [table["set"] for table in (heldout, longer)] == ["heldout", "longer"]
  rows = {row["stage"]: row for row in heldout["rows"]}
  assert rows.keys() == run_directory.ACCURACY.keys()
  for stage, (*before, after) in run_directory.ACCURACY.items():
    assert rows[stage]["accuracy"] == after
    assert rows[stage]["before"] == (before[0] if before else None)
  assert rows["sft"]["language"] is None
  assert longer["rows"][0]["accuracy"] == pytest.approx(0.7 * 0.71)


def test_language_of_held_out_answers_goes_before_that_of_training():
  lines = [{"step": s, "reward/language": s / 20} for s in range(1, 21)]
  lines.append({"step": 20, "eval/h/accuracy": 0.5})
  found = recipe.result(lines, "h")
  assert found["language"] == pytest.approx((0.95 + 1.0) / 2)
  assert found["before"] is None, "there was one evaluation"
  lines[-1]["eval/h/language"] = 0.25
  assert recipe.result(lines, "h")["language"] == 0.25


def test_ends_side_by_side_with_the_best_first(run):
  made = lineage.read(run, list(run_directory.RECIPE))
  heldout, longer = recipe.compared(made, stages_of(run, made))
  assert [c["stage"] for c in heldout["columns"]] == ["r1", "distilled", "student_rl"]
  distilled = heldout["columns"][1]
  assert distilled["path"] == "student_1 → distilled_1 (sft_data)"
  assert distilled["model"] == "2 × 128"
  assert distilled["each"] == pytest.approx([0.62, 0.64, 0.66])
  # Student's t with 2 degrees: 4.303 * 0.02 / sqrt(3) = 0.0497.
  assert distilled["accuracy"] == pytest.approx(0.64)
  assert distilled["accuracy_low"] == pytest.approx(0.64 - 0.0497, abs=1e-4)
  # Differences 32, 33 and 34 points: 4.303 / sqrt(3) = 2.48.
  assert heldout["differences"] == [
    "distilled less student_rl: +33.0 points (+30.5 to +35.5)"
  ]
  assert longer["set"] == "longer"


def test_what_filters_dropped(run):
  made = lineage.read(run, list(run_directory.RECIPE))
  found = {
    stage["name"]: stage for stage in recipe.data(run, made, stages_of(run, made))
  }
  assert list(found) == ["cold_data", "sft_data", "pairs", "safety_pairs"]
  cold = found["cold_data"]
  assert [(f["reason"], f["count"]) for f in cold["dropped"]] == [
    *(("wrong", 6412), ("low language", 122), ("code blocks", 31))
  ]
  assert cold["num_dropped"] == 6565 and cold["idle"] == ["duplicates"]
  wrong = cold["dropped"][0]["examples"]
  assert len(wrong) == 2, "of five"
  assert wrong[0] == {
    "why": "accuracy 0",
    "texts": [("prompt", "2 a0 = ?"), ("completion", "<think>so</think>7")],
  }
  assert cold["categories"][1] == {"name": "general", "size": 107, "tokens": 11.5}
  assert ("answers", "8,192") in cold["counts"]
  (gap,) = found["pairs"]["dropped"][0]["examples"]
  assert gap["texts"] == [("responses", "<think>so</think>7\n—\n8")]


def test_a_long_example_is_cut(run):
  path = run / "data" / "pairs" / "dropped.jsonl"
  path.write_text(json.dumps({"filter": "small_gap", "prompt": "x" * 1000}) + "\n")
  made = lineage.read(run, list(run_directory.RECIPE))
  pairs = recipe.data(run, made, stages_of(run, made))[2]
  ((_, text),) = pairs["dropped"][0]["examples"][0]["texts"]
  assert text == "x" * 400 + " [… 600 characters more]"


def test_intervals_that_overlap_are_told():
  ends = [
    {
      "stage": name,
      "members": [name],
      "n": 50,
      "accuracy_low": low,
      "accuracy_high": low + 0.2,
    }
    for name, low in (("a", 0.65), ("b", 0.5), ("c", 0.1))
  ]
  said = recipe._lede(ends, "heldout")
  assert said.endswith("The intervals of a and b overlap.")
