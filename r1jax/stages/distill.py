"""Distillation: a student learns the distributions of a teacher with its tokenizer.

A step is on worked examples, or on answers that the student draws itself: with the
chance `on_policy`, as GKD (Agarwal et al., arXiv 2306.13649, algorithm 1) mixes the
two. Learnt is a divergence of whole distributions, or, of own answers alone, the
advantage that the teacher's log-prob of each drawn token is (on-policy distillation).

Letters: B rows in a microbatch, L tokens in a row, M microbatches, Q prompts of a
rollout, G samples per prompt, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1jax import limits, metrics, prng, sharding
from r1jax.data import packing, problems, stream, templates
from r1jax.data import tokenizer as tokenizers
from r1jax.errors import InputError, one_of
from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.objectives import distill, policy
from r1jax.stages import sets, sft, supervised
from r1jax.stages.rollouts import Sampler, records
from r1jax.stages.run import Run, Stage
from r1jax.stages.trainable import Trainable
from r1jax.training import experts
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.training.distillation import token_divergences
from r1jax.training.logprobs import token_logprobs
from r1jax.training.minibatches import room
from r1jax.types import Mean, Problem, Rollout, Statistic, TokenRows
from r1jax.weights import paths

# Of the tokens that the student drew, in place of one of `distill.DIVERGENCES`.
POLICY_GRADIENT = "policy_gradient"


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model that shares the student's tokenizer, and what makes its parameters."""

  model: ModelConfig
  make: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Asked:
  """What the student answers: problems in the order of steps, and their prompts."""

  order: stream.Stream[Problem]
  prompts: Mapping[str, list[int]]
  sampler: Sampler


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a stage has read and checked before any stage begins.

  Attributes:
    microbatches: M, room for a step of either kind.
    rows: the worked examples in rows of one length, or None where there are none.
    waste: share of padding in them.
    asked: where the student draws.
    is_read: False where an earlier stage has yet to make the examples, so that the last
      three are not known.
  """

  teacher: Teacher
  microbatches: int
  rows: TokenRows | None = None
  waste: float = 0.0
  asked: Asked | None = None
  is_read: bool = False


def prepare_distill(run: Run, name: str, config: Mapping[str, Any]) -> Prepared:
  """Reads the data; raises InputError on what would not work later."""
  training, share = config["training"], config["on_policy"]
  supervised.check(run, config)
  if not 0 <= share <= 1:
    raise InputError(f"config.on_policy={share}: must be 0 to 1, a share of the steps")
  check_loss(config)
  teacher = teacher_of(run, config["teacher"])
  if bool(config["data"]) and share == 0:
    raise InputError(
      "config.data is set, but with config.on_policy=0 the student answers no "
      "problems; leave config.data empty"
    )
  microbatches = 0
  is_to_come = False
  if share < 1 or not config["data"]:
    _need_examples(config)
    is_to_come = sets.is_to_come(config["examples"])
  if share < 1:
    microbatches = training["microbatches"]
  if share > 0:
    rollout = config["rollout"]
    places = room(
      rollout["prompts"] * rollout["group_size"],
      parts=1,
      rows=training["rows"],
      row_length=training["row_length"],
      longest=rollout["prompt_length"] + rollout["max_tokens"],
      shards=run.partition.size("batch"),
    )
    microbatches = max(microbatches, places)
  prepared = Prepared(teacher, microbatches)
  return prepared if is_to_come else _read(run, config, prepared)


def _read(run: Run, config: Mapping[str, Any], prepared: Prepared) -> Prepared:
  """With the data, which earlier stages must have made."""
  share, rows, waste, asked = config["on_policy"], None, 0.0, None
  if share < 1:
    rows, waste = sft.packed(run, {**config, "train_on": "completion"})
    if share > 0:
      # One program for both kinds of step: here each segment is its own beginning.
      rows = rows.replace(parents_BL=rows.segments_BL)
    _order(run, config, rows)
  if share > 0:
    asked = _asked(run, config)
  return dataclasses.replace(
    prepared, rows=rows, waste=waste, asked=asked, is_read=True
  )


def check_loss(config: Mapping[str, Any]) -> None:
  """Raises InputError where `loss` is not known or does not go with the sampling."""
  loss_config, rollout = config["loss"], config["rollout"]
  kind, temperature = loss_config["divergence"], loss_config["temperature"]
  kinds = (*distill.DIVERGENCES, POLICY_GRADIENT)
  one_of(kind, kinds, key="config.loss.divergence")
  if not temperature > 0:
    raise InputError(f"config.loss.temperature={temperature}: must be above 0")
  if kind != POLICY_GRADIENT:
    jax.eval_shape(_divergence(config), np.zeros((1, 1)), np.zeros((1, 1)))
    return
  if loss_config["beta"] is not None:
    raise InputError(
      f"config.loss.beta={loss_config['beta']} is set, but {kind!r} does not use it: "
      "set it to None"
    )
  drawn = {key: rollout[key] for key in ("temperature", "top_k", "top_p", "min_p")}
  want = {"temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
  if config["on_policy"] != 1 or drawn != want:
    said = ", ".join(f"{key}={value}" for key, value in drawn.items())
    raise InputError(
      f"config.loss.divergence={kind!r} is of tokens that the student drew from its "
      f"whole distribution: set config.on_policy to 1 (it is {config['on_policy']}) "
      f"and config.rollout to {want} (it has {said})"
    )


def _divergence(config: Mapping[str, Any]) -> Callable:
  """(log-probs of the student, of the teacher), [..., V] each -> [...]."""
  own = config["loss"]
  return functools.partial(
    distill.token_divergence, divergence=own["divergence"], beta=own["beta"]
  )


def teacher_of(run: Run, section: Mapping[str, str]) -> Teacher:
  """The teacher that a config names.

  Raises:
    InputError: none or two; no such model; another tokenizer.
  """
  path, stage = section["path"], section["stage"]
  if bool(path) == bool(stage):
    raise InputError(
      f"config.teacher.path={path!r} and stage={stage!r}: give one of the two"
    )
  if stage:
    its = run.of(stage)
    return Teacher(its.model, lambda: its.cast(its.params_of(stage)))
  local = paths.local_path(path)
  model, tokenizer = paths.read_config(local), tokenizers.load_tokenizer(local)
  if tokenizer.fingerprint != run.tokenizer.fingerprint:
    raise InputError(
      f"config.teacher.path={path!r} has another tokenizer than the student "
      f"({tokenizer.vocab_size} pieces against {run.tokenizer.vocab_size}), so that "
      "their distributions are not of the same tokens; choose a teacher with the "
      "student's, or train on the teacher's answers as text by a stage of kind 'sft'"
    )
  shardings = run.partition.of_specs(parameters.param_specs(model))
  return Teacher(
    model,
    lambda: run.cast(paths.load_model(local, dtype=np.float32, shardings=shardings)[1]),
  )


def _need_examples(config: Mapping[str, Any]) -> None:
  if not config["examples"]:
    raise InputError(
      f"config.examples is empty, and with config.on_policy={config['on_policy']} some "
      "steps are on them, or on answers to their prompts; give config.examples.source, "
      "or set config.on_policy to 1 and give config.data"
    )


def _asked(run: Run, config: Mapping[str, Any]) -> Asked:
  """Problems of `data`, or those of the examples, and what answers them."""
  if config["data"]:
    found: Sequence[Problem] = problems.load_problems(**config["data"])
  else:
    found = [one.problem for one in sets.examples(run, config["examples"])]
  rollout = config["rollout"]
  encoded = templates.encode(
    found, run.tokenizer, length=rollout["prompt_length"], **config["template"]
  )
  prompts = dict(zip([problem.id for problem in found], encoded, strict=True))
  order = stream.Stream(
    found, batch=rollout["prompts"], seed=run.seed, key="config.rollout.prompts"
  )
  return Asked(order, prompts, supervised.sampler_of(run, config))


def _order(run: Run, config: Mapping[str, Any], rows: TokenRows) -> stream.Stream[int]:
  """The rows of each step on examples."""
  training = config["training"]
  return stream.Stream(
    range(len(rows.tokens_BL)),
    batch=training["rows"] * training["microbatches"],
    seed=run.seed,
    key="the rows of a step, config.training.rows times config.training.microbatches",
  )


def train_distill(
  run: Run, name: str, config: Mapping[str, Any], prepared: Prepared
) -> None:
  """Walks `num_steps` updates; leaves a checkpoint of the last.

  Config: `teacher` (`path` of a model, or a `stage` before this one), `on_policy`,
  `examples` (`data.examples.load_examples`), `data` (`data.problems.load_problems`, or
  empty: the student answers the examples' prompts), `template`, `init` (a stage, or ""
  for `config.model`), `num_steps`, `loss` (`divergence`, `beta`, `temperature`),
  `rollout`, `moe`, `lora`, `optim`, and `training` as of a stage of kind "sft".
  """
  training, teacher = config["training"], prepared.teacher
  if not prepared.is_read:
    prepared = _read(run, config, prepared)
  trainable = Trainable.of(run, config)
  optimizer, rate = trainable.optimizer(config["optim"])
  specs = trainable.specs
  shardings = states.state_shardings(specs, optimizer, run.partition, np.float32)
  batch_sharding = run.partition.sharding(None, "batch")
  update = steps.make_update(
    functools.partial(loss, run, config, teacher.model),
    optimizer,
    shardings,
    batch_sharding,
    bias_rate=config["moe"]["bias_rate"],
  )
  asked, rows = prepared.asked, prepared.rows
  order = None if rows is None else _order(run, config, rows)
  size = {"microbatches": prepared.microbatches, "size": training["rows"]}

  with Stage(run, name, num_steps=config["num_steps"]) as stage:
    abstract = states.abstract_state(specs, optimizer, run.partition, np.float32)
    state = stage.take_up({"train": abstract})
    if state is None:
      params = trainable.fresh(name, config["init"])
      state = states.state_of(params, specs, optimizer, run.partition)
    else:
      state = state["train"]
    frozen = trainable.frozen(config["init"])
    held_frozen = None if asked is None else asked.sampler.hold(frozen)
    frozen = {"own": frozen, "teacher": teacher.make()}
    trainable.announce(name)
    for step in stage.steps():
      seen, work = {}, {}
      draws = is_on_policy(run, name, config, step)
      if draws:
        with run.clock("rollout"):
          weights = asked.sampler.weights(state.params, held_frozen)
          stage.settle()
          batch, used, seen, work = drawn(run, name, config, asked, weights, step)
        index = range(used)
      else:
        batch, index = rows, order.at(step - 1)
        seen = {"pack/waste": prepared.waste}
      with run.clock("update"):
        batch = supervised.take(batch, index, **size)
        own = limits.forward_work(run.machine, run.model, [batch])
        other = limits.forward_work(run.machine, teacher.model, [batch])
        done = own.times(trainable.update_passes)
        work["update"] = done._replace(least_s=done.least_s + other.least_s)
        num_tokens = float(batch.mask_BL.sum())
        state, statistics = update(
          state,
          frozen,
          sharding.place(batch, batch_sharding),
          -(-len(index) // training["rows"]),
          num_tokens,
        )
        stage.settle()
      stage.end_step(
        step,
        {**seen, "distill/on_policy": draws, "optim/lr": rate(step - 1)},
        {"train": state},
        statistics=[statistics],
        work=work,
      )


def is_on_policy(run: Run, name: str, config: Mapping[str, Any], step: int) -> bool:
  """Whether the student draws what a step is on: with the chance `on_policy`."""
  seed = prng.host_seed(run.seed, f"{name}/on_policy", step)
  return bool(np.random.default_rng(seed).random() < config["on_policy"])


def drawn(
  run: Run,
  name: str,
  config: Mapping[str, Any],
  asked: Asked,
  weights: Any,
  step: int,
) -> tuple[TokenRows, int, dict[str, float], dict[str, limits.Work]]:
  """Answers of the student: (rows, how many hold anything, metrics, work by phase)."""
  rollout_config, training = config["rollout"], config["training"]
  samples = rollout_config["group_size"]
  found = asked.order.at(step - 1)
  prompts = [asked.prompts[problem.id] for problem in found]
  key = prng.at(prng.root(run.seed), f"{name}/rollout", step)
  rollout = asked.sampler(weights, prompts, found, key)
  completions = asked.sampler.completions(rollout)
  work = limits.rollout_work(
    run.machine, run.model, weights, prompts, rollout, cache=rollout_config["cache"]
  )
  before = [prompt for prompt in prompts for _ in range(samples)]
  pack = packing.pack(
    [[*prompt, *ids] for prompt, ids in zip(before, completions, strict=True)],
    [len(prompt) for prompt in before],
    row_length=training["row_length"],
    groups=[
      packing.Group(range(q * samples, (q + 1) * samples), len(prompt))
      for q, prompt in enumerate(prompts)
    ],
  )
  if run.is_main:
    lines = _lines(run, name, step, found, prompts, asked.sampler, rollout)
    metrics.write_samples(run.workdir, name, "train", step, lines)
  seen = {
    "rollout/length_mean": rollout.length_B.mean(),
    "rollout/truncated": (~rollout.stopped_B).mean(),
    "rollout/weights_checksum": rollout.weights_checksum,
    "pack/waste": pack.waste,
  }
  return pack.rows, pack.used, seen, {"rollout": work}


def _lines(
  run: Run,
  name: str,
  step: int,
  found: Sequence[Problem],
  prompts: Sequence[Sequence[int]],
  sampler: Sampler,
  rollout: Rollout,
) -> list[dict[str, Any]]:
  """Of samples/*.jsonl; nobody judges them."""
  lines = records(
    run,
    step=step,
    stage=name,
    problems=found,
    prompts=prompts,
    texts=sampler.texts(sampler.completions(rollout)),
    rollout=rollout,
    parts_QG={},
    total_QG=np.zeros((len(found), len(rollout.length_B) // len(found))),
  )
  return [{k: v for k, v in line.items() if k != "reward"} for line in lines]


def loss(
  run: Run,
  config: Mapping[str, Any],
  teacher: ModelConfig,
  params: Any,
  frozen: Mapping[str, Any],
  rows: TokenRows,
) -> tuple[jax.Array, dict[str, Statistic]]:
  """(sum over tokens of what is learnt and what is added to it, metrics)."""
  coef, temperature = config["moe"]["balance_coef"], config["loss"]["temperature"]
  own = Trainable.of(run, config).policy(params, frozen["own"])
  how = {"temperature": temperature, "partition": run.partition}
  learnt = how | {"remat": config["training"]["remat"], "balance": coef != 0}
  if config["loss"]["divergence"] == POLICY_GRADIENT:
    scores = token_logprobs(run.model, own, rows, **learnt)
    other_BL = token_logprobs(teacher, frozen["teacher"], rows, **how).logp_BL
    advantage_BL = distill.on_policy_advantage(scores.logp_BL, other_BL)
    # One update of what was drawn: the ratio is 1.
    cost_BL, _ = policy.reinforce(scores.logp_BL, None, advantage_BL)
    seen_BL = -advantage_BL
  else:
    scores = token_divergences(
      run.model,
      own,
      teacher,
      frozen["teacher"],
      rows,
      divergence=_divergence(config),
      **learnt,
    )
    seen_BL = cost_BL = scores.divergence_BL
  total, count = distill.distillation(cost_BL, rows.mask_BL)
  # Of a policy gradient what it estimates, which is the reverse divergence.
  shown, _ = distill.distillation(seen_BL, rows.mask_BL)
  seen: dict[str, Statistic] = {"loss/distill": Mean(shown, count)}
  if coef:
    added, more = experts.balance_loss(scores.routed, rows.mask_BL, coef)
    total, seen = total + added, seen | more
  return total, jax.lax.stop_gradient(seen | experts.loads(run.model, scores, rows))
