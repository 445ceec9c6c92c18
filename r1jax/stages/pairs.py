"""Answers of a policy that somebody has judged, as data for models of rewards and for
preference learning.

Every problem is asked several times. "pairwise" compares two of its answers: R1's data
for helpfulness (arXiv 2501.12948, supplement: judged in both orders, averaged, kept
where the gap is large enough, lengths balanced), Llama 3's best and worst by a reward
model (arXiv 2407.21783), right against wrong, or the shortest right answer against the
longest (arXiv 2412.21187). "pointwise" says of an answer whether it is safe (R1's data
for safety), or right. "process" says so of each of its steps (Math-Shepherd, arXiv
2312.08935). It judges a server, a model in this process, or the points of the reward.

Answers that `max_tokens` cut off are no data: as text they would look ended. What has
been drawn, and what has been judged, lies in the run directory in parts, so that a run
that was stopped goes on with what is missing.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.data import pairing, problems, templates
from r1jax.errors import InputError, one_of
from r1jax.rewards import endpoint, judge
from r1jax.rewards.pool import RewardPool
from r1jax.stages import (
  categories,
  decided,
  judgements,
  model_judge,
  model_part,
  products,
  scalar_model,
  sets,
  step_labels,
  supervised,
)
from r1jax.stages.model_part import ModelParts
from r1jax.stages.own_answers import OwnAnswers, summary
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run
from r1jax.terminal import Progress

LABELS = ("pairwise", "pointwise", "process")
JUDGES = ("server", "model", "reward")
# `reward_model.objective` -> the labels that it learns from.
LEARNT_FROM = {"outcome": "pointwise"} | {name: name for name in LABELS}


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a stage has read and checked before any stage begins.

  Attributes:
    problems: all that are asked.
    prompts: problem id -> token ids.
    sampler: what the stage draws with.
    completer: what completes steps, for "process" alone.
    pool: judges answers by parts of the reward.
    ask: makes who is asked for judgements; None where points decide.
  """

  problems: problems.ProblemSet
  prompts: Mapping[str, list[int]]
  sampler: Sampler
  completer: Sampler | None
  pool: RewardPool
  ask: Callable[[], judge.Ask] | None


def prepare_pairs(run: Run, name: str, config: Mapping[str, Any]) -> Prepared:
  """Reads the data; raises InputError on what would not work later."""
  check(config)
  model_part.check(run, config)
  found = problems.load_problems(**config["data"])
  run.say(f"{name}: {found.name} {sets.counts(found.counts)}")
  encoded = templates.encode(
    found,
    run.tokenizer,
    length=config["rollout"]["prompt_length"],
    **config["template"],
  )
  completer = _completer(run, config) if config["labels"] == "process" else None
  return Prepared(
    found,
    dict(zip([problem.id for problem in found], encoded, strict=True)),
    _sampler(run, config),
    completer,
    sets.reward_pool(config, found),
    _who_judges(run, config),
  )


def _who_judges(run: Run, config: Mapping[str, Any]) -> Callable[[], judge.Ask] | None:
  """Makes who is asked for judgements; None where points decide."""
  kind = config["judge"]["kind"]
  if kind == "model":
    return model_judge.of_section(run, config["judge"]["model"])
  if kind == "reward":
    return None
  server = endpoint.of_section(config["reward"]["judge"])
  if server is None:
    raise InputError(
      "config.judge.kind='server' and config.reward.judge.url='': say who is asked, or "
      "set config.judge.kind to 'model' or 'reward'"
    )
  return lambda: server


def _sampler(run: Run, config: Mapping[str, Any], **rollout: Any) -> Sampler:
  """Of the whole model, with some other settings of `rollout`."""
  asks = {**config["rollout"], **rollout}
  return supervised.sampler_of(
    run, {**config, "rollout": asks, "lora": {"rank": 0}, "moe": {}}
  )


