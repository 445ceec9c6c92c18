"""What is timed: programs of the GRPO stage on sequences of fixed length, no text."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import common, quickstart
from r1jax import prng, sharding
from r1jax.errors import InputError
from r1jax.limits import decode_bytes, forward_work, read_bytes_per_s
from r1jax.models import parameters, quantized
from r1jax.models.presets import PRESETS
from r1jax.sharding import TRAIN_RULES, Partition
from r1jax.stages import learn, setup
from r1jax.stages.collect import sampler_of
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.training import logprobs
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.training.minibatches import Minibatch, minibatches
from r1jax.types import Problem
from tests.benchmarks import limits

SMOLLM2 = pathlib.Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")
_SMOLLM2_SIZES = {"prompts": 8, "group_size": 8, "prompt_length": 64, "max_tokens": 128}
_PRESET_SIZES = {
  "prompts": 16,
  "group_size": 16,
  "prompt_length": 256,
  "max_tokens": 768,
}

# Settings of `rollout` that nothing timed here could show.
_UNTIMED = ("oversample", "lag", "stop_strings")

# (number of the repeat) -> {"tokens": how many, and what else was counted or, with a
# name that ends in _s, timed}; returns when the device is done.
Call = Callable[[int], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Work:
  """A program with its input.

  Attributes:
    settings: what it depends on.
    limit: (tries) -> {"seconds": the least that a call could take, and its parts}.
    beside: other ways of ours to the same, timed in turn with it.
  """

  call: Call
  settings: Mapping[str, Any]
  limit: Callable[[int], dict[str, float]]
  beside: Mapping[str, Call] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Endless:
  """What is read of a tokenizer; nothing stops an answer before `max_tokens`."""

  vocab_size: int = 1
  stop_ids: tuple[int, ...] = ()


def config_of(
  model: str, changes: Sequence[str], sizes: Mapping[str, int] | None = None
) -> ConfigDict:
  """A config with the GRPO stage `zero`.

  Args:
    model: "quickstart" with its own shapes; "smollm2" (random weights where the file is
      absent) or a path, with 8 prompts x 8 samples of 64 + 128 tokens; a preset, with
      random weights and 16 prompts x 16 samples of 256 + 768 tokens.
    changes: "key=value" each, the key as after `--config.`, the value as JSON.
    sizes: of the rollout, before the changes.
  """
  if model == "quickstart":
    c = quickstart.get_config()
  else:
    c = common.run()
    is_absent = model == "smollm2" and not SMOLLM2.exists()
    preset = "smollm2-135m" if is_absent else model
    if preset in PRESETS:
      shape = {"vocab": PRESETS[preset].vocab}
      c.model.update({"path": "", "preset": preset, "shape": shape})
    else:
      c.model.path = str(SMOLLM2) if model == "smollm2" else model
    c.zero = common.grpo()
    c.zero.rollout.update(_PRESET_SIZES if model in PRESETS else _SMOLLM2_SIZES)
    prompt, own = (c.zero.rollout[key] for key in ("prompt_length", "max_tokens"))
    # A row holds a prompt with two answers, which begin with the prompt's last token.
    row_length = prompt + 2 * (own + 1)
    c.zero.training.update(
      {
        "rows": 8 if model in PRESETS else 4,
        "row_length": row_length,
        "minibatches": 1,
        "remat": "dots",
      }
    )
  c.zero.rollout.update(sizes or {})
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
  """A Run with what the stage's functions read; the rest of it is None.

  Raises:
    InputError: a model or a setting that the benchmarks do not measure.
  """
  for key in _UNTIMED:
    if value := config["zero"]["rollout"][key]:
      raise InputError(
        f"config.zero.rollout.{key}={value!r}: benchmarks draw whole rollouts of "
        "random tokens, one after the other; leave it out"
      )
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
  if model.experts is not None or model.latent is not None:
    raise InputError(
      f"--model {model.name}: has experts or latent attention, which the limits do not "
      "count; name a dense model"
    )
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
  draw, params = drawing(run, stage), run.params_of("")

  def call(repeat: int) -> dict[str, float]:
    return {"tokens": int(draw(params, repeat)[1].length_B.sum())}

  def limit(tries: int) -> dict[str, float]:
    return answers_limit(run, stage, params, tries)

  return Work(call, {"rollout": stage["rollout"]}, limit)


def score(run: Run, stage: Mapping[str, Any]) -> Work:
  """The scoring pass over a mini-batch."""
  (batch, *_), params = random_batches(run, stage), run.params_of("")
  program = scoring(run, stage, params)
  mask_MBL = np.asarray(batch.experience.rows.mask_BL)

  def call(repeat: int) -> dict[str, float]:
    del repeat
    scores = program(params, None, batch.experience.rows, batch.count)
    logp_MBL = jax.device_get(scores.logp_BL)
    mean = float((logp_MBL * mask_MBL).sum() / mask_MBL.sum())
    return {**counted(stage, batch), "logp_mean": mean}

  def limit(tries: int) -> dict[str, float]:
    return rows_limit(run, stage, [batch], params, tries, backward=False)

  settings = {key: stage[key] for key in ("rollout", "training")}
  return Work(call, settings, limit)


def update(run: Run, stage: Mapping[str, Any]) -> Work:
  """Forward and backward pass and AdamW of a mini-batch."""
  batch, *_ = random_batches(run, stage)
  state, program = updating(run, stage, run.params_of(""))

  def call(repeat: int) -> dict[str, float]:
    nonlocal state
    del repeat
    state = program(state, batch)
    return counted(stage, batch)

  def limit(tries: int) -> dict[str, float]:
    return rows_limit(run, stage, [batch], state.params, tries, backward=True)

  settings = {key: stage[key] for key in ("rollout", "training", "loss", "optim")}
  return Work(call, settings, limit)


def step(run: Run, stage: Mapping[str, Any]) -> Work:
  """A whole step: rollout, mini-batches, scores and updates; text and rewards are not.

  Advantages are random. The reference scores where `loss.kl_coef` is not 0.
  """
  params = run.params_of("")
  ref_params = None
  if stage["loss"]["kl_coef"] != 0:
    ref_params = jax.tree.map(jnp.copy, params)
  draw = drawing(run, stage)
  scores = scoring(run, stage, params)
  state, program = updating(run, stage, params)
  del params  # the state's own, which an update gives back

  def call(repeat: int) -> dict[str, float]:
    nonlocal state
    seen: dict[str, float] = {}
    with timed(seen, "rollout"):
      completions, out = draw(state.params, repeat)
    with timed(seen, "pack"):
      logp = [out.logp_BT[row, :n] for row, n in enumerate(out.length_B)]
      batches = packed(run, stage, completions, logp)
    with timed(seen, "score"):
      for batch in batches:
        rows, own = batch.experience.rows, {}
        if len(batches) > 1:
          own["logp_old_BL"] = scores(state.params, None, rows, batch.count).logp_BL
        if ref_params is not None:
          own["logp_ref_BL"] = scores(ref_params, None, rows, batch.count).logp_BL
        batch.experience = jax.block_until_ready(batch.experience.replace(**own))
    with timed(seen, "update"):
      for batch in batches:
        state = program(state, batch)
    return {"tokens": int(out.length_B.sum()), **seen}

  def limit(tries: int) -> dict[str, float]:
    batches = random_batches(run, stage)
    passes = (len(batches) > 1) + (ref_params is not None)
    parts = {"rollout": answers_limit(run, stage, state.params, tries)["seconds"]}
    for name, times, backward in (("score", passes, False), ("update", 1, True)):
      one = rows_limit(run, stage, batches, state.params, tries, backward=backward)
      parts[name] = times * one["seconds"]
    return {"seconds": sum(parts.values())} | {f"{k}_s": v for k, v in parts.items()}

  settings = {key: stage[key] for key in ("rollout", "training", "loss", "optim")}
  return Work(call, settings, limit)


@contextlib.contextmanager
def timed(seen: dict[str, float], phase: str) -> Iterator[None]:
  began = time.perf_counter()
  yield
  seen[f"{phase}_s"] = time.perf_counter() - began


def random_ids(run: Run, *shape: int) -> list[list[int]]:
  return np.random.default_rng(0).integers(run.model.vocab, size=shape).tolist()


def num_rows(stage: Mapping[str, Any]) -> int:
  return stage["rollout"]["prompts"] * stage["rollout"]["group_size"]


def prompts(run: Run, stage: Mapping[str, Any]) -> list[list[int]]:
  sizes = stage["rollout"]
  return random_ids(run, sizes["prompts"], sizes["prompt_length"])


def prompt_of(stage: Mapping[str, Any]) -> np.ndarray:
  sizes = stage["rollout"]
  return np.repeat(np.arange(sizes["prompts"]), sizes["group_size"])


def advantage(stage: Mapping[str, Any]) -> np.ndarray:
  return np.random.default_rng(0).normal(size=num_rows(stage))


def uniform_logp(run: Run) -> float:
  """What stands for the log-prob of a token where no model is asked."""
  return -float(np.log(run.model.vocab))


def drawing(run: Run, stage: Mapping[str, Any]) -> Callable:
  """(params, repeat) -> (ids of each answer, Rollout), by the stage's sampler."""
  sampler, asked = sampler_of(run, stage), prompts(run, stage)
  problems = [Problem(f"benchmark-{q}", "", "", "") for q in range(len(asked))]

  def draw(params: Any, repeat: int) -> tuple[list[list[int]], Any]:
    key = prng.at(prng.root(run.seed), "rollout", repeat)
    out = sampler(sampler.weights(params), asked, problems, key)
    return sampler.completions(out), out

  return draw


