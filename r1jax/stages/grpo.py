"""Reinforcement learning by GRPO, from rollout to update.

A step asks Q problems G times each, judges the answers, compares every answer with its
group, and updates the policy on mini-batches of the rollout. Held-out problems are
answered before the first step, and every `config.eval.every` steps.

Letters: Q problems, G samples per problem, B = Q * G rows of the rollout; of the update
M microbatches, B rows in each, L tokens in a row.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from r1jax import limits, metrics, prng, sharding
from r1jax.data import decontamination, problems, stream, templates
from r1jax.errors import InputError, one_of
from r1jax.models import quantized
from r1jax.objectives import reduce
from r1jax.objectives.advantages import group_advantages
from r1jax.rewards.combine import choose_parts, combine
from r1jax.rewards.pool import RewardPool
from r1jax.sampling import logits
from r1jax.stages import collect
from r1jax.stages.collect import Collector
from r1jax.stages.evaluate import Evaluation
from r1jax.stages.rollouts import Sampler, experts_of, records
from r1jax.stages.run import Run, Stage
from r1jax.stages.trainable import Trainable
from r1jax.training import experts
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.training.logprobs import TokenScores, token_logprobs
from r1jax.training.minibatches import minibatches, room
from r1jax.training.policy import policy_loss, scored
from r1jax.types import Experience, Problem, Statistic, TokenRows

_CONTROLS = ("temperature", "top_k", "top_p", "min_p")
_TRUNCATED_WARNING = 0.2


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a stage has read and checked before any stage begins.

  Attributes:
    train_set: all problems to train on.
    order: those of each step.
    prompts: problem id -> token ids.
    eval_sets: name -> problems.
    layout: where each answer goes in an update, settings of `room`.
  """

  train_set: Sequence[Problem]
  order: stream.Stream[Problem]
  prompts: Mapping[str, list[int]]
  eval_sets: Mapping[str, Sequence[Problem]]
  layout: Mapping[str, int]


def prepare_grpo(run: Run, name: str, config: Mapping[str, Any]) -> Prepared:
  """Reads the data; raises InputError on what would not work later."""
  rollout, training = config["rollout"], config["training"]
  if not rollout["temperature"] > 0:
    raise InputError(
      f"config.rollout.temperature={rollout['temperature']}: must be above 0; equal "
      "answers teach nothing"
    )
  layout = {
    "parts": training["minibatches"],
    "rows": training["rows"],
    "row_length": training["row_length"],
    "longest": rollout["prompt_length"] + rollout["max_tokens"],
    "shards": run.partition.size("batch"),
  }
  room(rollout["prompts"] * rollout["group_size"], **layout)
  Trainable.of(run, config).check(config)
  collect.check(config)
  one_of(rollout["weights"], quantized.WEIGHTS, key="config.rollout.weights")
  one_of(rollout["cache"], quantized.CACHES, key="config.rollout.cache")
  experts.check(run.model, **config["moe"])
  train_set, eval_sets = load(run, name, config)
  encode = functools.partial(
    templates.encode,
    tokenizer=run.tokenizer,
    length=rollout["prompt_length"],
    **config["template"],
  )
  ids = [problem.id for problem in train_set]
  prompts = dict(zip(ids, encode(train_set), strict=True))
  for held_out in eval_sets.values():
    encode(held_out)
  order = stream.Stream(
    train_set, batch=rollout["prompts"], seed=run.seed, key="config.rollout.prompts"
  )
  return Prepared(train_set, order, prompts, eval_sets, layout)


