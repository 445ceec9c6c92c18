"""What a layer keeps for its backward pass, by policy: its time and its memory.

Timed is the gradient of all log-probs of packed rows, whose weights are random; memory
is what the compiler sets aside beside arguments and results.
"""

import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from r1jax import prng
from r1jax.models import parameters, transformer
from r1jax.models.presets import PRESETS
from r1jax.training.logprobs import token_logprobs
from tests import tiny
from tests.benchmarks.imports import changed

SETTINGS = {"model": "smollm2-135m", "rows": 8, "row_length": 192}


def measure(changes: Sequence[str], repeats: int) -> dict[str, Any]:
  """What is written as JSON, but for what all benchmarks say."""
  given = changed(SETTINGS, changes)
  c = PRESETS[given["model"]]
  params = parameters.init(c, prng.root(0))
  size = given["rows"], given["row_length"]
  rows = tiny.plain_rows(np.random.default_rng(0).integers(0, c.vocab, size))

  def loss(params, rows, remat):
    return token_logprobs(c, params, rows, remat=remat).logp_BL.sum()

  programs, result = {}, {}
  for remat in transformer.REMAT:
    program = jax.jit(jax.grad(functools.partial(loss, remat=remat)))
    programs[remat] = program.lower(params, rows).compile()
    temp = programs[remat].memory_analysis().temp_size_in_bytes
    result[remat] = {"seconds": [], "temp_gib": temp / 2**30}
    jax.block_until_ready(programs[remat](params, rows))
  for _ in range(repeats):
    for remat, program in programs.items():
      began = time.perf_counter()
      jax.block_until_ready(program(params, rows))
      result[remat]["seconds"].append(time.perf_counter() - began)
  for seen in result.values():
    seen["median_s"] = statistics.median(seen["seconds"])
  settings = {**given, "weights": "random, seed 0"}
  return {"model": given["model"], "dtype": "float32", "settings": settings, **result}