def scoring(run: Run, stage: Mapping[str, Any], params: Any) -> Callable:
  return steps.make_score(
    functools.partial(learn.scores_alone, run, stage),
    jax.tree.map(lambda leaf: leaf.sharding, params),
    run.partition.sharding(None, "batch"),
  )


def updating(run: Run, stage: Mapping[str, Any], params: Any) -> tuple[Any, Callable]:
  """(state, program); the program is (state, mini-batch) -> state, when it is done."""
  optimizer, _ = Trainable.of(run, stage).optimizer(stage["optim"])
  specs = parameters.param_specs(run.model)
  program = steps.make_update(
    functools.partial(learn.loss, run, stage),
    optimizer,
    states.state_shardings(specs, optimizer, run.partition, np.float32),
    run.partition.sharding(None, "batch"),
  )

  beside = None, np.float32(stage["loss"]["kl_coef"])

  def updated(state: Any, batch: Minibatch) -> Any:
    state, seen = program(
      state, beside, batch.experience, batch.count, batch.denominator
    )
    jax.block_until_ready(state)
    norm = float(seen["optim/grad_norm"].value())
    if not np.isfinite(norm):
      raise FloatingPointError(f"update {state.step}: the gradient's norm is {norm}")
    return state

  return states.state_of(params, specs, optimizer, run.partition), updated