def train_grpo(
  run: Run, name: str, config: Mapping[str, Any], prepared: Prepared
) -> None:
  """Walks `num_steps` rollouts and their updates; leaves a checkpoint of the last.

  Config: `data` and `eval.sets` (`data.problems.load_problems`), `template`, `init` (a
  stage, or "" for `config.model`), `num_steps`, `rollout`, `reward`, `advantage`,
  `truncated`, `loss`, `moe`, `lora`, `reference`, `optim` and `training`; `configs/`
  explains them.
  """
  rollout_config, loss_config = config["rollout"], config["loss"]
  trainable = Trainable.of(run, config)
  optimizer, rate = trainable.optimizer(config["optim"])
  specs = trainable.specs
  shardings = states.state_shardings(specs, optimizer, run.partition, np.float32)
  batch_sharding = run.partition.sharding(None, "batch")
  has_reference = loss_config["kl_coef"] != 0
  sampler = Sampler(
    run,
    trainable,
    prompts=rollout_config["prompts"] + rollout_config["oversample"],
    samples=rollout_config["group_size"],
    prompt_length=rollout_config["prompt_length"],
    max_tokens=rollout_config["max_tokens"],
    slots=rollout_config["slots"],
    stop_strings=rollout_config["stop_strings"],
    draft=rollout_config["draft"],
    draft_tokens=rollout_config["draft_tokens"],
    weights=rollout_config["weights"],
    cache=rollout_config["cache"],
    controls={key: rollout_config[key] for key in _CONTROLS},
    record_experts=config["moe"]["replay"],
  )
  score = steps.make_score(
    functools.partial(scores_alone, run, config), shardings.params, batch_sharding
  )
  update = steps.make_update(
    functools.partial(loss, run, config),
    optimizer,
    shardings,
    batch_sharding,
    bias_rate=config["moe"]["bias_rate"],
  )
  with_old = jax.jit(
    functools.partial(scored, importance_cap=loss_config["importance_cap"])
  )
  copy = jax.jit(
    lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings.params
  )
  abstract = states.abstract_state(specs, optimizer, run.partition, np.float32)
  held = {"train": abstract} | ({"ref": abstract.params} if has_reference else {})

  with (
    reward_pool(config["reward"]) as pool,
    Stage(run, name, num_steps=config["num_steps"]) as stage,
  ):
    collector = Collector(
      run,
      name,
      sampler,
      pool,
      prepared.order,
      prepared.prompts,
      rollout_config,
      num_steps=config["num_steps"],
    )
    everywhere = run.partition.sharding()
    if (drawn := collector.nothing()) is not None:
      held["drawn"] = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        drawn,
      )
    state = stage.take_up(held)
    if state is None:
      params = trainable.fresh(name, config["init"])
      state = {"train": states.state_of(params, specs, optimizer, run.partition)}
      if has_reference:
        state["ref"] = copy(params)
    train, ref_params = state["train"], state.get("ref")
    if "drawn" in state:
      collector.take_up(state["drawn"])
    frozen = trainable.frozen(config["init"])
    held_frozen = sampler.hold(frozen)
    trainable.announce(name)
    pool.warm(prepared.train_set)
    evaluation = None
    if prepared.eval_sets:
      evaluation = Evaluation(
        run,
        name,
        prepared.eval_sets,
        trainable=trainable,
        frozen=frozen,
        held_frozen=None if rollout_config["weights"] else held_frozen,
        template=config["template"],
        pool=pool,
        weights=config["reward"]["weights"],
        prompt_length=rollout_config["prompt_length"],
        **{k: v for k, v in config["eval"].items() if k not in ("every", "sets")},
      )
      if stage.first_step == 1:
        params = train.params
        stage.evaluation(0, functools.partial(evaluation, params, 0))

    for step in stage.steps():
      with run.clock("rollout"):
        collected = collector(
          step,
          functools.partial(sampler.weights, train.params, held_frozen),
          stage.settle,
        )
        asked, prompts, texts = collected.problems, collected.prompts, collected.texts
        rollout, parts_QG = collected.rollout, collected.parts_QG
        completions = sampler.completions(rollout)
        work = {} if collected.work is None else {"rollout": collected.work}

      with run.clock("reward"):
        reward_QG = combine(
          parts_QG, config["reward"]["weights"], normalise=config["reward"]["normalise"]
        )
        cut_QG = (~rollout.stopped_B).reshape(reward_QG.shape)
        shaped_QG, trained_QG = reduce.apply_truncated(
          reward_QG,
          cut_QG,
          truncated=config["truncated"]["kind"],
          penalty=config["truncated"]["penalty"],
        )
        advantage_QG = group_advantages(shaped_QG, **config["advantage"])

      with run.clock("pack"):
        batches = minibatches(
          order=shuffled(run, name, step, len(texts)),
          prompts=prompts,
          prompt_of=np.repeat(np.arange(len(prompts)), rollout_config["group_size"]),
          completions=completions,
          logp=[rollout.logp_BT[row, :n] for row, n in enumerate(rollout.length_B)],
          advantage=advantage_QG.reshape(-1),
          trained=trained_QG.reshape(-1),
          **prepared.layout,
          reduction=loss_config["reduction"],
          length_constant=loss_config["length_constant"],
          experts=experts_of(rollout, prompts),
        )
        padding = np.mean([batch.waste for batch in batches])
        forward = limits.forward_work(
          run.machine, run.model, [batch.experience.rows for batch in batches]
        )
        work["update"] = forward.times(trainable.update_passes)
        if num_scores := (len(batches) > 1) + has_reference:
          work["score"] = forward.times(num_scores)
      statistics: list[Mapping[str, Statistic]] = []
      with run.clock("score"):
        for batch in batches:
          rows = batch.experience = sharding.place(batch.experience, batch_sharding)
          if len(batches) > 1:
            scores = score(train.params, frozen, rows.rows, batch.count)
            batch.experience, seen = with_old(scores, rows)
            statistics.append(seen)
          if has_reference:
            scores = score(ref_params, frozen, rows.rows, batch.count)
            batch.experience = batch.experience.replace(logp_ref_BL=scores.logp_BL)
        # Only so that the clock tells scoring and update apart.
        jax.block_until_ready([batch.experience for batch in batches])
      with run.clock("update"):
        learning_rate = rate((step - 1) * len(batches))
        for batch in batches:
          train, more = update(
            train, frozen, batch.experience, batch.count, batch.denominator
          )
          statistics.append(more)
        refresh_every = config["reference"]["refresh_every"]
        if has_reference and refresh_every > 0 and step % refresh_every == 0:
          ref_params = copy(train.params)
        # While the devices compute.
        lines = records(
          run,
          step=step,
          stage=name,
          problems=asked,
          prompts=prompts,
          texts=texts,
          rollout=rollout,
          parts_QG=parts_QG,
          total_QG=reward_QG,
          advantage_QG=advantage_QG,
        )
        stage.sample(step, lines[0])
        if run.is_main:
          metrics.write_samples(run.workdir, name, "train", step, lines)
          warn_truncated(step, cut_QG.mean())

      state = {"train": train} | ({"ref": ref_params} if has_reference else {})
      if (drawn := collector.held()) is not None:
        state["drawn"] = sharding.place(drawn, everywhere)
      every = config["eval"]["every"]
      due = step == config["num_steps"] or (every > 0 and step % every == 0)
      stage.end_step(
        step,
        {
          "reward/total": reward_QG.mean(),
          **{f"reward/{part}": value.mean() for part, value in parts_QG.items()},
          **{
            f"verifier/{what}": collected.judged[what]
            for what in ("timeouts", "crashes", "errors")
          },
          "rollout/length_mean": rollout.length_B.mean(),
          "rollout/truncated": cut_QG.mean(),
          "rollout/idle_slot_steps": rollout.counts["idle_slot_steps"],
          "rollout/idle_share": rollout.counts["idle_slot_steps"]
          / max(rollout.counts["slot_steps"], 1),
          **draft_metrics(rollout.counts),
          **({"rollout/groups_left": collected.num_left} if "drawn" in held else {}),
          "rollout/prefill_tokens": rollout.counts["prefill_tokens"],
          "rollout/weights_checksum": rollout.weights_checksum,
          **group_metrics(parts_QG["accuracy"]),
          "optim/lr": learning_rate,
          "data/epoch": collected.num_asked / len(prepared.train_set),
          "pack/waste": padding,
        },
        state,
        statistics=statistics,
        work=work,
        evaluate=functools.partial(evaluation, train.params, step)
        if evaluation is not None and due
        else None,
        is_donated=False,
      )


