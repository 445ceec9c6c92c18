"""R19: what an install brings, and what importing r1jax loads."""

import ast
import importlib.metadata
import pathlib
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
NEVER = {"torch", "tensorflow", "tensorflow-cpu", "tf-nightly", "keras", "vllm"}
NEVER_IMPORTED = ("torch", "tensorflow", "keras", "vllm", "transformers", "flax.nnx")
# Imported inside a function, and only when the config asks for them.
OPTIONAL = {"wandb", "lm_eval"}


def from_setup(name):
  """The literal that setup.py gives to a variable or passes to `setup`."""
  for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))):
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
      return ast.literal_eval(node.value)
    if isinstance(node, ast.keyword) and node.arg == name:
      return ast.literal_eval(node.value)
  raise AssertionError(f"setup.py has no literal {name}")


def closure(requirements):
  """Names of all distributions that an install brings, as this environment has them."""
  seen = set()
  todo = [Requirement(text) for text in requirements]
  while todo:
    requirement = todo.pop()
    name = canonicalize_name(requirement.name)
    for extra in ("", *requirement.extras):
      if (name, extra) in seen:
        continue
      seen.add((name, extra))
      for text in importlib.metadata.requires(name) or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
          todo.append(needed)
  return {name for name, _ in seen}


def test_an_install_brings_no_other_framework():
  brought = closure(from_setup("REQUIRES"))
  assert {"jax", "jaxlib", "flax", "sympy"} <= brought
  assert not brought & NEVER


def test_this_environment_fits_the_ranges():
  for text in from_setup("REQUIRES"):
    requirement = Requirement(text)
    version = importlib.metadata.version(requirement.name)
    assert requirement.specifier.contains(version, prereleases=True), (text, version)


def test_every_import_is_declared():
  declared = {canonicalize_name(Requirement(t).name) for t in from_setup("REQUIRES")}
  owners = importlib.metadata.packages_distributions()
  missing = []
  for path in sorted((ROOT / "r1jax").rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      else:
        continue
      for top in {name.split(".")[0] for name in names}:
        if top in sys.stdlib_module_names | OPTIONAL | {"r1jax"}:
          continue
        if not {canonicalize_name(owner) for owner in owners.get(top, ())} & declared:
          missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {top}")
  assert not missing, "not in setup.py: " + ", ".join(missing)


def test_files_that_are_not_code_are_packaged():
  patterns = from_setup("package_data")["r1jax"]
  packaged = {path for pattern in patterns for path in (ROOT / "r1jax").glob(pattern)}
  others = {
    path
    for path in (ROOT / "r1jax").rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
  }
  assert ROOT / "r1jax" / "report_template.html" in packaged
  assert not others - packaged
  for folder in {path.parent for path in (ROOT / "r1jax").rglob("*.py")}:
    assert (folder / "__init__.py").exists(), folder


@pytest.mark.parametrize("name", NEVER_IMPORTED)
def test_code_names_no_other_framework(name):
  for path in sorted((ROOT / "r1jax").rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
      else:
        continue
      for other in names:
        assert f"{other}.".find(f"{name}.") != 0, f"{path.name}:{node.lineno} {other}"


def test_importing_every_module_loads_no_other_framework():
  code = """
    import importlib, pkgutil, sys
    import r1jax
    names = [m.name for m in pkgutil.walk_packages(r1jax.__path__, "r1jax.")]
    for name in names:
      importlib.import_module(name)
    print(len(names), *(n for n in sys.argv[1:] if n in sys.modules))
  """
  code = "\n".join(line[4:] for line in code.splitlines())
  out = subprocess.run(
    [sys.executable, "-c", code, *NEVER_IMPORTED],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )
  assert out.returncode == 0, out.stderr
  count, *loaded = out.stdout.split()
  assert int(count) > 40
  assert not loaded
