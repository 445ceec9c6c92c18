"""Products of sorted rows with their group's matrix, beside `jax.lax.ragged_dot`.

Rows are split over the experts at random, as a router without balance does. Timed is a
product with its gradient, ours and the other in turn; the ratio says how much faster
ours is.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models import grouped
from tests.benchmarks.imports import changed

SETTINGS = {"experts": 64, "rows": 4096, "inputs": 512, "outputs": 256}


def measure(changes: Sequence[str], repeats: int) -> dict[str, Any]:
  """What is written as JSON, but for what all benchmarks say."""
  given = changed(SETTINGS, changes)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(given["rows"], given["inputs"])), jnp.float32)
  shape = (given["experts"], given["inputs"], given["outputs"])
  w = jnp.asarray(rng.normal(size=shape), jnp.float32)
  chosen = rng.integers(0, given["experts"], given["rows"])
  sizes = jnp.asarray(np.bincount(chosen, minlength=given["experts"]), jnp.int32)

  def timed(product: Callable) -> Callable[[], float]:
    program = jax.jit(jax.grad(lambda x, w: (product(x, w, sizes) ** 2).sum(), (0, 1)))
    jax.block_until_ready(program(x, w))  # compiles

    def run() -> float:
      began = time.perf_counter()
      jax.block_until_ready(program(x, w))
      return time.perf_counter() - began

    return run

  blocks, ragged = timed(grouped.product), timed(jax.lax.ragged_dot)
  seconds, ragged_seconds = [], []
  for _ in range(repeats):
    seconds.append(blocks())
    ragged_seconds.append(ragged())
  median_s = statistics.median(seconds)
  return {
    "model": "groups",
    "dtype": "float32",
    "settings": {**given, "weights": "random, seed 0"},
    "seconds": seconds,
    "median_s": median_s,
    "flop_per_s": 6 * given["rows"] * given["inputs"] * given["outputs"] / median_s,
    "ragged_dot_seconds": ragged_seconds,
    "times_ragged_dot": statistics.median(ragged_seconds) / median_s,
  }