def packed(
  run: Run,
  stage: Mapping[str, Any],
  completions: Sequence[Sequence[int]],
  logp: Sequence[np.ndarray],
) -> list[Minibatch]:
  """The mini-batches of a rollout, on the device."""
  sizes, training, losses = stage["rollout"], stage["training"], stage["loss"]
  made = minibatches(
    order=np.arange(num_rows(stage)),
    prompts=prompts(run, stage),
    prompt_of=prompt_of(stage),
    completions=completions,
    tokens={
      "logp_behaviour_BL": logp,
      "advantage_BL": [
        np.full(len(ids), one)
        for ids, one in zip(completions, advantage(stage), strict=True)
      ],
    },
    trained=np.ones(num_rows(stage)),
    parts=training["minibatches"],
    rows=training["rows"],
    row_length=training["row_length"],
    longest=sizes["prompt_length"] + sizes["max_tokens"],
    shards=run.partition.size("batch"),
    reduction=losses["reduction"],
    length_constant=losses["length_constant"],
  )
  for batch in made:
    batch.experience = sharding.place(
      batch.experience, run.partition.sharding(None, "batch")
    )
  return made


def random_batches(run: Run, stage: Mapping[str, Any]) -> list[Minibatch]:
  """Of random answers, with the log-probs that the stage would have given them."""
  max_tokens = stage["rollout"]["max_tokens"]
  logp = np.full(max_tokens, uniform_logp(run), np.float32)
  completions = random_ids(run, num_rows(stage), max_tokens)
  batches = packed(run, stage, completions, [logp] * num_rows(stage))
  for batch in batches:
    logp_BL = batch.experience.logp_behaviour_BL
    given = {"logp_old_BL": logp_BL} if len(batches) > 1 else {}
    if stage["loss"]["kl_coef"] != 0:
      given["logp_ref_BL"] = logp_BL
    batch.experience = batch.experience.replace(**given)
  return batches


