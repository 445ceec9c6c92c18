"""Imports inside r1jax point down only."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Upper rows import lower ones. `free` rows may import within the row; in the others
# the members do not know of one another.
ROWS = (
  (
    "free",
    {"train", "evaluate", "plan", "report", "chat", "export", "compare", "audit"}
    | {"charts", "panels", "pages", "command", "lm_eval"},
  ),
  ("apart", {"stages"}),
  (
    "apart",
    {"training", "sampling", "checkpoints"}
    | {"weights", "evals", "terminal", "watchdog", "limits"},
  ),
  ("apart", {"models", "data", "rewards", "objectives", "optim", "metrics"}),
  ("apart", {"sharding"}),
  ("free", {"types", "prng", "trees", "errors", "gguf_files", "boxes"}),
)
ROW_OF = {name: row for row, (_, names) in enumerate(ROWS) for name in names}


def imported(source, module):
  """(line, dotted module) of every import of r1jax in a file, wherever it stands.

  Args:
    module: dotted name of the file, against which relative imports are resolved.
  """
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      above = module.split(".")[: -node.level] if node.level else []
      stem = ".".join([*above, *filter(None, [node.module])])
      names = [f"{stem}.{alias.name}" for alias in node.names]
    elif (
      isinstance(node, ast.Call)
      and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
      and node.args
      and isinstance(node.args[0], ast.Constant)
    ):
      names = [str(node.args[0].value)]
    else:
      continue
    for name in names:
      if name.startswith("r1jax."):
        yield node.lineno, name


def faults(source, module):
  """What is wrong with the imports of one file, a line each."""
  top = module.split(".")[1]
  if top not in ROW_OF:
    return [f"{module}: {top!r} has no row in tests/imports_test.py"]
  said = []
  for line, name in imported(source, module):
    other = name.split(".")[1]
    if other == top or other.startswith("__"):
      continue
    here, there = ROW_OF[top], ROW_OF.get(other)
    if there is None:
      why = f"{other!r} has no row in tests/imports_test.py"
    elif there < here:
      why = "which lies above it"
    elif there == here and ROWS[here][0] == "apart":
      why = "its neighbour; what both need lies a row below"
    else:
      continue
    said.append(f"{module}, line {line}: {top} imports {name}, {why}")
  return said


def files():
  for path in sorted((ROOT / "r1jax").rglob("*.py")):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module != "r1jax.__init__":
      yield path, module


def test_imports_point_down():
  found = list(files())
  assert len(found) > 40
  said = [line for path, module in found for line in faults(path.read_text(), module)]
  assert not said, "\n" + "\n".join(said)


def test_rows_name_each_package_once():
  assert len(ROW_OF) == sum(len(names) for _, names in ROWS)


@pytest.mark.parametrize(
  ("source", "module", "want"),
  [
    ("from r1jax import trees", "r1jax.models.lora", None),
    ("from r1jax.models.config import ModelConfig", "r1jax.models.lora", None),
    ("from r1jax import types", "r1jax.prng", None),
    ("import r1jax.charts", "r1jax.report", None),
    ("from r1jax import __version__", "r1jax.metrics", None),
    ("import re, jax", "r1jax.prng", None),
    ("from r1jax import stages", "r1jax.trees", "above"),
    ("def f():\n  import r1jax.training.step", "r1jax.data.packing", "line 2"),
    ("from r1jax.data import packing", "r1jax.models.lora", "neighbour"),
    ("from r1jax import report, errors", "r1jax.stages.grpo", "above"),
    ("from ..training import step", "r1jax.sampling.decode", "neighbour"),
    ("from .. import stages", "r1jax.sampling.decode", "above"),
    ("from . import cache", "r1jax.models.lora", None),
    ("importlib.import_module('r1jax.train')", "r1jax.optim", "above"),
    ("from r1jax import utils", "r1jax.optim", "no row"),
    ("import re", "r1jax.utils.misc", "no row"),
  ],
)
def test_each_kind_of_edge(source, module, want):
  said = faults(source, module)
  assert bool(said) == (want is not None)
  if want is not None:
    assert len(said) == 1
    assert want in said[0]
