"""R17: the check of the quick start's figure that CI runs can say no."""

import importlib.util
import json
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[1] / ".ci" / "quickstart_figure.py"


@pytest.fixture(name="check")
def _check():
  spec = importlib.util.spec_from_file_location("quickstart_figure", PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def lines(*evaluations):
  """A run's lines: training steps between evaluations, and another stage's before."""
  yield {"step": 0, "stage": "base", "time": 0.0, "eval/held_out/accuracy": 0.99}
  for number, (accuracy, length, num_problems) in enumerate(evaluations):
    yield {"step": number, "stage": "zero", "time": 0.0, "reward/accuracy": 0.5}
    yield {
      "step": number,
      "stage": "zero",
      "time": 0.0,
      "eval/held_out/accuracy": accuracy,
      "eval/held_out/accuracy_low": 0.0,
      "eval/held_out/length_mean": length,
      "eval/held_out/n": num_problems,
    }


@pytest.mark.parametrize(
  ("evaluations", "want"),
  [
    ([(0.3, 20.0, 500), (0.1, 10.0, 500), (0.9, 60.0, 500)], []),
    ([(0.3, 20.0, 500), (0.95, 60.0, 500), (0.89, 60.0, 500)], ["ends at 89.0%"]),
    ([(0.5, 20.0, 500), (0.95, 60.0, 500)], ["less than doubled"]),
    ([(0.3, 20.0, 500), (0.95, 20.0, 500)], ["mean length"]),
    ([(0.3, 20.0, 500), (0.95, 60.0, 499)], ["499 held-out problems"]),
    ([(0.95, 60.0, 500)], ["1 evaluations"]),
    ([], ["0 evaluations"]),
    (
      [(0.5, 60.0, 9), (0.6, 20.0, 9)],
      ["ends at", "doubled", "mean length", "9 held-out"],
    ),
  ],
)
def test_each_miss_is_said(check, tmp_path, capsys, evaluations, want):
  (tmp_path / "metrics.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines(*evaluations))
  )
  assert check.main(tmp_path) == bool(want)
  said = [line for line in capsys.readouterr().out.splitlines() if "missed" in line]
  assert len(said) == len(want)
  for line, words in zip(said, want, strict=True):
    assert words in line
