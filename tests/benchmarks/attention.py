"""Attention among the tokens of packed rows, beside one product of all pairs.

Timed is each with its gradient, in turn; the quotient says how many times as long the
other takes. Memory is what the compiler sets aside beside arguments and results.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models import kernels, layers
from tests.benchmarks.imports import changed

SETTINGS = {"rows": 8, "row_length": 192, "heads": 9, "kv_heads": 3, "width": 64}
SEGMENT = 96  # tokens


def measure(changes: Sequence[str], repeats: int) -> dict[str, Any]:
  """What is written as JSON, but for what all benchmarks say."""
  given = changed(SETTINGS, changes)
  rng = np.random.default_rng(0)
  row = given["rows"], given["row_length"]
  shared = given["heads"] // given["kv_heads"]
  shapes = [(given["kv_heads"], *r, given["width"]) for r in ((shared,), (), ())]
  qkv = [jnp.asarray(rng.normal(size=(*row, *shape)), jnp.float32) for shape in shapes]
  segments = jnp.broadcast_to(jnp.arange(row[1]) // SEGMENT + 1, row)
  scale = given["width"] ** -0.5

  def ours(q, k, v, segments):
    return kernels.causal(q, k, v, segments, None, scale=scale)

  def whole(q, k, v, segments):
    mask = segments[:, :, None] == segments[:, None]
    mask &= jnp.tril(jnp.ones((row[1], row[1]), bool))
    context = jnp.moveaxis(k, 1, -1), jnp.moveaxis(v, 1, 2)
    return layers.attend(q, *context, mask, scale=scale)[0]

  def compiled(attention: Callable) -> Callable:
    def loss(*arrays):
      return (attention(*arrays) ** 2).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*qkv, segments).compile()

  programs = {"ours": compiled(ours), "whole": compiled(whole)}
  result: dict[str, Any] = {}
  for name, program in programs.items():
    temp = program.memory_analysis().temp_size_in_bytes
    result[name] = {"seconds": [], "temp_gib": temp / 2**30}
    jax.block_until_ready(program(*qkv, segments))
  for _ in range(repeats):
    for name, program in programs.items():
      began = time.perf_counter()
      jax.block_until_ready(program(*qkv, segments))
      result[name]["seconds"].append(time.perf_counter() - began)
  for seen in result.values():
    seen["median_s"] = statistics.median(seen["seconds"])
  return {
    "model": "attention",
    "dtype": "float32",
    "settings": {**given, "segment": SEGMENT, "weights": "random, seed 0"},
    **result,
    "times_ours": result["whole"]["median_s"] / result["ours"]["median_s"],
  }
