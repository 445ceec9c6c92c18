"""What is trained, what is frozen, and what of them goes to the sampler."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from r1jax import sharding, trees
from r1jax.errors import InputError
from r1jax.models import lora
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from tests import tiny

C = tiny.FAMILY["deepseek_v3"]


def trainable_of(c=C, dtype=jnp.float32, **changes):
  """With a Run that has what is read here; the rest of it is None."""
  given = {
    "seed": 0,
    "model": c,
    "tokenizer": types.SimpleNamespace(stop_ids=tiny.STOP),
    "partition": sharding.single_device(),
    "compute_dtype": dtype,
    "model_params": lambda: jax.tree.map(jnp.copy, tiny.params(c)),
  }
  run = Run(**dict.fromkeys(field.name for field in dataclasses.fields(Run)) | given)
  return Trainable.of(run, settings(**changes))


def settings(**changes):
  """Of a stage, with a small adapter unless changed."""
  c = common.grpo()
  c.lora.rank = 2
  c.lora.paths = (".*/attn/o",)
  c.update_from_flattened_dict(changes)
  return c.to_dict()


def test_without_an_adapter_all_is_trained_and_nothing_frozen():
  trainable = trainable_of(**{"lora.rank": 0})
  params = trainable.fresh("zero", "")
  assert trainable.frozen("") is None
  assert trainable.policy(params, None)["embed"] is params["embed"]
  assert params.keys() == trainable.specs.keys()


def test_a_fresh_adapter_is_of_seed_and_stage_and_changes_nothing():
  trainable = trainable_of(tiny.config())
  one, again, other = (trainable.fresh(name, "") for name in ("zero", "zero", "one"))
  for path, leaf in trees.flatten(one).items():
    np.testing.assert_array_equal(leaf, trees.flatten(again)[path])
    assert leaf.dtype == jnp.float32
    is_b = path.endswith("/b")
    assert np.any(leaf) != is_b
    assert np.any(leaf != trees.flatten(other)[path]) != is_b


def test_the_policy_is_the_adapter_on_the_base_in_compute_dtype():
  """Routers' biases excepted; gradients come in the adapter's own dtype."""
  trainable = trainable_of(dtype=jnp.bfloat16)
  adapter, frozen = trainable.fresh("zero", ""), trainable.frozen("")
  policy = trainable.policy(adapter, frozen)
  for path, leaf in trees.flatten(policy).items():
    dtypes = {part.dtype for part in jax.tree.leaves(leaf)}
    assert dtypes == {jnp.dtype("float32" if path.endswith("moe/bias") else "bfloat16")}
  o = policy["dense"]["attn"]["o"]
  assert o.base is frozen["dense"]["attn"]["o"] and o.scale == 16.0

  def loss(adapter):
    return trainable.policy(adapter, frozen)["dense"]["attn"]["o"].b.sum()

  grads = jax.grad(loss)(adapter)
  assert grads["dense"]["attn"]["o"]["b"].dtype == jnp.float32


def test_each_step_sends_the_adapter_alone():
  """The base is where it was, not a copy; the checksum is of both."""
  trainable = trainable_of(tiny.config())
  sampler = Sampler(
    trainable.run,
    trainable,
    prompts=1,
    samples=2,
    prompt_length=4,
    max_tokens=4,
    controls={"temperature": 1.0},
  )
  frozen = trainable.frozen("")
  held = sampler.hold(frozen)
  adapter = trainable.fresh("zero", "")
  weights = sampler.weights(adapter, held)
  there = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(held)}
  sent = [
    leaf
    for leaf in jax.tree.leaves(weights)
    if leaf.unsafe_buffer_pointer() not in there
  ]
  assert trees.num_bytes(sent) == trees.num_bytes(adapter)
  assert trees.num_bytes(weights) == trees.num_bytes((frozen, adapter))

  key = jax.random.key(0)
  problems = [types.SimpleNamespace(id="p")]

  def drawn(weights):
    return sampler(weights, [[1, 2, 3]], problems, key)

  first = drawn(weights)
  moved = jax.tree.map(lambda leaf: leaf + 0.5, adapter)
  second = drawn(sampler.weights(moved, held))
  assert first.weights_checksum != second.weights_checksum
  assert (first.logp_BT != second.logp_BT).any()
  assert drawn(weights).weights_checksum == first.weights_checksum


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"moe.bias_rate": 0.1}, r"config\.moe\.bias_rate=0\.1: .*config\.lora\.rank=2"),
    (
      {"lora.rank": 99, "lora.paths": (".*",)},
      r"config\.lora\.rank=99: dense/attn/kv_down is a matrix of 16",
    ),
    ({"lora.paths": ("head",)}, r"config\.lora\.paths: 'head' matches head, and none"),
    ({"optim.frozen": ("embed",)}, r"config\.optim\.frozen: 'embed' matches no param"),
    ({"optim.weight_decay": 0.1}, r"config\.optim\.no_decay: '\.\*norm' matches no"),
  ],
)
def test_settings_that_do_not_fit_are_refused_before_the_stage(changes, said):
  with pytest.raises(InputError, match=said):
    trainable_of(**changes).check(settings(**changes))


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"lora.rank": 0, "moe.bias_rate": 0.1},
    {"optim.frozen": ("dense/.*", ".*/a")},
    {"optim.weight_decay": 0.1, "optim.no_decay": (".*/a",)},
  ],
)
def test_settings_that_fit_are_taken(changes):
  """Patterns of the optimizer are those of what is trained."""
  trainable_of(**changes).check(settings(**changes))


def test_the_size_of_an_adapter_is_said():
  said = []
  trainable = trainable_of(tiny.config())
  run = dataclasses.replace(
    trainable.run,
    console=types.SimpleNamespace(print=lambda *line, **_: said.append(*line)),
  )
  dataclasses.replace(trainable, run=run).announce("zero")
  of_adapter = trees.count(lora.adapter_specs(tiny.config(), trainable.lora))
  assert f"zero: trains an adapter of rank 2, {of_adapter:,} numbers" in said[0]
