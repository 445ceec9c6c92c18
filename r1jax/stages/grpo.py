"""Reinforcement learning from rewards, from rollout to update: GRPO and its relatives.

A step asks Q problems G times each, judges the answers, makes advantages of what they
were given, and updates the policy on mini-batches of the rollout, with PPO a critic
too. Which algorithm that is, is said by the settings; `objectives.recipes` names those
of papers. Held-out problems are answered before the first step, and every
`config.eval.every` steps.

Letters: Q problems, G samples per problem.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from r1jax import metrics
from r1jax.data import stream, templates
from r1jax.errors import InputError, one_of
from r1jax.rewards.pool import RewardPool
from r1jax.stages import (
  advantages,
  asking,
  categories,
  collect,
  evaluate,
  learn,
  model_part,
  reference,
  sets,
)
from r1jax.stages.collect import Collector
from r1jax.stages.critic import Critic
from r1jax.stages.greedy import Greedy
from r1jax.stages.learn import Answers, Learner, abstract_everywhere, on_devices
from r1jax.stages.model_part import ModelParts
from r1jax.stages.rollouts import Sampler, cut, experts_of, records
from r1jax.stages.run import Run, Stage
from r1jax.stages.trainable import Trainable
from r1jax.training import experts
from r1jax.training.minibatches import room
from r1jax.types import Problem

_TRUNCATED_WARNING = 0.2
CURRICULA = ("none", "pass_rate")


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a stage has read and checked before any stage begins.

  Attributes:
    train_set: all problems to train on.
    asking: those of each rollout.
    prompts: problem id -> token ids.
    eval_sets: name -> problems.
    layout: where each answer goes in an update, settings of `room`.
    sampler, eval_sampler: what the stage draws and is evaluated with; None for no sets.
    greedy, critic: of the estimators that need them.
    pool: judges answers; its processes are started when they are needed.
  """

  train_set: Sequence[Problem]
  asking: asking.Asking
  prompts: Mapping[str, list[int]]
  eval_sets: Mapping[str, Sequence[Problem]]
  layout: Mapping[str, int]
  sampler: Sampler
  eval_sampler: Sampler | None
  greedy: Greedy | None
  critic: Critic | None
  pool: RewardPool


def prepare_grpo(run: Run, name: str, config: Mapping[str, Any]) -> Prepared:
  """Reads the data; raises InputError on what would not work later."""
  rollout, training = config["rollout"], config["training"]
  if not rollout["temperature"] > 0:
    raise InputError(
      f"config.rollout.temperature={rollout['temperature']}: must be above 0; equal "
      "answers teach nothing"
    )
  if training["epochs"] < 1:
    raise InputError(f"config.training.epochs={training['epochs']}: must be 1 or more")
  layout = {
    "parts": training["minibatches"],
    "rows": training["rows"],
    "row_length": training["row_length"],
    "longest": rollout["prompt_length"] + rollout["max_tokens"],
    "shards": run.partition.size("batch"),
  }
  room(rollout["prompts"] * rollout["group_size"], **layout)
  Trainable.of(run, config).check(config)
  model_part.check(run, config)
  for part in (collect, advantages, reference, asking, learn):
    part.check(config)
  experts.check(run.model, **config["moe"])
  sampler = collect.sampler_of(run, config)
  estimator = config["advantage"]["estimator"]
  greedy = Greedy(run, config) if estimator == "remax" else None
  critic = Critic(run, config) if estimator == "gae" else None
  train_set, eval_sets = sets.load(run, name, config)
  eval_sampler = evaluate.sampler_of(run, config, eval_sets) if eval_sets else None
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
  return Prepared(
    train_set=train_set,
    asking=asked_by(run, name, config, train_set),
    prompts=prompts,
    eval_sets=eval_sets,
    layout=layout,
    sampler=sampler,
    eval_sampler=eval_sampler,
    greedy=greedy,
    critic=critic,
    pool=sets.reward_pool(config, [*train_set, *itertools.chain(*eval_sets.values())]),
  )


def asked_by(
  run: Run, name: str, config: Mapping[str, Any], train_set: Sequence[Problem]
) -> asking.Asking:
  """What a stage's `curriculum` asks for."""
  order = stream.Stream(
    train_set,
    batch=config["rollout"]["prompts"],
    seed=run.seed,
    key="config.rollout.prompts",
  )
  kind = one_of(config["curriculum"]["kind"], CURRICULA, key="config.curriculum.kind")
  if kind == "none":
    return asking.InOrder(order)
  how = {key: config["curriculum"][key] for key in ("decay", "floor")}
  return asking.ByPassRate(train_set, seed=run.seed, name=name, **how)


