"""Settings of all tests, and a finished run that several look at."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
# The tests compile far more than they compute, and XLA's older way of making loops for
# a CPU compiles nearly twice as fast. Not every version knows the flag, and neither
# does libtpu; one that does not refuses to start.
if jax.__version_info__ < (0, 11) and importlib.util.find_spec("libtpu") is None:
  _FLAG = "--xla_cpu_use_fusion_emitters=false"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
# Folders and a file whose programs are tiny: they compile far longer than they run.
_TINY = {
  "models",
  "weights",
  "sampling",
  "training",
  "objectives",
  "architectures_test.py",
  "lm_eval_test.py",
}


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation(request):
  """Leaves LLVM's optimisation out, which halves the time of these folders."""
  before = jax.config.values["jax_disable_most_optimizations"]
  tiny = not _TINY.isdisjoint((request.path.parent.name, request.path.name))
  jax.config.update("jax_disable_most_optimizations", before or tiny)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session", name="train")
def _train(tmp_path_factory):
  """Starts r1jax.train on small_run.py (unless told otherwise), as a process.

  What one of them has compiled, the next ones find in a cache.
  """
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  started = []

  def start(*args, config="tests/small_run.py", program=("-m", "r1jax.train")):
    words = [*program, *([f"--config={config}"] if config else []), *args]
    started.append(
      subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
    return started[-1]

  yield start
  for process in started:
    process.kill()


@pytest.fixture(scope="session", name="small_run")
def _small_run(train, tmp_path_factory):
  """The folder of small_run.py run to its end; not to be written to."""
  folder = tmp_path_factory.mktemp("small") / "a run"
  process = train(f"--workdir={folder}")
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  return folder


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 4 MB."""
  mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
  if (
    shutil.which("mount") is None
    or subprocess.run(mount, capture_output=True, check=False).returncode
  ):
    pytest.skip("mounting a small file system needs root")
  yield tmp_path
  subprocess.run(["umount", str(tmp_path)], check=True)