def _completer(run: Run, config: Mapping[str, Any]) -> Sampler:
  """Completes a prompt and what an answer to it begins with."""
  rollout, count = config["rollout"], config["steps"]["rollouts"]
  one_of(config["steps"]["labels"], step_labels.LABELS, key="config.steps.labels")
  if count < 1:
    raise InputError(f"config.steps.rollouts={count}: must be 1 or more")
  longest = rollout["prompt_length"] + rollout["max_tokens"]
  if longest + rollout["max_tokens"] > run.model.max_length:
    raise InputError(
      "config.labels='process' draws answers that begin with all but the last step of "
      "another one: config.rollout.prompt_length + 2 * max_tokens = "
      f"{longest + rollout['max_tokens']} are more than the {run.model.max_length} "
      "positions of the model; lower one"
    )
  return _sampler(run, config, group_size=count, prompt_length=longest, slots=0)


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where `labels`, `judge` and `choose` do not go together."""
  labels = one_of(config["labels"], LABELS, key="config.labels")
  kind = one_of(config["judge"]["kind"], JUDGES, key="config.judge.kind")
  own = config["choose"]
  choice = one_of(own["kind"], pairing.CHOICES, key="config.choose.kind")
  one_of(config["judge"]["reads"], scalar_model.READS, key="config.judge.reads")
  for key, value in (
    ("choose.per_problem", own["per_problem"]),
    ("judge.judgements", config["judge"]["judgements"]),
  ):
    if value < 1:
      raise InputError(f"config.{key}={value}: must be 1 or more")
  if labels == "process" and config["judge"]["reads"] != "all":
    raise InputError(
      f"config.judge.reads={config['judge']['reads']!r} with config.labels='process': "
      "the steps are those of the whole answer; set it to 'all'"
    )
  if labels == "process" and kind != "reward":
    raise InputError(
      f"config.labels='process' with config.judge.kind={kind!r}: a step is as good as "
      "the share of right answers that begin with it; set it to 'reward'"
    )
  if kind == "reward" and not categories.parts(config):
    raise InputError(
      "config.judge.kind='reward' and config.reward.weights is empty: say what gives "
      "points, or set config.judge.kind to 'server' or 'model'"
    )
  if labels == "process" and (others := model_part.names(config)):
    raise InputError(
      f"config.labels='process' with weights for {', '.join(others)}: completions of "
      "steps are judged by their text alone; leave them out of config.reward"
    )
  if choice != "random" and (labels != "pairwise" or kind != "reward"):
    raise InputError(
      f"config.choose.kind={choice!r} is of pairs by points: set it to 'random', or "
      f"config.labels to 'pairwise' and config.judge.kind to 'reward' (they are "
      f"{labels!r} and {kind!r})"
    )
  by_threshold = pairing.CHOICES[choice].by_threshold or (
    labels != "pairwise" and kind == "reward"
  )
  how = f"config.labels={labels!r}, config.judge.kind={kind!r} and {choice!r}"
  for key, is_used in (("min_gap", labels == "pairwise"), ("threshold", by_threshold)):
    if is_used and own[key] is None:
      raise InputError(f"config.choose.{key} is missing, which {how} use")
    if not is_used and own[key] is not None:
      raise InputError(
        f"config.choose.{key}={own[key]} is set, but {how} do not use it; set it to "
        "None"
      )
  if own["min_gap"] is not None and own["min_gap"] < 0:
    raise InputError(f"config.choose.min_gap={own['min_gap']}: must be 0 or more")
  if own["balance_lengths"] and (labels != "pairwise" or choice == "shortest_longest"):
    raise InputError(
      f"config.choose.balance_lengths=True with {how}: only pairs that do not differ "
      "in length on purpose can be balanced; set it to False"
    )
  of_pairs = labels == "pairwise"
  if config["rollout"]["group_size"] < 1 + of_pairs:
    raise InputError(
      f"config.rollout.group_size={config['rollout']['group_size']}: a problem must be "
      f"asked {1 + of_pairs} times or more for {labels!r} labels"
    )


def make_pairs(
  run: Run, name: str, config: Mapping[str, Any], prepared: Prepared
) -> None:
  """Draws answers, has them judged, and leaves `run.product(name)`.

  Config: `data` (`data.problems.load_problems`), `init` (a stage, or "" for
  `config.model`), `labels`, and the sections that `configs/common.py` explains.

  Raises:
    InputError: nothing is left.
    Stopped: the run was asked to stop; what is drawn and judged is kept.
  """
  run.clock.take()
  size, samples = config["rollout"]["prompts"], config["rollout"]["group_size"]
  sieve, records = decided.sieve(), []
  num_parts = -(-len(prepared.problems) // size)
  is_judged = config["judge"]["kind"] != "reward" or config["labels"] == "process"
  progress = Progress(name, num_parts * (1 + is_judged), console=run.console)

  def on_part(part: int, num_parts: int) -> None:
    del num_parts
    progress.step(part, {})
    run.watchdog.beat(part)

  with prepared.pool as pool, progress:
    pool.warm(prepared.problems)
    weights = prepared.sampler.weights(run.params_of(config["init"]))
    own = OwnAnswers(
      run,
      name,
      config,
      prepared.sampler,
      pool,
      prepared.problems,
      part="total",
      more_parts=ModelParts(run, config),
      on_part=on_part,
    )
    lines, counts, _ = own.drawn(1, 1, weights, prepared.prompts)
    if config["labels"] == "process":
      says = judgements.Steps(
        run,
        name,
        config,
        prepared.problems,
        prepared.prompts,
        completer=prepared.completer,
        weights=weights,
        pool=pool,
      )
    else:
      del weights  # room for a model that judges
      says = judgements.Says(run, config, prepared.ask)
    asked = [
      judgements.asked_of(
        run,
        config,
        problem,
        lines[place * samples : (place + 1) * samples],
        sieve,
      )
      for place, problem in enumerate(prepared.problems)
    ]
    for number in range(num_parts):
      part = asked[number * size : (number + 1) * size]
      records += judgements.kept(
        run,
        name,
        [record for one in part for record in one],
        says,
        number=number,
        num_parts=num_parts,
      )
      if is_judged:
        on_part(num_parts + number + 1, num_parts)
    # Both may have asked a model.
    asks = collections.Counter(pool.seen())
    asks.update(says.seen())
  made = decided.lines_of(config, records, sieve)
  if config["choose"]["balance_lengths"]:
    made = decided.balanced(run, config, made, sieve)
  if not made:
    raise InputError(
      f"nothing is left of {len(lines)} answers {sets.counts(sieve.counts)}; look "
      "at config.choose and config.judge, or raise config.rollout.group_size or "
      "max_tokens"
    )
  seen = summary(lines) | {
    f"verifier/{what}": counts[what] for what in ("timeouts", "crashes", "errors")
  }
  seen |= {"pairs/answers": len(lines), "pairs/kept": len(made)}
  seen |= {f"pairs/dropped_{reason}": n for reason, n in sieve.counts.items()}
  seen |= decided.statistics(run, config, records, made) | asks
  run.say(f"{name}: kept {len(made)}; dropped {sets.counts(sieve.counts)}")
  products.write(run, name, made, sieve.examples, seen | run.clock.take())
