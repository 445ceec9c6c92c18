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
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from r1jax import sharding
from r1jax.limits import one_of, pass_seconds
from r1jax.models.config import ModelConfig
from r1jax.sharding import Partition

# Bytes of matrices of one shape that are timed: more than a cache holds.
_ENOUGH = 2**28


def products(partition: Partition, *, backward: bool) -> Callable:
  """Compiles (passes, x_BI, list of w_IO) -> a number, rows split over devices.

  A pass is all products; nothing is copied. XLA's CPU backend, which knows no barriers
  once it has compiled, may begin one before another ends.

  Args:
    backward: with both gradients, the product standing for that of the output.
  """
  batch, whole = partition.pspec(("batch",)), PartitionSpec()

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=partition.mesh,
    in_specs=(whole, batch, whole),
    out_specs=batch,
    check_vma=False,
  )
  def run(passes, x_BI, weights):
    def one_pass(_, total):
      for w_IO in weights:
        # Each waits for the one before it.
        sides_BI, total = jax.lax.optimization_barrier((x_BI, total))
        out_BO = jax.lax.optimization_barrier(sides_BI @ w_IO)
        found = [out_BO]
        if backward:
          found += [out_BO @ w_IO.T, sides_BI.T @ out_BO]
        total += sum(map(one_of, found))
      return total

    return jax.lax.fori_loop(0, passes, one_pass, 0.0)[None]

  return run


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
    shape, dtype = (rows, len(weights[0])), weights[0].dtype
    x_BI = jax.random.normal(jax.random.key(0), shape, dtype)
    x_BI = jax.device_put(x_BI, way.sharding("batch"))
    weights = jax.device_put(weights, way.sharding())
    return pass_seconds(
      lambda passes: run(passes, x_BI, weights).block_until_ready(), tries
    )

  def all_seconds(way: Partition) -> float:
    total_s = 0.0
    for same in groups:
      some = same[: math.ceil(_ENOUGH / same[0].nbytes)]
      total_s += seconds(way, some) * len(same) / len(some)
    return total_s

  return min(map(all_seconds, ways)) / rows


def _matrices(c: ModelConfig, params: dict, part: str) -> list[list[jax.Array]]:
  """[I, O] each, those of one shape together."""
  if part == "head":
    return [[params["head"] if "head" in params else params["embed"].T]]
  attn, mlp = params["layers"]["attn"], params["layers"]["mlp"]
  stacks = [w.reshape(c.depth, c.width, -1) for w in (attn["q"], attn["k"], attn["v"])]
  stacks += [attn["o"].reshape(c.depth, -1, c.width), *mlp.values()]
  by_shape: dict[tuple[int, ...], list[jax.Array]] = {}
  for stack in stacks:
    by_shape.setdefault(stack.shape, []).extend(stack)
  return list(by_shape.values())
