"""Settings of all tests."""

import jax
import pytest

# Folders whose programs are tiny: they compile far longer than they run.
_TINY = ("models", "sampling", "training", "objectives")


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation(request):
  """Leaves LLVM's optimisation out, which halves the time of these folders."""
  before = jax.config.values["jax_disable_most_optimizations"]
  tiny = request.path.parent.name in _TINY
  jax.config.update("jax_disable_most_optimizations", before or tiny)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
