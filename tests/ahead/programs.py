"""The programs of a step, compiled for four devices that are not there.

`python -m tests.ahead.programs DEVICE MODEL` prints a line of JSON: of each program the
kernels in it and the bytes a device holds while it runs. DEVICE is `v5e`, whose
compiler is in the package `libtpu`, or `h100`, whose compiler comes with `jax[cuda13]`;
neither needs the device for this.
"""

import dataclasses
import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.models.presets import PRESETS
from r1jax.sampling import decode, logits, loop_state
from r1jax.sharding import MESH_AXES, SAMPLE_RULES, TRAIN_RULES, Partition
from r1jax.training import state, step
from r1jax.training.logprobs import token_logprobs
from r1jax.types import Experience, TokenRows
from tests import tiny

SHAPE = {"data": 1, "fsdp": 2, "tp": 2, "ep": 1, "sp": 1}
ROWS, LENGTH = 4, 1024  # long enough for the attention kernel
# What XLA asks about a GPU that is not there, as a GpuTargetConfigProto.
H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
OPTIMIZER = optax.adamw(1e-5)
# A kernel of a TPU by its name, one of a GPU by what is called.
_KERNEL = (
  r"%(\w+)\S* = .*\"tpu_custom_call\"|\"__(?:cudnn|gpu)\$(fmha\w+|xla\.gpu\.triton)\""
)
MODELS = {
  "qwen2.5-1.5b": PRESETS["qwen2.5-1.5b"],
  **{name: dataclasses.replace(c, vocab=64) for name, c in tiny.FAMILY.items()},
}


def topology(device: str) -> Mesh:
  if device == "v5e":
    found = topologies.get_topology_desc("v5e:2x2", "tpu")
  else:
    found = topologies.get_topology_desc(
      platform="cuda", target_config=H100, topology="1x1x4"
    )
  shape = tuple(SHAPE[axis] for axis in MESH_AXES)
  axis_types = (AxisType.Auto,) * len(MESH_AXES)
  return Mesh(
    np.asarray(found.devices).reshape(shape), MESH_AXES, axis_types=axis_types
  )


def experience(partition: Partition) -> Experience:
  """One microbatch of packed rows that share prompts, without values."""
  at = partition.sharding(None, "batch")
  shape = (1, ROWS, LENGTH)
  f32 = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at)
  i32 = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=at)
  rows = TokenRows(i32, i32, i32, f32, f32, parents_BL=i32)
  return Experience(rows, f32, f32, f32, f32)


def update(c: ModelConfig, mesh: Mesh):
  partition = Partition(mesh, TRAIN_RULES)
  specs = parameters.param_specs(c)
  start = state.abstract_state(specs, OPTIMIZER, partition, jnp.bfloat16)
  shardings = state.state_shardings(specs, OPTIMIZER, partition, jnp.bfloat16)

  def loss(params, frozen, batch):
    del frozen
    return tiny.grpo_loss(c, params, batch, partition, remat="dots")

  at = partition.sharding(None, "batch")
  program = step.make_update(loss, OPTIMIZER, shardings, at)
  return program.lower(start, None, experience(partition), 1, 64.0)


def score(c: ModelConfig, mesh: Mesh):
  partition = Partition(mesh, TRAIN_RULES)
  shardings = partition.of_specs(parameters.param_specs(c))

  def scores(params, frozen, batch):
    del frozen
    return token_logprobs(c, params, batch.rows, partition=partition).logp_BL

  program = step.make_score(scores, shardings, partition.sharding(None, "batch"))
  params = parameters.abstract_params(c, jnp.bfloat16, shardings)
  return program.lower(params, None, experience(partition), 1)


def rollout(c: ModelConfig, mesh: Mesh):
  partition = Partition(mesh, SAMPLE_RULES)
  # A step has its layers one behind another: a program of all of them is long.
  c = dataclasses.replace(c, depth=min(c.depth, 3))
  specs = parameters.unstacked(parameters.param_specs(c))
  params = parameters.abstract(specs, jnp.bfloat16, partition.of_specs(specs))
  plan = loop_state.Plan(samples=4, max_tokens=64, slots=8)
  generate = functools.partial(decode.generate, c, plan=plan, partition=partition)
  program = jax.jit(generate, out_shardings=partition.sharding())
  prompts = tiny.prompts([[1, 2, 3]] * 4, capacity=128)
  controls = logits.controls(16, max_tokens=64, top_p=0.9, stop_ids=(2,))
  key = jax.eval_shape(lambda: jax.random.key(0))
  return program.lower(params, *jax.tree.map(np.asarray, (prompts, controls)), key)


def seen(make, c: ModelConfig, mesh: Mesh) -> dict:
  """Names of kernels, and bytes on a device."""
  # The kernels for GPUs ask which one it is.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = make(c, mesh)
  compiled = lowered.compile()
  memory = compiled.memory_analysis()
  size = memory.argument_size_in_bytes + memory.output_size_in_bytes
  size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
  calls = re.findall(_KERNEL, compiled.as_text())
  return {"kernels": sorted(map("".join, calls)), "bytes": size}


if __name__ == "__main__":
  given, devices = MODELS[sys.argv[2]], topology(sys.argv[1])
  made = {
    make.__name__: seen(make, given, devices) for make in (update, score, rollout)
  }
  print(json.dumps(made))
