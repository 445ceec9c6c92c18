"""The figure of a comparison: accuracy by answers drawn, a panel for each stage.

A stage has one for itself because the intervals of nine in one panel cover each other.
Behind its own curve are those of all others, the first one dashed. One colour is enough
so, and none is needed to read it.
"""

import importlib
import io
import math
from types import ModuleType
from typing import Any

from r1jax import charts
from r1jax.compare.curves import Comparison, parts
from r1jax.compare.table import about, percent
from r1jax.errors import InputError

FORMATS = ("png", "svg")
_COLOUR, _FIRST, _OTHERS = "#0055a4", "0.25", "0.75"
_PANEL = (2.9, 2.1)  # inches
# The salt makes equal files of equal curves; text as paths needs no font.
_STYLE = {"font.size": 8, "svg.hashsalt": "r1jax", "svg.fonttype": "path"}


def draw(comparison: Comparison) -> dict[str, bytes]:
  """{format: file}.

  Raises:
    InputError: matplotlib is not installed.
  """
  matplotlib = _matplotlib()
  stages = list(comparison.stages.items())
  answers = parts(comparison.budget)
  means = [[100 * e.mean for e in stage.accuracy] for _, stage in stages]
  num_columns = math.ceil(math.sqrt(len(stages)))
  num_rows = math.ceil(len(stages) / num_columns)
  with matplotlib.rc_context(_STYLE):
    figure = matplotlib.figure.Figure(
      (_PANEL[0] * num_columns, _PANEL[1] * num_rows + 0.6), layout="constrained"
    )
    grid = figure.subplots(
      num_rows, num_columns, sharex=True, sharey=True, squeeze=False
    )
    for place, panel in enumerate(grid.flat):
      if place >= len(stages):
        panel.remove()
        continue
      name, stage = stages[place]
      for other, values in enumerate(means):
        if other not in (0, place):
          panel.plot(answers, values, color=_OTHERS, linewidth=0.7)
      if place:
        panel.plot(answers, means[0], color=_FIRST, linewidth=0.9, linestyle="--")
      panel.fill_between(
        answers,
        [100 * e.low for e in stage.accuracy],
        [100 * e.high for e in stage.accuracy],
        color=_COLOUR,
        alpha=0.2,
        linewidth=0,
      )
      panel.plot(answers, means[place], color=_COLOUR, linewidth=1.8)
      panel.set_title(name, loc="left", fontweight="bold", color=_COLOUR)
      panel.set_title(percent(stage.accuracy[-1]), loc="right", fontsize=7.5)
      panel.spines[["top", "right"]].set_visible(False)
      panel.grid(axis="y", linewidth=0.4, color="0.9")
      # Of the lowest panel of each column.
      panel.tick_params(labelbottom=place + num_columns >= len(stages))
    panel = grid[0, 0]
    panel.set_xlim(0, comparison.budget)
    panel.set_ylim(top=100)
    panel.xaxis.set_major_formatter(
      lambda x, _: charts.tick_text(x, panel.get_xticks())
    )
    panel.yaxis.set_major_formatter(lambda y, _: f"{y:g} %")
    figure.supxlabel("answers drawn for training", fontsize=8)
    figure.supylabel("held-out accuracy", fontsize=8)
    figure.suptitle(
      f"{about(comparison)}\nBlue: the mean over seeds and its 95 % interval, by "
      f"Student's t. Dashed: {stages[0][0]}. Thin: the other stages.",
      fontsize=8,
      x=0.01,
      ha="left",
    )
    return {kind: _saved(figure, kind) for kind in FORMATS}


def _matplotlib() -> ModuleType:
  try:
    importlib.import_module("matplotlib.figure")
    return importlib.import_module("matplotlib")
  except ImportError as e:
    raise InputError(
      "r1jax.compare draws with matplotlib, which is not installed: run `pip install "
      "matplotlib`"
    ) from e


def _saved(figure: Any, kind: str) -> bytes:
  file = io.BytesIO()
  unwanted = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
  figure.savefig(file, format=kind, dpi=200, metadata=unwanted)
  return file.getvalue()