def counted(stage: Mapping[str, Any], batch: Minibatch) -> dict[str, float]:
  """Tokens of a mini-batch: each answer's with its prompt's, and those of the rows,
  which share prompts."""
  sizes, parts = stage["rollout"], stage["training"]["minibatches"]
  whole = sizes["prompt_length"] + sizes["max_tokens"]
  fed = num_fed(batch)
  return {"tokens": num_rows(stage) // parts * whole, "fed_tokens": fed}


def num_fed(batch: Minibatch) -> int:
  return int((batch.experience.rows.segments_BL > 0).sum())


def answers_limit(
  run: Run,
  stage: Mapping[str, Any],
  params: Any,
  tries: int,
  *,
  lengths_B: np.ndarray | None = None,
) -> dict[str, float]:
  """Of a rollout, all of `max_tokens` unless other lengths are told.

  Args:
    params: float32, as the stage holds them.
  """
  sizes = stage["rollout"]
  rows, prompt_length = num_rows(stage), sizes["prompt_length"]
  at_once = min(sizes["slots"] or rows, rows)
  if lengths_B is None:
    lengths_B = np.full(rows, sizes["max_tokens"])
  weights = jax.jit(run.cast)(params)
  in_bytes = functools.partial(
    quantized.params_in, sizes["weights"], specs=parameters.param_specs(run.model)
  )
  a_row = functools.partial(
    limits.seconds_a_row, run.model, weights, run.partition, tries=tries
  )
  num_tokens = int(lengths_B.sum())
  own = float((lengths_B * (lengths_B + 1) / 2).sum() / num_tokens)
  shared = (prompt_length - 1) / sizes["group_size"]
  num_bytes = decode_bytes(
    run.model,
    jax.jit(in_bytes)(weights),
    steps=1,
    rows=at_once,
    cached=at_once * (own + shared),
    cache=sizes["cache"],
  )
  step_row_s = a_row("layers", rows=at_once) + a_row("head", rows=at_once)
  products_s = at_once * step_row_s
  reads_s = num_bytes / read_bytes_per_s(
    int(num_bytes), tries=tries, devices=jax.local_devices()
  )
  num_steps = num_tokens / at_once
  # A prompt's last token is fed by the first step of each of its samples.
  prefill_s = a_row("layers", rows=sizes["prompts"] * prompt_length)
  prefill_s *= sizes["prompts"] * (prompt_length - 1)
  return {
    "seconds": num_steps * max(products_s, reads_s) + prefill_s,
    "prefill_s": prefill_s,
    "step_products_s": products_s,
    "step_reads_s": reads_s,
    "step_gib": num_bytes / 2**30,
  }


def rows_limit(
  run: Run,
  stage: Mapping[str, Any],
  batches: Sequence[Minibatch],
  params: Any,
  tries: int,
  *,
  backward: bool,
) -> dict[str, float]:
  """Of mini-batches; `model_flops_s` is what `r1jax.limits` counts of them, at the rate
  that it takes for the machine's."""
  places = stage["training"]["rows"] * stage["training"]["row_length"]
  a_row = functools.partial(
    limits.seconds_a_row,
    run.model,
    jax.jit(run.cast)(params),
    run.partition,
    backward=backward,
    tries=tries,
  )
  layers_s = a_row("layers", rows=places) * sum(map(num_fed, batches))
  head_s = a_row("head", rows=min(places, logprobs.CHUNK))
  head_s *= sum(int(batch.experience.rows.mask_BL.sum()) for batch in batches)
  rows = jax.device_get([batch.experience.rows for batch in batches])
  forward = forward_work(run.machine, run.model, rows)
  return {
    "seconds": layers_s + head_s,
    "layers_s": layers_s,
    "head_s": head_s,
    "model_flops_s": (3 if backward else 1) * forward.least_s,
  }
