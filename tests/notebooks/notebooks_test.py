"""Every notebook runs from top to bottom and holds no outputs."""

import json
import pathlib
import re
import shutil

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from r1jax.objectives import kl
from tests import run_directory

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def all_cells(path):
  return json.loads(path.read_text(encoding="utf-8"))["cells"]


def cells(path):
  return [cell for cell in all_cells(path) if cell["cell_type"] == "code"]


@pytest.fixture(name="run")
def _run(monkeypatch):
  """Runs a notebook from its own folder; gives the names that it leaves."""
  matplotlib.use("Agg")
  monkeypatch.chdir(FOLDER)

  def run(name):
    names = {}
    for cell in cells(FOLDER / f"{name}.ipynb"):
      exec("".join(cell["source"]), names)
    return names

  yield run
  plt.close("all")


def test_there_are_notebooks():
  assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_cleared(path):
  for cell in cells(path):
    assert cell["outputs"] == []
    assert cell["execution_count"] is None


@pytest.mark.parametrize(
  ("make", "stage"),
  [(run_directory.make, "zero"), (run_directory.recipe, "student_rl_3")],
)
def test_reading_a_run(tmp_path, monkeypatch, capsys, run, make, stage):
  make(tmp_path)
  monkeypatch.setenv("R1JAX_RUN", str(tmp_path))
  run("reading_a_run")
  said = capsys.readouterr().out
  assert f"stage {stage!r}, evaluated on 'heldout'" in said
  assert "before: thinks " in said
  assert "after: thinks " in said
  assert "rollout" in said


def small(monkeypatch, folder):
  monkeypatch.setenv("R1JAX_CONFIG", "tests/small_run.py")
  monkeypatch.setenv("R1JAX_RUN", str(folder))
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def check_quickstart(names, said, folder):
  assert pathlib.Path.cwd() == ROOT, "configs/ is found from the notebooks' folder"
  assert re.search(r"accuracy \d+\.\d % before, \d+\.\d % after", said)
  assert said.count("gold answer") == 4
  assert said.count("  before ") == said.count("  after ") == 4
  assert re.search(r"step \d: [12] of 2 groups differ inside", said)
  assert said.count(" points, advantage ") == 4
  assert f"open {folder}/report.html" in said
  assert names["held_out"] == "heldout"
  _, figure = map(plt.figure, plt.get_fignums())
  accuracy, length = figure.axes
  assert list(accuracy.lines[0].get_xdata()) == [0, 2, 4, 5]
  assert min(length.lines[0].get_ydata()) > 0


def test_r1_zero_quickstart(tmp_path, monkeypatch, capsys, run, small_run):
  """On a run that is done: the training cell finds nothing left to do."""
  folder = shutil.copytree(small_run, tmp_path / "run")
  small(monkeypatch, folder)
  names = run("r1_zero_quickstart")
  said = capsys.readouterr().out
  assert "zero: done before with these settings, kept" in said
  check_quickstart(names, said, folder)


@pytest.mark.slow
def test_r1_zero_quickstart_trains(tmp_path, monkeypatch, capsys, run):
  small(monkeypatch, tmp_path / "run")
  names = run("r1_zero_quickstart")
  said = capsys.readouterr().out
  assert "zero 5/5" in said
  check_quickstart(names, said, tmp_path / "run")


def test_the_quickstart_is_installed_from_where_its_badge_leads():
  path = FOLDER / "r1_zero_quickstart.ipynb"
  text = "".join("".join(cell["source"]) for cell in all_cells(path))
  badge = re.search(r"colab\.research\.google\.com/github/(\S+?)/blob/(\S+)\)", text)
  repository = re.search(r'REPOSITORY = "https://github\.com/(\S+)"', text)
  assert badge[1] == repository[1]
  assert badge[2] == "main/notebooks/r1_zero_quickstart.ipynb"
  config = re.search(r'"R1JAX_CONFIG", "(\S+)"', text)
  assert (ROOT / config[1]).exists()


def test_objectives_by_picture(run):
  """The pictures show what the texts beside them say."""
  names = run("objectives_by_picture")
  ratio = names["RATIO"]

  def at(push_BL, adv, where):
    return float(push_BL[0 if adv > 0 else 1][np.abs(ratio - where).argmin()])

  # R1's clip: up to 11 times, and never for a bad token.
  assert at(names["grpo_r1"], 1, 10.5) == pytest.approx(10.5, rel=0.02)
  assert at(names["grpo_r1"], 1, 12) == 0
  assert at(names["grpo_r1"], -1, 18) == pytest.approx(-18, rel=0.02)
  # GRPO: a good token is silent above 1.2, where DAPO's is not yet.
  assert at(names["grpo"], 1, 1.24) == 0 and at(names["dapo"], 1, 1.24) > 1.2
  assert at(names["grpo"], -1, 0.5) == 0 and at(names["grpo"], -1, 15) < -14
  dual = names["dual_clip"]
  assert at(dual, -1, 2.5) < -2.4 and at(dual, -1, 15) == 0
  cispo, sapo = names["cispo"], names["sapo"]
  assert at(cispo, 1, 15) == pytest.approx(5) and at(cispo, 1, 0.1) > 0.09
  assert at(sapo, 1, 1) == pytest.approx(1, rel=0.02) and 0 < at(sapo, 1, 10) < 0.1
  # One advantage for each right answer; RLOO is 8/7 of the centred reward.
  reward_QG = names["reward_QG"]
  made = {key: f(reward_QG)[0] for key, f in names["ESTIMATORS"].items()}
  np.testing.assert_allclose(made["rloo"], made["dr_grpo"] * 8 / 7)
  alone = np.eye(16)[:1]
  assert names["ESTIMATORS"]["grpo"](alone)[0, 0] == pytest.approx(3.9, abs=0.05)
  # Values agree but for k2, gradients as the text says.
  found = names["expected"](names["LOGITS"])
  reverse, forward = found["KL(policy ‖ ref)"], found["KL(ref ‖ policy)"]
  for name in ("k1", "k3", "unbiased"):
    assert float(found[name][0]) == pytest.approx(float(reverse[0]), rel=1e-5)
  for name, gradient in (
    *(("k1", np.zeros(3)), ("k2", reverse[1])),
    *(("k3", forward[1]), ("unbiased", reverse[1])),
  ):
    np.testing.assert_allclose(found[name][1], gradient, atol=1e-6)
  assert set(kl.ESTIMATORS) < set(found), "every estimator is drawn"
  # GSPO's ratio silences all of an answer.
  assert not names["of_answers"]["gspo"][0].any()
  np.testing.assert_allclose(names["of_answers"]["gspo"][1], 1, rtol=1e-3)
  assert np.flatnonzero(names["of_answers"]["grpo"][0] == 0).tolist() == [5]
