"""What this machine could do at most with a model: matrix products, and memory reads.

A limit contains the products of hidden states with every weight matrix of the model (q,
k, v, o, gate, up and down of each layer, and the head) at the number of rows that the
program has, one after another, as XLA compiles each of them alone with the weights of
every layer in an array of their own. An update has three products for each matrix: the
forward one, and those of the gradients of the input and of the weights.

It leaves out both products of attention, norms, rotary, softmax, the draw, embedding
lookups, cache writes, the optimizer, communication and copies; what is computed a
second time; and padding: a place without a token costs the limit nothing, a token that
is not trained on no head. Where reading the weights and the cache once takes longer
than the products of a decode step, that time counts instead.

So this bounds the program by XLA's own products on this machine, not by a data sheet.
The fastest of several tries counts, and matrices of one shape are timed together, so
that they may be found in a cache where the program has to fetch them from memory.

Letters: B rows, I inputs and O outputs of a matrix.
"""

import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax import sharding
from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.sharding import Partition

SHORTEST_S = 0.05  # a try is so many passes that it takes this long


def pass_seconds(run: Callable[[int], None], tries: int) -> float:
  """Seconds of one pass; `run` does so many, and returns when they are done."""

  def seconds(passes: int) -> float:
    began = time.perf_counter()
    run(passes)
    return time.perf_counter() - began

  run(1)  # compiles
  passes = math.ceil(SHORTEST_S / seconds(1))
  return min(seconds(passes) for _ in range(tries)) / passes


def products(partition: Partition, *, backward: bool) -> Callable:
  """Compiles (passes, x_BI, y_BO, list of w_IO) -> a number, rows split over devices.

  A pass is all products, each an iteration of its own: they are computed in turn, and
  nothing is copied.

  Args:
    backward: with both gradients, y_BO standing for that of the output.
  """
  batch, whole = partition.pspec(("batch",)), PartitionSpec()

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=partition.mesh,
    in_specs=(whole, batch, batch, whole),
    out_specs=batch,
    check_vma=False,
  )
  def run(passes, x_BI, y_BO, weights):
    kinds = [lambda x_BI, y_BO, w_IO: x_BI @ w_IO]
    if backward:
      kinds.append(lambda x_BI, y_BO, w_IO: y_BO @ w_IO.T)
      kinds.append(lambda x_BI, y_BO, w_IO: x_BI.T @ y_BO)

    def branch(kind, w_IO):
      return lambda x_BI, y_BO: _one_of(kind(x_BI, y_BO, w_IO))

    branches = [branch(kind, w_IO) for w_IO in weights for kind in kinds]

    def one(i, total):
      return total + jax.lax.switch(i % len(branches), branches, *_again(i, x_BI, y_BO))

    return jax.lax.fori_loop(0, passes * len(branches), one, 0.0)[None]

  return run


def _again(i: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """The same arrays; to the compiler others, so that no iteration's work is saved."""
  return jax.lax.optimization_barrier((*arrays, i))[:-1]


def _one_of(out: jax.Array) -> jax.Array:
  """The first of its numbers; the compiler must not see that the rest is not needed."""
  return jax.lax.optimization_barrier(out).ravel()[0].astype(jnp.float32)


def seconds_a_row(
  c: ModelConfig,
  params: dict,
  partition: Partition,
  part: str,
  *,
  rows: int,
  backward: bool = False,
  tries: int,
) -> float:
  """Seconds that a row takes in all "layers" or the "head", so many at once.

  On several devices the faster of two ways: rows split over them, or all on the first
  (the devices of a CPU share its cores). No device holds a part of a matrix only.

  Args:
    params: in the compute dtype.
  """
  groups = _matrices(c, params, part)
  ways = [partition, sharding.single_device()][: 1 + (partition.mesh.size > 1)]

  def seconds(way: Partition, weights: list[jax.Array]) -> float:
    run = products(way, backward=backward)
    w_IO, key = weights[0], jax.random.key(0)
    sides = [jax.random.normal(key, (rows, size), w_IO.dtype) for size in w_IO.shape]
    x_BI, y_BO = jax.device_put(sides, way.sharding("batch"))
    weights = jax.device_put(weights, way.sharding())
    return pass_seconds(
      lambda passes: run(passes, x_BI, y_BO, weights).block_until_ready(), tries
    )

  return min(sum(seconds(way, same) for same in groups) for way in ways) / rows


def _matrices(c: ModelConfig, params: dict, part: str) -> list[list[jax.Array]]:
  """[I, O] each, those of one shape together."""
  if part == "head":
    return [[transformer.head_matrix(params)]]
  attn, mlp = params["layers"]["attn"], params["layers"]["mlp"]
  stacks = [w.reshape(c.depth, c.width, -1) for w in (attn["q"], attn["k"], attn["v"])]
  stacks += [attn["o"].reshape(c.depth, -1, c.width), *mlp.values()]
  by_shape: dict[tuple[int, ...], list[jax.Array]] = {}
  for stack in stacks:
    by_shape.setdefault(stack.shape, []).extend(stack)
  return list(by_shape.values())


def read_bytes_per_s(num_bytes: int, tries: int) -> float:
  """Of reading an array of about that size: a small one is read from a cache."""
  width = 2**12
  array = jnp.ones((max(num_bytes // (4 * width), 1), width), jnp.float32)

  @jax.jit
  def sums(passes, array):
    def one(i, total):
      return total + _one_of(_again(i, array)[0].sum(axis=1))

    return jax.lax.fori_loop(0, passes, one, 0.0)

  seconds = pass_seconds(lambda passes: sums(passes, array).block_until_ready(), tries)
  return array.nbytes / seconds


def decode_bytes(
  c: ModelConfig, params: dict, *, slots: int, samples: int, prompt: int, own: float
) -> int:
  """Bytes that a decode step has to read: weights, and cached keys and values, once.

  Args:
    slots, samples: slots, and how many of them share a prompt.
    prompt, own: tokens of a prompt, and those that a slot made itself, on average.
  """
  numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
  if "head" in params:  # then the embedding is only looked up
    numbers -= params["embed"].size
  tokens = slots * own + slots / samples * prompt
  numbers += 2 * c.depth * c.kv_heads * c.head_dim * tokens
  return int(numbers * params["embed"].dtype.itemsize)
