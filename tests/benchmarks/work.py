"""What is timed: programs of the GRPO stage on sequences of fixed length, no text."""

import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import common, quickstart
from r1jax import optim, prng, sharding
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.sharding import TRAIN_RULES, Partition
from r1jax.stages import grpo, setup
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.training import logprobs
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.training.minibatches import Minibatch, minibatches
from r1jax.types import Problem
from tests.benchmarks import limits

MODELS = ("smollm2", "quickstart")
SMOLLM2 = pathlib.Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")


@dataclasses.dataclass(frozen=True)
class Work:
  """A program with its input.

  Attributes:
    call: (number of the repeat) -> tokens; returns when the device is done.
    limit: (tries) -> {"seconds": the least that a call could take, and its parts}.
  """

  call: Callable[[int], int]
  limit: Callable[[int], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Endless:
  """What is read of a tokenizer; nothing stops an answer before `max_tokens`."""

  vocab_size: int = 1
  stop_ids: tuple[int, ...] = ()


def config_of(model: str, changes: Sequence[str]) -> ConfigDict:
  """A config with the GRPO stage `zero`.

  Args:
    model: "quickstart" with its own shapes; "smollm2" (random weights where the file is
      absent) or a path, with 8 prompts x 8 samples of 64 + 128 tokens.
    changes: "key=value" each, the key as after `--config.`, the value as JSON.
  """
  if model == "quickstart":
    c = quickstart.get_config()
  else:
    c = common.run()
    c.model.path = str(SMOLLM2) if model == "smollm2" else model
    if model == "smollm2" and not SMOLLM2.exists():
      c.model.update({"path": "", "preset": "smollm2-135m", "shape": {"vocab": 49152}})
    c.zero = common.grpo()
    sizes = {"prompts": 8, "group_size": 8, "prompt_length": 64, "max_tokens": 128}
    c.zero.rollout.update(sizes)
    rows = {"rows": 8, "row_length": 192, "minibatches": 1, "remat": "none"}
    c.zero.training.update(rows)
  c.lock()
  for change in changes:
    key, _, text = change.partition("=")
    try:
      c.update_from_flattened_dict({key: json.loads(text)})
    except (KeyError, TypeError, ValueError) as e:
      raise InputError(
        f"--set {change}: {e} (the value is JSON: text is quoted)"
      ) from e
  return c


def start(config: Mapping[str, Any]) -> Run:
  """A Run with what the stage's functions read; the rest of it is None."""
  if config["cpu_devices"]:
    jax.config.update("jax_num_cpu_devices", config["cpu_devices"])
  partition = Partition(sharding.make_mesh(config["mesh"]), TRAIN_RULES)
  tokenizer = Endless()
  if config["stages"]:  # the quick start's tokenizer decides the size of its model
    with tempfile.TemporaryDirectory() as folder:
      stages = setup.stage_configs(config)
      made = setup.make_tokenizer(config, stages, pathlib.Path(folder))
    tokenizer = Endless(made.vocab_size)
  model, model_params = setup.make_model(config, tokenizer, partition)
  given = {
    "seed": config["seed"],
    "model": model,
    "tokenizer": tokenizer,
    "partition": partition,
    "compute_dtype": setup.compute_dtype(config["model"]["compute_dtype"]),
    "model_params": model_params,
  }
  return Run(**dict.fromkeys(field.name for field in dataclasses.fields(Run)) | given)


def rollout(run: Run, stage: Mapping[str, Any]) -> Work:
  """Weights cast and copied to the sampler, prompts in, answers on the host."""
  how = dict(stage["rollout"])
  names = ("prompts", "group_size", "prompt_length", "max_tokens", "slots")
  num_prompts, samples, prompt_length, max_tokens, slots = map(how.pop, names)
  num_rows = num_prompts * samples
  sampler = Sampler(
    run,
    Trainable.of(run, stage),
    prompts=num_prompts,
    samples=samples,
    prompt_length=prompt_length,
    max_tokens=max_tokens,
    slots=slots,
    controls=how,
  )
  params = run.params_of("")
  prompts = random_ids(run, num_prompts, prompt_length)
  problems = [Problem(f"benchmark-{q}", "", "", "") for q in range(num_prompts)]

  def call(repeat: int) -> int:
    key = prng.at(prng.root(run.seed), "rollout", repeat)
    out = sampler(sampler.weights(params), prompts, problems, key)
    return int(out.length_B.sum())

  def limit(tries: int) -> dict[str, float]:
    weights, at_once = sampler.weights(params), min(slots or num_rows, num_rows)
    a_row = functools.partial(
      limits.seconds_a_row, run.model, weights, run.partition, tries=tries
    )
    num_bytes = limits.decode_bytes(
      run.model,
      weights,
      slots=at_once,
      samples=samples,
      prompt=prompt_length - 1,
      own=(max_tokens + 1) / 2,
    )
    step_row_s = a_row("layers", rows=at_once) + a_row("head", rows=at_once)
    products_s = at_once * step_row_s
    reads_s = num_bytes / limits.read_bytes_per_s(num_bytes, tries)
    num_steps = num_rows * max_tokens / at_once
    # A prompt's last token is fed by the first step of each of its samples.
    prefill_s = a_row("layers", rows=num_prompts * prompt_length)
    prefill_s *= num_prompts * (prompt_length - 1)
    return {
      "seconds": num_steps * max(products_s, reads_s) + prefill_s,
      "prefill_s": prefill_s,
      "step_products_s": products_s,
      "step_reads_s": reads_s,
      "step_gib": num_bytes / 2**30,
    }

  return Work(call, limit)


def score(run: Run, stage: Mapping[str, Any]) -> Work:
  """The scoring pass over a mini-batch."""
  batch, params = minibatch(run, stage), run.params_of("")
  program = steps.make_score(
    functools.partial(grpo.score_rows, run, stage),
    jax.tree.map(lambda leaf: leaf.sharding, params),
    run.partition.sharding(None, "batch"),
  )

  def call(repeat: int) -> int:
    del repeat
    jax.block_until_ready(program(params, None, batch.experience.rows, batch.count))
    return num_tokens(batch)

  return Work(call, lambda tries: rows_limit(run, stage, batch, params, False, tries))


def update(run: Run, stage: Mapping[str, Any]) -> Work:
  """Forward and backward pass and AdamW of a mini-batch."""
  batch = minibatch(run, stage)
  optimizer, _ = optim.make_optimizer(**stage["optim"])
  specs = parameters.param_specs(run.model)
  state = states.state_of(run.params_of(""), specs, optimizer, run.partition)
  program = steps.make_update(
    functools.partial(grpo.loss, run, stage),
    optimizer,
    states.state_shardings(specs, optimizer, run.partition, np.float32),
    run.partition.sharding(None, "batch"),
  )

  def call(repeat: int) -> int:
    nonlocal state
    state, seen = program(state, None, batch.experience, batch.count, batch.denominator)
    jax.block_until_ready(state)
    norm = float(seen["optim/grad_norm"].value())
    if not np.isfinite(norm):
      raise FloatingPointError(f"call {repeat}: the gradient's norm is {norm}")
    return num_tokens(batch)

  return Work(
    call, lambda tries: rows_limit(run, stage, batch, state.params, True, tries)
  )


WORK = {"rollout": rollout, "score": score, "update": update}


def random_ids(run: Run, *shape: int) -> list[list[int]]:
  return np.random.default_rng(0).integers(run.model.vocab, size=shape).tolist()


def minibatch(run: Run, stage: Mapping[str, Any]) -> Minibatch:
  """The first of a rollout, with the log-probs that the stage would have given it."""
  sizes, training, losses = stage["rollout"], stage["training"], stage["loss"]
  num_rows = sizes["prompts"] * sizes["group_size"]
  logp = np.full(sizes["max_tokens"], -np.log(run.model.vocab), np.float32)
  batch, *others = minibatches(
    order=np.arange(num_rows),
    prompts=random_ids(run, num_rows, sizes["prompt_length"]),
    completions=random_ids(run, num_rows, sizes["max_tokens"]),
    logp=[logp] * num_rows,
    advantage=np.random.default_rng(0).normal(size=num_rows),
    trained=np.ones(num_rows),
    parts=training["minibatches"],
    rows=training["rows"],
    row_length=training["row_length"],
    longest=sizes["prompt_length"] + sizes["max_tokens"],
    shards=run.partition.size("batch"),
    reduction=losses["reduction"],
    length_constant=losses["length_constant"],
  )
  logp_BL = batch.experience.logp_behaviour_BL
  given = {"logp_old_BL": logp_BL} if others else {}
  if losses["kl_coef"] != 0:
    given["logp_ref_BL"] = logp_BL
  batch.experience = sharding.place(
    batch.experience.replace(**given), run.partition.sharding(None, "batch")
  )
  return batch


def num_tokens(batch: Minibatch) -> int:
  return int((batch.experience.rows.segments_BL > 0).sum())


def rows_limit(
  run: Run,
  stage: Mapping[str, Any],
  batch: Minibatch,
  params: Any,
  backward: bool,
  tries: int,
) -> dict[str, float]:
  places = stage["training"]["rows"] * stage["training"]["row_length"]
  a_row = functools.partial(
    limits.seconds_a_row,
    run.model,
    jax.jit(run.cast)(params),
    run.partition,
    backward=backward,
    tries=tries,
  )
  layers_s = a_row("layers", rows=places) * num_tokens(batch)
  head_s = a_row("head", rows=min(places, logprobs.CHUNK))
  head_s *= int(batch.experience.rows.mask_BL.sum())
  return {"seconds": layers_s + head_s, "layers_s": layers_s, "head_s": head_s}
