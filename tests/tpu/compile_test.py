"""The programs of a step, compiled for TPUs that are not there.

The compiler is that of the `libtpu` package, which needs no TPU for this.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.models.presets import PRESETS
from r1jax.sampling import decode, logits
from r1jax.sharding import MESH_AXES, SAMPLE_RULES, TRAIN_RULES, Partition
from r1jax.training import state, step
from r1jax.training.logprobs import token_logprobs
from r1jax.types import Experience, TokenRows
from tests import tiny

pytestmark = pytest.mark.slow

HBM = 16 * 2**30  # bytes of a v5e chip
MESH = {"data": 1, "fsdp": 2, "tp": 2, "ep": 1, "sp": 1}
ROWS, LENGTH = 4, 1024  # long enough for the attention kernel
OPTIMIZER = optax.adamw(1e-5)
TINY = ("llama", "qwen3_moe", "deepseek_v3")
MODELS = {name: dataclasses.replace(tiny.FAMILY[name], vocab=64) for name in TINY}
MODELS["qwen2.5-1.5b"] = PRESETS["qwen2.5-1.5b"]
EACH = pytest.mark.parametrize("c", MODELS.values(), ids=MODELS)
KERNELS = ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv")


@pytest.fixture(scope="module")
def mesh() -> Mesh:
  """Four chips of a v5e."""
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  with pytest.MonkeyPatch.context() as patch:
    # It would wait for a cloud's metadata server, and ends the process at a flag that
    # it does not know.
    patch.setenv("TPU_SKIP_MDS_QUERY", "1")
    patch.delenv("XLA_FLAGS", raising=False)
    chips = topologies.get_topology_desc("v5e:2x2", "tpu").devices
  shape = tuple(MESH[axis] for axis in MESH_AXES)
  axis_types = (AxisType.Auto,) * len(MESH_AXES)
  return Mesh(np.asarray(chips).reshape(shape), MESH_AXES, axis_types=axis_types)


def experience(partition: Partition) -> Experience:
  """One microbatch of packed rows that share prompts, without values."""
  at = partition.sharding(None, "batch")
  shape = (1, ROWS, LENGTH)
  f32 = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at)
  i32 = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=at)
  rows = TokenRows(i32, i32, i32, f32, f32, parents_BL=i32)
  return Experience(rows, f32, f32, f32, f32)


def assert_fits(compiled) -> None:
  memory = compiled.memory_analysis()
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes
  held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
  assert held < HBM, f"{held / 2**30:.1f} GiB a chip"


@EACH
def test_update(c: ModelConfig, mesh):
  partition = Partition(mesh, TRAIN_RULES)
  specs = parameters.param_specs(c)
  start = state.abstract_state(specs, OPTIMIZER, partition, jnp.bfloat16)
  shardings = state.state_shardings(specs, OPTIMIZER, partition, jnp.bfloat16)

  def loss(params, frozen, batch):
    del frozen
    return tiny.grpo_loss(c, params, batch, partition, remat="full")

  program = step.make_update(
    loss, OPTIMIZER, shardings, partition.sharding(None, "batch")
  )
  compiled = program.lower(start, None, experience(partition), 1, 64.0).compile()
  text = compiled.as_text()
  for kernel in KERNELS:
    assert f"{kernel}_segmented" in text
  if c.experts is not None:
    assert "ragged" in text
  assert_fits(compiled)


@EACH
def test_score(c: ModelConfig, mesh):
  partition = Partition(mesh, TRAIN_RULES)
  shardings = partition.of_specs(parameters.param_specs(c))

  def scores(params, frozen, batch):
    del frozen
    return token_logprobs(c, params, batch.rows, partition=partition).logp_BL

  at = partition.sharding(None, "batch")
  program = step.make_score(scores, shardings, at)
  params = parameters.abstract_params(c, jnp.bfloat16, shardings)
  compiled = program.lower(params, None, experience(partition), 1).compile()
  text = compiled.as_text()
  assert [kernel in text for kernel in KERNELS] == [True, False, False]
  assert_fits(compiled)


@EACH
def test_rollout(c: ModelConfig, mesh):
  partition = Partition(mesh, SAMPLE_RULES)
  # A step has all layers one behind another.
  c = dataclasses.replace(c, depth=min(c.depth, 3))
  specs = parameters.unstacked(parameters.param_specs(c))
  params = parameters.abstract(specs, jnp.bfloat16, partition.of_specs(specs))
  plan = decode.Plan(samples=4, max_tokens=128, slots=8)
  program = jax.jit(
    functools.partial(decode.generate, c, plan=plan, partition=partition),
    out_shardings=partition.sharding(),
  )
  prompts = tiny.prompts([[1, 2, 3]] * 4, capacity=128)
  controls = logits.controls(16, max_tokens=128, top_p=0.9, stop_ids=(2,))
  given = jax.tree.map(np.asarray, (prompts, controls))
  key = jax.eval_shape(lambda: jax.random.key(0))
  compiled = program.lower(params, *given, key).compile()
  assert_fits(compiled)
