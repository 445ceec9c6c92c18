"""What a machine could do at most, and the least time that a step's parts would take.

FLOPs are those of the model, as in PaLM (arXiv 2204.02311, appendix B): 2 for every
number that a token is multiplied with, of experts its own only, and 4 for each head's
width and key that it attends to; a backward pass has twice those of a forward one. What
is computed a second time (`training.remat`) and padding count nothing, so that an
update's share of the limit is its model FLOPs utilization.

Departs: PaLM lets every token attend to the whole context, here it is the keys up to
itself; and the head counts for predicted tokens alone. Both lower the share. Left out
are norms, rotary, softmax and draw, embedding lookups, the optimizer, and the module
that predicts one token further; adapters, which are small beside what they adapt.

The limit of a rollout is the time of its prompts' products, and then that of its decode
steps' products or, where that is longer, of reading what these steps have to read.

Letters: M microbatches, B rows in each, L tokens in a row.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models import cache as caches
from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.types import Rollout, TokenRows

SHORTEST_S = 0.05  # a try is so many passes that it takes this long

# FLOP/s in bfloat16 without sparsity and bytes/s of one jax device, by its kind. NVIDIA
# data sheets; docs.cloud.google.com/tpu/docs, where a chip of TPU7x is two devices.
SHEETS = {
  "NVIDIA A100-SXM4-40GB": (312e12, 1.555e12),
  "NVIDIA A100-SXM4-80GB": (312e12, 2.039e12),
  "NVIDIA A100 80GB PCIe": (312e12, 1.935e12),
  "NVIDIA H100 PCIe": (756e12, 2.0e12),
  "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
  "NVIDIA H200": (989e12, 4.8e12),
  "TPU v4": (275e12, 1.228e12),
  "TPU v5 lite": (197e12, 0.819e12),
  "TPU v5": (459e12, 2.765e12),
  "TPU v6 lite": (918e12, 1.638e12),
  "TPU7x": (2307e12 / 2, 7.38e12 / 2),
}


class Work(NamedTuple):
  """Tokens that went through the model, and the least seconds that this would take."""

  tokens: int
  least_s: float

  def times(self, passes: float) -> "Work":
    """The same tokens going through it so often, a backward pass being two forward."""
    return self._replace(least_s=passes * self.least_s)


@dataclasses.dataclass(frozen=True)
class Machine:
  """What each of its devices could do at most.

  Attributes:
    source: "data sheet" or "measured".
  """

  num_devices: int
  flops_per_s: float
  bytes_per_s: float
  source: str

  def __str__(self) -> str:
    return (
      f"limits of a device: {self.flops_per_s / 1e9:,.0f} GFLOP/s, "
      f"{self.bytes_per_s / 1e9:,.0f} GB/s ({self.source})"
    )

  def seconds(self, flops: float, num_bytes: float = 0.0) -> float:
    """The least time of FLOPs of all devices together and bytes read by each."""
    return max(
      flops / self.num_devices / self.flops_per_s, num_bytes / self.bytes_per_s
    )


def machine(dtype: Any) -> Machine:
  """That of the data sheet for bfloat16; of other dtypes and devices as measured.

  Measuring takes about a second, in which the devices should have nothing else to do.
  """
  kind, count = jax.local_devices()[0].device_kind, jax.device_count()
  if kind in SHEETS and dtype == jnp.bfloat16:
    return Machine(count, *SHEETS[kind], "data sheet")
  on_cpu = jax.default_backend() == "cpu"
  size, num_bytes = (2**10, 2**28) if on_cpu else (2**13, 2**31)
  devices = jax.local_devices()
  flops_per_s = product_flops_per_s(size, dtype, tries=3, devices=devices)
  bytes_per_s = read_bytes_per_s(num_bytes // len(devices), tries=3, devices=devices)
  return Machine(count, flops_per_s, bytes_per_s, "measured")


# --------------------------------------------------------------- what is to be done


def forward_flops(
  c: ModelConfig, *, tokens: float, keys: float, predicted: float
) -> float:
  """Of a forward pass.

  Args:
    keys: that all tokens attend to, in one layer.
    predicted: tokens that go through the head.
  """
  head = c.width * c.vocab
  numbers = parameters.num_active_params(c) - head * (1 if c.tied_head else 2)
  width = 2 * c.head_dim
  if c.latent is not None:
    width = c.head_dim + c.latent.value_dim
  attention = 2 * c.depth * c.heads * width
  return 2.0 * (tokens * numbers + predicted * head) + keys * attention


def decode_bytes(
  c: ModelConfig,
  params: dict,
  *,
  steps: float,
  rows: int,
  cached: float,
  cache: str = "",
) -> float:
  """Bytes that each device reads in decode steps: weights, and cached keys and values.

  Args:
    params: that are drawn with, arrays on their devices.
    rows: decoded at a time: they may have no need for every expert.
    cached: tokens read, over all steps and rows of all devices.
    cache: what they are held in, see `loop_state.Plan`.
  """
  weights = 0.0
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    own = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    is_looked_up = name.startswith("embed") and not c.tied_head
    if name.startswith("mtp/") or is_looked_up:
      continue  # not gone through
    if "/experts/" in name:
      own *= min(1.0, rows * c.experts.per_token / c.experts.count)
    weights += own
  num_bytes = caches.token_bytes(c, cache or params["embed"].dtype)
  num_devices = jax.tree.leaves(params)[0].sharding.num_devices
  return steps * weights + cached * num_bytes / num_devices


def rollout_work(
  machine: Machine,
  c: ModelConfig,
  params: dict,
  prompts: Sequence[Sequence[int]],
  rollout: Rollout,
  begun_B: np.ndarray | None = None,
  cache: str = "",
) -> Work:
  """Of a rollout, its tokens being those drawn.

  A prompt's keys are read once for all of its rows, as long as the longest of them is.

  Args:
    params: see `decode_bytes`.
    prompts: ids of each, whose rows lie behind one another.
    begun_B: tokens of each row that an earlier rollout drew. That they are fed again is
      not counted.
    cache: see `decode_bytes`.
  """
  before_Q = np.asarray([len(ids) - 1 for ids in prompts], np.float64)
  length_QG = np.asarray(rollout.length_B, np.float64).reshape(len(prompts), -1)
  begun_QG = np.zeros_like(length_QG)
  if begun_B is not None:
    begun_QG = begun_B.reshape(length_QG.shape).astype(np.float64)
  drawn_QG = length_QG - begun_QG
  drawn = drawn_QG.sum()
  own = (length_QG * (length_QG - 1) - begun_QG * (begun_QG - 1)).sum() / 2
  prefill = forward_flops(
    c, tokens=before_Q.sum(), keys=(before_Q * (before_Q + 1) / 2).sum(), predicted=0
  )
  # The prompt's last token is fed by the first step of each row.
  keys = (drawn_QG * (before_Q[:, None] + 1)).sum() + own
  flops = forward_flops(c, tokens=drawn, keys=keys, predicted=drawn)
  steps = int(rollout.counts["steps"])
  num_bytes = decode_bytes(
    c,
    params,
    steps=steps,
    rows=round(int(rollout.counts["slot_steps"]) / max(steps, 1)),
    cached=own + (before_Q * drawn_QG.max(axis=1)).sum(),
    cache=cache,
  )
  least_s = machine.seconds(prefill) + machine.seconds(flops, num_bytes)
  return Work(int(drawn), least_s)


def forward_work(
  machine: Machine, c: ModelConfig, batches: Sequence[TokenRows]
) -> Work:
  """Of a forward pass of packed rows, numpy leaves [M, B, L], padding aside."""
  tokens = keys = predicted = 0
  for rows in batches:
    is_token_MBL = rows.segments_BL > 0
    tokens += int(is_token_MBL.sum())
    # Positions go on from a shared prompt, which its answers attend to as well.
    keys += int((is_token_MBL * (rows.positions_BL + 1)).sum())
    predicted += int((rows.mask_BL > 0).sum())
  flops = forward_flops(c, tokens=tokens, keys=keys, predicted=predicted)
  return Work(tokens, machine.seconds(flops))


# ------------------------------------------------------------- what a device could do


def pass_seconds(run: Callable[[int], None], tries: int) -> float:
  """Seconds of one pass; `run` does so many, and returns when they are done."""

  def seconds(passes: int) -> float:
    began = time.perf_counter()
    run(passes)
    return time.perf_counter() - began

  run(1)  # compiles
  passes = math.ceil(SHORTEST_S / seconds(1))
  return min(seconds(passes) for _ in range(tries)) / passes


def again(i: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """The same arrays; to the compiler others, so that no iteration's work is saved."""
  return jax.lax.optimization_barrier((*arrays, i))[:-1]


