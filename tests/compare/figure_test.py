"""The figure and the table hold what was compared."""

import sys
from xml.etree import ElementTree

import pytest

from r1jax.compare import figure, table
from r1jax.compare.curves import NUM_PARTS, Compared, Comparison, Estimate
from r1jax.errors import InputError


def comparison(*names):
  steady = [Estimate(0.5, 0.25, 0.75)] * NUM_PARTS + [Estimate(0.975, 0.9, 1.0)]
  gain = Estimate(-0.015, -0.12, 0.09)
  stages = {
    name: Compared(steady, [0.95, 1.0], gain if place else None, 1.5e6, 64, 90, 24_000)
    for place, name in enumerate(names)
  }
  return Comparison("heldout", 510, [1.0], 16_384, [0, 3], stages)


def test_table_says_what_was_measured():
  lines = table.markdown(comparison("grpo", "dapo")).splitlines()
  assert lines[0] == (
    "Accuracy on 510 problems of “heldout”, answered at temperature 1, after 16,384 "
    "answers drawn for training; seeds 0 and 3."
  )
  assert lines[2].split(" | ")[3] == "less that of `grpo`"
  same, end = "97.5 % (90.0 to 100.0) | 95.0, 100.0", "1,500,000 | 64 | 90 s | 24,000 |"
  assert lines[4] == f"| `grpo` | {same} |  | {end}"
  assert lines[5] == f"| `dapo` | {same} | −1.5 (−12.0 to +9.0) | {end}"


@pytest.fixture(scope="module", name="files")
def _files():
  return figure.draw(comparison("grpo", "dapo", "ppo"))


def test_figure_has_a_panel_for_each_stage(files):
  """The fourth place of the grid is left empty."""
  root = ElementTree.fromstring(files["svg"])
  panels = [e for e in root.iter() if e.get("id", "").startswith("axes_")]
  assert len(panels) == 3
  for panel in panels:
    names = [e.get("id", "").rstrip("_0123456789") for e in panel.iter()]
    assert sum(name.startswith("FillBetween") for name in names) == 1
  assert files["png"].startswith(b"\x89PNG")


def test_equal_curves_make_equal_files(files):
  assert figure.draw(comparison("grpo", "dapo", "ppo")) == files


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  with pytest.raises(InputError, match="pip install matplotlib"):
    figure.draw(comparison("grpo"))