def load(
  run: Run, name: str, config: Mapping[str, Any]
) -> tuple[Sequence[Problem], dict[str, Sequence[Problem]]]:
  """Problems to train on, and sets to evaluate on that share none of their text."""
  eval_sets = {
    key: problems.load_problems(**value)
    for key, value in config["eval"]["sets"].items()
  }
  train_set = problems.load_problems(**config["data"])
  said = [f"{name}: {train_set.name} {_counts(train_set.counts)}"]
  said += [f"{key} {_counts(value.counts)}" for key, value in eval_sets.items()]
  kept: Sequence[Problem] = train_set
  if config["decontaminate"]:
    held_out = [problem for one in eval_sets.values() for problem in one]
    kept, found = decontamination.decontaminate(
      train_set, held_out, n=config["decontaminate"]
    )
    said.append(f"decontamination dropped {found.count}")
    if not kept:
      raise InputError(
        f"all {len(train_set)} problems share {config['decontaminate']} words with an "
        f"evaluation set, for instance {found.examples[0]}; look at config.data, or "
        "raise config.decontaminate (0 is off)"
      )
  run.say("; ".join(said))
  return kept, eval_sets


def _counts(counts: Mapping[str, int]) -> str:
  lost = [f"{key.replace('_', ' ')} {n}" for key, n in counts.items() if n]
  return f"({', '.join(lost)})"


