"""One update and one rollout on several meshes, in a process with devices of its own.

`python -m tests.multidevice.programs OUT.npz MESHES [PROCESS COUNT PORT]`, MESHES being
JSON: {name: sizes of the mesh axes}; the empty mesh is one device. With the last three
this is one process of several. What comes out is written as {mesh/quantity: array}.
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
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import prng, sharding, trees
from r1jax.models import moe, parameters
from r1jax.sampling import decode, logits, loop_state
from r1jax.sharding import SAMPLE_RULES, TRAIN_RULES, Partition
from r1jax.training import state, step
from r1jax.training.logprobs import token_logprobs
from tests import tiny

C = tiny.config(vocab=32)
PROMPTS = [[3, 1, 4, 1, 5, 9], [7], [2, 2], [6, 2, 8], [1] * 5, [9, 9], [4], [8, 8, 8]]


def partition_of(sizes) -> Partition:
  if not sizes:
    return sharding.single_device()
  return Partition(sharding.make_mesh(sizes), TRAIN_RULES)


def fetch(partition, tree):
  """Numpy arrays of arrays that may lie on devices of other processes."""
  whole = NamedSharding(partition.mesh, PartitionSpec())
  return jax.tree.map(np.asarray, jax.jit(lambda x: x, out_shardings=whole)(tree))


def place(shardings, tree):
  """Each device takes its slice of what every process holds whole."""
  return jax.tree.map(
    lambda leaf, at: jax.make_array_from_callback(
      leaf.shape, at, lambda index: np.asarray(leaf)[index]
    ),
    tree,
    shardings,
  )


def batch_of(partition, process, num_processes):
  """Two microbatches of 8 rows, each process giving its own rows only."""
  rows = partition.sharding(None, "batch")
  whole = jax.tree.map(
    lambda leaf: leaf.reshape(2, 8, *leaf.shape[1:]), tiny.experience(C, num_rows=16)
  )
  share = 8 // num_processes
  mine = slice(process * share, (process + 1) * share)
  return jax.tree.map(
    lambda leaf: jax.make_array_from_process_local_data(
      rows, leaf[:, mine], leaf.shape
    ),
    whole,
  )


def sizes_gathered(text):
  """Elements of every array that a compiled program gathers."""
  shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
  return [int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes]


def update(partition, process, num_processes):
  """The gradient (as one step of SGD at rate 1), metrics, and what a device does."""
  optimizer = optax.chain(optax.trace(0.9), optax.sgd(1.0))
  specs = parameters.param_specs(C)
  shardings = state.state_shardings(specs, optimizer, partition, jnp.float32)
  params = place(shardings.params, tiny.params(C))
  before = fetch(partition, params)
  start = state.state_of(params, specs, optimizer, partition)

  def loss(params, frozen, e):
    del frozen
    return tiny.grpo_loss(C, params, e, partition)

  batch = batch_of(partition, process, num_processes)
  program = step.make_update(
    loss, optimizer, shardings, partition.sharding(None, "batch")
  )
  arguments = (start, None, batch, np.int32(2), np.float32(50.0))
  compiled = program.lower(*arguments).compile()
  checksum = jax.jit(trees.checksum)(start.params)
  after, metrics = compiled(*arguments)
  jax.tree.map(
    lambda leaf, at: np.testing.assert_(leaf.sharding.is_equivalent_to(at, leaf.ndim)),
    after,
    shardings,
  )
  gradient = jax.tree.map(np.subtract, before, fetch(partition, after.params))
  totals = {name: mean.total / mean.count for name, mean in metrics.items()}
  return {
    **{f"gradient/{path}": leaf for path, leaf in trees.flatten(gradient).items()},
    **{f"metric/{name}": np.asarray(value) for name, value in totals.items()},
    "checksum": np.asarray(checksum),
    "flops": np.asarray(compiled.cost_analysis()["flops"]),
    "gathered": np.asarray(max(sizes_gathered(compiled.as_text()), default=0)),
  }


def rollout(partition, slots, c=C):
  """Tokens, log-probs and counts, under the sampler's rules."""
  held = Partition(partition.mesh, SAMPLE_RULES)
  shardings = held.of_specs(parameters.param_specs(c))
  program = jax.jit(
    functools.partial(
      decode.generate,
      c,
      plan=loop_state.Plan(samples=2, max_tokens=10, slots=slots),
      partition=held,
    ),
    out_shardings=NamedSharding(partition.mesh, PartitionSpec()),
  )
  controls = logits.controls(
    16, temperature=1.1, top_p=0.9, max_tokens=10, stop_ids=tiny.STOP
  )
  key = prng.at(prng.root(0), "rollout", 3)
  arguments = jax.tree.map(np.asarray, (tiny.prompts(PROMPTS), controls))
  out = program(place(shardings, tiny.params(c)), *arguments, key)
  inside = np.arange(10) < np.asarray(out.length_B)[:, None]
  return {
    "rollout/tokens": np.where(inside, out.tokens_BT, -1),
    "rollout/logp": np.asarray(out.logp_BT),
    "rollout/length": np.asarray(out.length_B),
    "rollout/idle": np.asarray(out.counts["idle_slot_steps"]),
    "rollout/checksum": np.asarray(out.weights_checksum),
  }


