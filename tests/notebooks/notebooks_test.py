"""Every notebook runs from top to bottom and holds no outputs."""

import json
import pathlib

import matplotlib
import pytest

from tests import run_directory

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path):
  return [
    cell
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
  ]


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_cleared(path):
  for cell in cells(path):
    assert cell["outputs"] == []
    assert cell["execution_count"] is None


def test_reading_a_run(tmp_path, monkeypatch, capsys):
  matplotlib.use("Agg")
  run_directory.make(tmp_path)
  monkeypatch.setenv("R1JAX_RUN", str(tmp_path))
  names = {}
  for cell in cells(FOLDER / "reading_a_run.ipynb"):
    exec("".join(cell["source"]), names)
  said = capsys.readouterr().out
  assert "stage 'zero', evaluated on 'heldout'" in said
  assert "before: thinks " in said
  assert "after: thinks " in said
  assert "rollout" in said