def reward_pool(config: Mapping[str, Any]) -> RewardPool:
  """Judges the parts with a weight, and those that every evaluation shows."""
  names = dict.fromkeys([*config["weights"], "accuracy", "format"])
  limits = ("num_workers", "timeout_s", "batch_timeout_s", "memory_limit_mb")
  return RewardPool(
    choose_parts(names, target_language=config["language"]),
    **{key: config[key] for key in limits},
  )


def shuffled(run: Run, name: str, step: int, rows: int) -> np.ndarray:
  """The order in which rows of a rollout are dealt to mini-batches."""
  seed = prng.host_seed(run.seed, f"{name}/shuffle", step)
  return np.random.default_rng(seed).permutation(rows)


def score_rows(
  run: Run,
  config: Mapping[str, Any],
  params: Any,
  frozen: Any,
  rows: TokenRows,
  *,
  balance: bool = False,
) -> TokenScores:
  """Log-probs of a microbatch under the distribution that it was drawn from."""
  sampling = {key: config["rollout"][key] for key in _CONTROLS}
  return token_logprobs(
    run.model,
    Trainable.of(run, config).policy(params, frozen),
    rows,
    temperature=sampling["temperature"],
    shape_logits=logits.shaper(**sampling),
    remat=config["training"]["remat"],
    balance=balance,
    partition=run.partition,
  )


def scores_alone(
  run: Run, config: Mapping[str, Any], params: Any, frozen: Any, rows: TokenRows
) -> TokenScores:
  """Without where tokens went, which only the loss needs."""
  return score_rows(run, config, params, frozen, rows).replace(routed=None)


def loss(
  run: Run,
  config: Mapping[str, Any],
  params: Any,
  frozen: Any,
  experience: Experience,
) -> tuple[jax.Array, dict[str, Statistic]]:
  coef = config["moe"]["balance_coef"]
  scores = score_rows(run, config, params, frozen, experience.rows, balance=coef != 0)
  total, seen = policy_loss(scores, experience, balance_coef=coef, **config["loss"])
  return total, seen | experts.loads(run.model, scores, experience.rows)


def group_metrics(accuracy_QG: np.ndarray) -> dict[str, float]:
  """Shares of groups without a signal in their accuracy."""
  return {
    "group/solved_all": float((accuracy_QG.min(axis=1) >= 1).mean()),
    "group/solved_none": float((accuracy_QG.max(axis=1) <= 0).mean()),
  }


def draft_metrics(counts: Mapping[str, Any]) -> dict[str, float]:
  """Share of drafted tokens that were drawn too, where tokens are drafted."""
  if not counts["drafted_tokens"]:
    return {}
  return {
    "rollout/draft_accepted": counts["accepted_tokens"] / counts["drafted_tokens"]
  }


def warn_truncated(step: int, share: float) -> None:
  if share > _TRUNCATED_WARNING:
    logging.log_first_n(
      logging.WARNING,
      "%.0f %% of the answers of step %d were cut off at config.rollout.max_tokens; "
      "raise it, or look at config.truncated",
      3,
      100 * share,
      step,
    )
