"""Answers of a model to sets of problems: drawn, judged, and laid out as lines.

Drawing and judging are those of training (`Sampler`, `OwnAnswers`): a part of a set is
kept on disk as soon as it is judged, so that what was stopped goes on there.

Letters: Q problems, G answers to each.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from r1jax import export, metrics
from r1jax.errors import InputError
from r1jax.evals import measures, votes
from r1jax.evaluate.settings import Set
from r1jax.rewards.pool import RewardPool
from r1jax.sharding import Partition
from r1jax.stages import evaluate, scalar_model, setup
from r1jax.stages.own_answers import OwnAnswers
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run
from r1jax.stages.scalar_model import Verdicts
from r1jax.terminal import Progress
from r1jax.types import Problem
from r1jax.watchdog import PhaseClock, Watchdog

Line = Mapping[str, Any]
_NO_ADAPTER = {"lora": {"rank": 0}}


def run_of(
  source: export.Source,
  workdir: Path,
  partition: Partition,
  *,
  seed: int,
  dtype: Any,
  console: Console,
  stop_asked: Callable[[], bool],
  model_params: Callable[[], Any],
) -> Run:
  """What a run hands to those who draw and judge, without the run.

  Args:
    workdir: where they write, or read what a stage has made.
    model_params: see `Run`.
  """
  return Run(
    workdir=workdir,
    stages=(),
    seed=seed,
    model=source.model,
    tokenizer=source.tokenizer,
    partition=partition,
    compute_dtype=dtype,
    model_params=model_params,
    models={},
    writer=metrics.Writer(workdir, tensorboard=False, is_main=False),
    clock=PhaseClock(),
    watchdog=Watchdog(None, limit_s=None),
    console=console,
    checkpoint={},
    on_change="error",
    profile_steps=(),
    sample_every=0,
    stop_asked=stop_asked,
  )


def verdicts_of(
  source: export.Source,
  run: Run,
  problems: Sequence[Problem],
  *,
  max_tokens: int,
  rows: int,
  aggregation: str,
) -> Verdicts:
  """A reward model that is asked about answers of up to `max_tokens`.

  Args:
    source: of a checkpoint of a stage of the kind "reward_model".
    run: that answers, whose tokens it must read.

  Raises:
    InputError: another stage, other tokens, or rows that do not split over devices.
  """
  workdir, stage = Path(source.made_from["checkpoint"]), source.made_from["stage"]
  where = f"--reward_model={workdir}/checkpoints/{stage}"
  if source.tokenizer.fingerprint != run.tokenizer.fingerprint:
    raise InputError(
      f"{where} has another tokenizer than the model that is evaluated; name one that "
      "was trained from it"
    )
  shards = run.partition.size("batch")
  if rows < 1 or rows % shards:
    raise InputError(
      f"config.reward_model.rows={rows}: must be a multiple of {shards}, the parts "
      "that a batch is split into over the devices"
    )
  config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["config"]
  config |= setup.of_stage(config, stage)
  _, model_params = setup.make_model(config, source.tokenizer, run.partition)
  own = run_of(
    source,
    workdir,
    run.partition,
    seed=run.seed,
    dtype=run.compute_dtype,
    console=run.console,
    stop_asked=run.stop_asked,
    model_params=model_params,
  )
  settings = setup.stage_sections(config)[stage]
  if settings["kind"] != scalar_model.KIND:
    raise InputError(
      f"{where} is of the kind {settings['kind']!r}; name the checkpoints of a stage "
      f"of the kind {scalar_model.KIND!r}"
    )
  longest = max(
    len(scalar_model.prompt_ids(own, settings["template"], problem))
    for problem in problems
  )
  return Verdicts(
    own,
    stage,
    rows=rows,
    row_length=longest + max_tokens + 1,
    aggregation=aggregation,
  )


def samplers_of(
  run: Run, config: Mapping[str, Any], sets: Sequence[Set]
) -> dict[int, Sampler]:
  """{number of answers to a problem: what draws them} of all sets.

  Args:
    config: settled; see `settings.resolved`.
  """
  found = {}
  for samples in dict.fromkeys(one.samples for one in sets):
    own = {one.name: one.problems for one in sets if one.samples == samples}
    drawing = {"eval": {**config["eval"], "samples": samples}}
    found[samples] = evaluate.sampler_of(run, {**config, **_NO_ADAPTER, **drawing}, own)
  return found


def greedy_sampler(run: Run, config: Mapping[str, Any], sets: Sequence[Set]) -> Sampler:
  """What draws one answer to each problem at temperature 0."""
  drawing = {"eval": {**config["eval"], "samples": 1, "temperature": 0.0, "top_p": 1.0}}
  return evaluate.sampler_of(
    run,
    {**config, **_NO_ADAPTER, **drawing},
    {one.name: one.problems for one in sets},
  )


def drawn(
  run: Run,
  name: str,
  one: Set,
  prompts: Sequence[Sequence[int]],
  *,
  config: Mapping[str, Any],
  sampler: Sampler,
  weights: Any,
  pool: RewardPool,
  verdicts: Verdicts | None,
) -> tuple[list[list[Line]], int]:
  """Lines of samples.jsonl, [Q, G], and the number of tokens that were drawn now.

  Args:
    name: of the answers, in which the draws are a function of (seed, name, problem,
      number of the answer, position).

  Raises:
    Stopped: the run was asked to stop; the parts that are judged are kept.
  """
  samples = sampler.plan.samples

  def more_parts(parts_QG, problems, completions):
    if verdicts is None:
      return parts_QG
    asked = [problem for problem in problems for _ in range(samples)]
    said = verdicts(asked, completions).reshape(-1, samples)
    return {**parts_QG, measures.MODEL: said}

  with Progress(name, len(one.problems), console=run.console) as progress:
    size = sampler.num_prompts
    own = OwnAnswers(
      run,
      name,
      {
        "rollout": {"prompts": size, "group_size": samples, "cache": ""},
        "reward": config["reward"],
      },
      sampler,
      pool,
      one.problems,
      part="accuracy",
      more_parts=more_parts,
      on_part=lambda part, _: progress.step(min(part * size, len(one.problems)), {}),
    )
    by_id = {p.id: ids for p, ids in zip(one.problems, prompts, strict=True)}
    found, counts, work = own.drawn(1, 0, weights, by_id)
  lost = {key: int(n) for key, n in counts.items() if n and key != "seconds"}
  if lost:
    said = ", ".join(f"{n} {key}" for key, n in lost.items())
    run.say(f"{name}: answers that no verifier judged, which count as wrong: {said}")
  found_QG = [found[i : i + samples] for i in range(0, len(found), samples)]
  votes_QG = _votes(one.problems, found_QG, pool)
  lines = [
    [_line(one, problem, line, vote) for line, vote in zip(own, cast, strict=True)]
    for problem, own, cast in zip(one.problems, found_QG, votes_QG, strict=True)
  ]
  return lines, int(work["rollout"].tokens) if work else 0


def _votes(
  problems: Sequence[Problem], found_QG: Sequence[Sequence[Line]], pool: RewardPool
) -> list[list[tuple[str | None, str | None]]]:
  """(key of the vote, answer as it stands) of each answer; see `votes`."""
  ballots_QG = []
  pairs: list[tuple[int, votes.Ballot, votes.Ballot]] = []
  for q, (problem, own) in enumerate(zip(problems, found_QG, strict=True)):
    record = {"verifier": problem.verifier, "meta": problem.meta}
    ballots_QG.append([votes.ballot(line["completion"], record) for line in own])
    if problem.verifier == "math":
      pairs += [(q, *pair) for pair in votes.comparisons(ballots_QG[-1])]
  same: list[set[tuple[str, str]]] = [set() for _ in problems]
  if pairs:
    judged, _, _ = pool.score_some(
      [f"\\boxed{{{later.shown}}}" for _, _, later in pairs],
      [Problem("a vote", "", earlier.shown, "math") for _, earlier, _ in pairs],
    )
    for (q, earlier, later), parts in zip(pairs, judged, strict=True):
      if parts["accuracy"] >= measures.RIGHT:
        same[q].add((earlier.key, later.key))
  return [
    [
      (key, None if ballot is None else ballot.shown)
      for key, ballot in zip(votes.merged(own, equal), own, strict=True)
    ]
    for own, equal in zip(ballots_QG, same, strict=True)
  ]


def _line(
  one: Set, problem: Problem, line: Line, vote: tuple[str | None, str | None]
) -> dict[str, Any]:
  reward = {name: value for name, value in line["reward"].items() if name != "total"}
  points = reward.get("accuracy")
  key, shown = vote
  return {
    "set": one.name,
    "problem_id": problem.id,
    "category": problem.meta["category"],
    "sample": line["sample"],
    "prompt": line["prompt"],
    "completion": line["completion"],
    "answer": problem.answer,
    "verifier": problem.verifier,
    "extracted": shown,
    "vote": key,
    "right": None if points is None else points >= measures.RIGHT,
    "reward": reward,
    "length": line["length"],
    "stop": line["stop"],
    "seed": line["seed"],
    "tokens": line["tokens"],
  }