def one_of(out: jax.Array) -> jax.Array:
  """The first of its numbers; the compiler must not see that the rest is not needed."""
  return jax.lax.optimization_barrier(out).ravel()[0].astype(jnp.float32)


def product_flops_per_s(
  size: int, dtype: Any, *, tries: int, devices: Sequence[jax.Device]
) -> float:
  """Of products of square matrices, on each of the devices while all compute."""

  def one(x, y):
    return one_of(x @ y)

  sides = [jnp.ones((size, size), dtype)] * 2
  return 2 * size**3 / _seconds(one, sides, tries, devices)


def read_bytes_per_s(
  num_bytes: int, *, tries: int, devices: Sequence[jax.Device]
) -> float:
  """Of reading an array of about that size: a small one is read from a cache."""
  width = 2**12
  array = jnp.ones((max(num_bytes // (4 * width), 1), width), jnp.float32)
  return array.nbytes / _seconds(
    lambda array: one_of(array.sum(axis=1)), [array], tries, devices
  )


def _seconds(
  one: Callable, arrays: Sequence[jax.Array], tries: int, devices: Sequence[jax.Device]
) -> float:
  """Of one pass of `one(*arrays)`, on all devices at the same time."""

  @jax.jit
  def passes_of(passes, *arrays):
    def add(i, total):
      return total + one(*again(i, *arrays))

    return jax.lax.fori_loop(0, passes, add, 0.0)

  placed = [jax.device_put(list(arrays), device) for device in devices]
  return pass_seconds(
    lambda passes: jax.block_until_ready([passes_of(passes, *own) for own in placed]),
    tries,
  )