def train_grpo(
  run: Run, name: str, config: Mapping[str, Any], prepared: Prepared
) -> None:
  """Walks `num_steps` rollouts and their updates; leaves a checkpoint of the last.

  Config: `data` and `eval.sets` (`data.problems.load_problems`), `init` (a stage, or ""
  for `config.model`), `num_steps`, and the sections that `configs/common.py` explains.
  """
  num_prompts, group_size = (config["rollout"][k] for k in ("prompts", "group_size"))
  sampler = prepared.sampler
  learner = Learner(run, name, config, prepared.layout, prepared.critic)
  more_parts = ModelParts(run, config)
  has_categories = len({categories.of(problem) for problem in prepared.train_set}) > 1

  with (
    prepared.pool as pool,
    Stage(run, name, num_steps=config["num_steps"]) as stage,
  ):
    collector = Collector(
      run, name, sampler, pool, prepared.asking, prepared.prompts, config
    )
    state = stage.take_up(
      learner.abstract() | abstract_everywhere(collector.held(), run)
    )
    learner.begin(state)
    collector.take_up(state or {}, stage.first_step)
    held_frozen = sampler.hold(learner.frozen)
    pool.warm(prepared.train_set)
    evaluation = None
    if prepared.eval_sets:
      evaluation = evaluate.Evaluation(
        run,
        name,
        config,
        prepared.eval_sets,
        prepared.eval_sampler,
        frozen=learner.frozen,
        held_frozen=None if config["rollout"]["weights"] else held_frozen,
        pool=pool,
      )
      if stage.first_step == 1:
        params = learner.train.params
        stage.evaluation(0, functools.partial(evaluation, params, 0))

    for step in stage.steps():
      with run.clock("rollout"):
        weights = functools.partial(sampler.weights, learner.train.params, held_frozen)
        collected = collector(step, weights, stage.settle)
        greedy_Q = None
        if prepared.greedy is not None:
          greedy_Q = prepared.greedy(
            pool,
            weights(),
            collected.problems[:num_prompts],
            collected.prompts[:num_prompts],
            more_parts,
          )

      with run.clock("reward"):
        everything = collected.rollout
        parts_QG, steps = more_parts.with_steps(
          config["advantage"]["steps"],
          collected.parts_QG,
          collected.problems,
          sampler.completions(everything),
        )
        judged = advantages.rewards(
          config,
          parts_QG,
          collected.problems,
          everything.length_B.reshape(-1, group_size),
          everything.stopped_B.reshape(-1, group_size),
        )
        reward_QG, trained_QG = (
          x[:num_prompts] for x in (judged.taken_QG, judged.trained_QG)
        )
        steps = advantages.step_rewards(config, judged, collected.problems, steps)
        fills_Q1 = np.arange(num_prompts)[:, None] >= collected.num_trained

      with run.clock("pack"):
        rollout = cut(everything, range(num_prompts))
        prompts = collected.prompts[:num_prompts]
        answers = Answers(
          prompts=prompts,
          completions=sampler.completions(rollout),
          logp=[rollout.logp_BT[row, :n] for row, n in enumerate(rollout.length_B)],
          trained_QG=np.where(fills_Q1, 0, trained_QG),
          experts=experts_of(rollout, prompts),
        )
        batches = learner.pack(answers, step, tokens={})
        padding = np.mean([batch.waste for batch in batches])
        work = learner.work(batches)
        if collected.work is not None:
          work["rollout"] = collected.work

      with run.clock("score"):
        tokens, statistics = learner.score(batches)
        made, seen = learner.advantages(
          batches, answers, tokens, reward_QG, greedy_Q, steps
        )
        # Only so that the clock tells scoring and update apart.
        jax.block_until_ready([batch.experience for batch in batches])

      with run.clock("update"):
        learning_rate = learner.rate((step - 1) * learner.updates)
        statistics += learner.update(step, batches, answers, tokens, made)
        # While the devices compute.
        advantage_QG = np.full(judged.total_QG.shape, np.nan)
        advantage_QG[:num_prompts] = made.mean_B.reshape(-1, group_size)
        lines = records(
          run,
          step=step,
          stage=name,
          problems=collected.problems,
          prompts=collected.prompts,
          texts=collected.texts,
          rollout=everything,
          parts_QG=judged.parts_QG,
          total_QG=judged.total_QG,
          advantage_QG=advantage_QG,
        )
        stage.sample(step, lines[0])
        if run.is_main:
          metrics.write_samples(run.workdir, name, "train", step, lines)
          warn_truncated(step, judged.cut_QG.mean())

      every = config["eval"]["every"]
      due = step == config["num_steps"] or (every > 0 and step % every == 0)
      counts = everything.counts
      stage.end_step(
        step,
        {
          "reward/total": judged.total_QG.mean(),
          **(
            categories.totals(collected.problems, judged.total_QG)
            if has_categories
            else {}
          ),
          **categories.means(judged.parts_QG),
          **collected.seen,
          **seen,
          "rollout/length_mean": everything.length_B.mean(),
          "rollout/truncated": judged.cut_QG.mean(),
          "rollout/idle_slot_steps": counts["idle_slot_steps"],
          "rollout/idle_share": counts["idle_slot_steps"]
          / max(counts["slot_steps"], 1),
          **draft_metrics(counts),
          "rollout/prefill_tokens": counts["prefill_tokens"],
          "rollout/weights_checksum": everything.weights_checksum,
          **group_metrics(judged.parts_QG["accuracy"]),
          "optim/lr": learning_rate,
          "data/epoch": collected.num_asked / len(prepared.train_set),
          "pack/waste": padding,
        },
        learner.state() | on_devices(collector.held(), run),
        statistics=statistics,
        work=work,
        evaluate=functools.partial(evaluation, learner.train.params, step)
        if evaluation is not None and due
        else None,
        is_donated=False,
      )


def group_metrics(accuracy_QG: np.ndarray) -> dict[str, float]:
  """Shares of groups without a signal in their accuracy, among those that have one."""
  accuracy_QG = accuracy_QG[~np.isnan(accuracy_QG).any(axis=1)]
  if not len(accuracy_QG):
    return {}
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