def fresh(partition):
  """Parameters that each device drew for itself."""
  specs = parameters.param_specs(C)
  params = state.init_params(specs, prng.root(5), partition, jnp.float32)
  return {
    f"fresh/{path}": x for path, x in trees.flatten(fetch(partition, params)).items()
  }


def family(partition):
  """Cross-entropy of packed rows and its gradient, of each architecture."""
  found = {}
  for name, c in tiny.FAMILY.items():
    c = dataclasses.replace(c, vocab=32)
    shardings = partition.of_specs(parameters.param_specs(c))
    rows = tiny.experience(c).rows
    rows_at = partition.sharding("batch")

    def loss(params, rows, c=c):
      further = c.mtp_depth > 0
      scores = token_logprobs(
        c,
        params,
        rows,
        chunk=64,
        balance=c.experts is not None,
        further=further,
        partition=partition,
      )
      total = -scores.logp_BL.sum()
      if further:
        total -= scores.further_BL.sum()
      if c.experts is not None:
        total += (scores.routed.balance_BL * rows.mask_BL).sum()
      return total

    program = jax.jit(
      jax.value_and_grad(loss),
      in_shardings=(shardings, rows_at),
      out_shardings=(None, shardings),
    )
    placed = sharding.place(rows, rows_at)
    total, gradient = program(place(shardings, tiny.params(c)), placed)
    found[f"family/{name}/loss"] = np.asarray(total)
    for path, leaf in trees.flatten(fetch(partition, gradient)).items():
      found[f"family/{name}/{path}"] = leaf
    if c.experts is not None:
      seen = rollout(partition, 8, c)
      found |= {f"family_{name}_{key}": value for key, value in seen.items()}
  return found


def uneven(partition):
  """A mixture whose tokens all choose the same experts: many rounds of exchange."""
  c = tiny.config(experts=dataclasses.replace(tiny.V3_EXPERTS, first_dense=0))
  shardings = partition.of_specs(parameters.param_specs(c))["layers"]["moe"]
  whole = tiny.params(c)["layers"]["moe"]
  whole = {**whole, "bias": whole["bias"] + 9 * (jnp.arange(8) < 3)}
  x = np.random.default_rng(0).normal(size=(16, 5, c.width)).astype(np.float32)

  @jax.jit
  def run(weights, x):
    def total(weights):
      own = jax.tree.map(lambda leaf: leaf[0], weights)
      out = moe.mixture(x, own, c.experts, partition)[0]
      return (out**2).sum(), out

    return jax.grad(total, has_aux=True)(weights)

  gradient, out = run(
    place(shardings, whole), sharding.place(x, partition.sharding("batch"))
  )
  found = trees.flatten(fetch(partition, {**gradient, "out": out}))
  return {f"uneven/{path}": leaf for path, leaf in found.items()}


def main(out, meshes, process="0", num_processes="1", port=None):
  process, num_processes = int(process), int(num_processes)
  if num_processes > 1:
    jax.distributed.initialize(f"localhost:{port}", num_processes, process)
  found = {}
  for name, (sizes, parts) in json.loads(meshes).items():
    partition = partition_of(sizes)
    seen = update(partition, process, num_processes)
    if "rollout" in parts:
      seen |= rollout(partition, parts["rollout"])
    if "fresh" in parts:
      seen |= fresh(partition)
    if "family" in parts:
      seen |= family(partition)
    if "uneven" in parts:
      seen |= uneven(partition)
    found |= {f"{name}/{key}": value for key, value in seen.items()}
  np.savez(out, **found)


if __name__ == "__main__":
  main(*sys.argv[1:])
