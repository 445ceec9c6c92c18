"""Answers of a policy that are kept, as examples for supervised training.

Every problem is asked several times. Kept are right answers (DeepSeek-R1's cold start
and its second fine-tuning, arXiv 2501.12948, sections 2.3.1 and 2.3.3), answers that
most others agree with (Huang et al., arXiv 2210.11610), or the best by a reward model
(Llama 3, arXiv 2407.21783, section 4.2.2). Those that are hard to read are left out, a
model may write the others anew, other data are added, and shares of categories kept.

What has been drawn lies in the run directory, so that a run that was stopped draws only
what is missing. The rest is a function of it, and of replies where a model rewrites.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.data import balancing, filters, formats, problems, templates
from r1jax.data.examples import Example, Made, load_examples
from r1jax.data.filters import Sieve
from r1jax.data.formats import Exemplar
from r1jax.errors import InputError, one_of
from r1jax.rewards import combine, endpoint, rewriter
from r1jax.rewards.pool import RewardPool
from r1jax.stages import (
  categories,
  choosing,
  mixing,
  model_part,
  products,
  sets,
  supervised,
)
from r1jax.stages.model_part import ModelParts
from r1jax.stages.own_answers import Line, OwnAnswers, summary
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run
from r1jax.terminal import Progress
from r1jax.types import Problem

_EXAMPLE_KEYS = tuple(inspect.signature(load_examples).parameters)
_EXAMPLES = 5  # kept of what each filter dropped


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a stage has read and checked before any stage begins.

  Attributes:
    problems: all that are asked.
    prompts: problem id -> token ids.
    held_out: problems of which nothing may be in the set.
    exemplars: of a file; those of few-shot formats, and of the prompts.
    also: name -> other examples, without those that a stage has yet to make.
    sampler: what the stage draws with.
    pool: judges answers.
    ask: who writes answers anew; None leaves them as they are.
    sieve: has dropped problems already.
  """

  problems: Sequence[Problem]
  prompts: Mapping[str, list[int]]
  held_out: Sequence[Problem]
  exemplars: Sequence[Exemplar]
  also: Mapping[str, Sequence[Example]]
  sampler: Sampler
  pool: RewardPool
  ask: endpoint.Endpoint | None
  sieve: Sieve


def prepare_rejection(run: Run, name: str, config: Mapping[str, Any]) -> Prepared:
  """Reads the data; raises InputError on what would not work later."""
  check(config)
  config = judging_all(config)
  model_part.check(run, config)
  found = problems.load_problems(**config["data"])
  held_out = [
    problem
    for settings in config["held_out"].values()
    for problem in problems.load_problems(**settings)
  ]
  sieve = Sieve(_EXAMPLES, _shown)
  kept = sieve("contaminated", found, mixing.contaminated(config, held_out))
  run.say(f"{name}: {found.name} {sets.counts(found.counts)}")
  if not kept:
    raise InputError(
      f"all {len(found)} problems share {config['decontaminate']} words with one of "
      f"config.held_out, for instance {sieve.examples[0]['why']}; look at config.data, "
      "or raise config.decontaminate (0 is off)"
    )
  also = {
    key: sets.examples(run, _source(settings))
    for key, settings in config["also"].items()
    if not sets.is_to_come(_source(settings))
  }
  return Prepared(
    problems=kept,
    prompts=_prompts(run, config, kept),
    held_out=held_out,
    exemplars=_exemplars(config),
    also=also,
    sampler=supervised.sampler_of(run, {**config, "lora": {"rank": 0}, "moe": {}}),
    pool=sets.reward_pool(config, kept, needed=[config["choose"]["part"]]),
    ask=choosing.rewriter_of(config),
    sieve=sieve,
  )


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where settings are not known or do not go together."""
  choose, keep = config["choose"], config["keep"]
  kind = one_of(choose["kind"], choosing.CHOICES, key="config.choose.kind")
  for key in ("part", "least"):
    is_used = key in choosing.CHOICES[kind]
    if is_used != (choose[key] is not None):
      state = (
        "is missing" if is_used else f"{choose[key]!r} is not used: set it to None"
      )
      raise InputError(f"config.choose.{key} {state}, with kind={kind!r}")
  models = (*config["reward"]["models"], model_part.MAJORITY)
  parts = [*combine.PARTS, *models, "total"]
  for key, used in (
    (
      "config.choose.part",
      [choose["part"]] if "part" in choosing.CHOICES[kind] else [],
    ),
    ("config.keep.least", keep["least"]),
  ):
    for part in used:
      one_of(part, parts, key=key)
  bounds = {key: keep[key] for key in (*filters.MEASURES, "foreign_words")}
  for key, most in {**bounds, "per_problem": keep["per_problem"]}.items():
    if most is not None and most < 0:
      raise InputError(f"config.keep.{key}={most}: must be 0 or more")
  balancing.check_shares(config["shares"])
  for name in config["formats"]["names"]:
    one_of(name, formats.FORMATS, key="config.formats.names")
  if config["formats"]["names"] and config["formats"]["num_exemplars"] < 1:
    raise InputError(
      f"config.formats.num_exemplars={config['formats']['num_exemplars']}: must be 1 "
      "or more"
    )
  for key, settings in config["also"].items():
    for needed in ("source", "category", "count"):
      if needed not in settings:
        raise InputError(f"config.also.{key}.{needed} is missing")
    for name in _source(settings):
      one_of(name, _EXAMPLE_KEYS, key=f"a key of config.also.{key}")
  if config["rewrite"]["endpoint"]["url"]:
    form = config["rewrite"]["form"]
    places = [form.find(f"{{{slot}}}") for slot in rewriter.SLOTS]
    if not 0 <= places[0] < places[1]:
      raise InputError(
        f"config.rewrite.form={form!r}: must hold {{thought}} and, behind it, "
        "{summary}"
      )
    if kind == "best":
      raise InputError(
        "config.rewrite.endpoint.url is set, but with config.choose.kind='best' nobody "
        "says whether what it writes is as good; leave it ''"
      )


def judging_all(config: Mapping[str, Any]) -> dict[str, Any]:
  """Settings in which every part that is read is judged."""
  read = dict.fromkeys([*config["keep"]["least"], config["choose"]["part"]])
  return categories.with_parts(
    config, [part for part in read if part not in (None, "total")]
  )


def _prompts(
  run: Run, config: Mapping[str, Any], found: Sequence[Problem]
) -> dict[str, list[int]]:
  """By problem; behind the exemplars of a file, as paths are drawn in the paper."""
  exemplars = _exemplars(config)
  asked = found
  if config["formats"]["names"]:
    for problem in found:
      if problem.messages:
        raise InputError(
          f"problem {problem.id!r} is a conversation, which has no formats; leave "
          "config.formats.names empty"
        )
    if exemplars:
      asked = [
        dataclasses.replace(p, prompt=formats.asked(p.prompt, exemplars)) for p in found
      ]
  encoded = templates.encode(
    asked,
    run.tokenizer,
    length=config["rollout"]["prompt_length"],
    **config["template"],
  )
  return dict(zip([problem.id for problem in found], encoded, strict=True))


def _exemplars(config: Mapping[str, Any]) -> list[Exemplar]:
  own = config["formats"]
  if not own["names"] or not own["exemplars"]:
    return []
  return formats.read_exemplars(own["exemplars"])[: own["num_exemplars"]]


def _source(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Of `config.also`, what `sets.examples` reads."""
  return {k: v for k, v in settings.items() if k not in ("category", "count")}


def _shown(item: Problem | Made) -> dict[str, Any]:
  if isinstance(item, Problem):
    return {"problem_id": item.id, "prompt": item.prompt}
  return item.line()


def make_rejection(
  run: Run, name: str, config: Mapping[str, Any], prepared: Prepared
) -> None:
  """Draws answers, chooses among them, and leaves `run.product(name)`.

  Config: `data` and `held_out` (`data.problems.load_problems`), `decontaminate`, `init`
  (a stage, or "" for `config.model`), and what `configs/common.py` explains.

  Raises:
    InputError: nothing is left.
    Stopped: the run was asked to stop; what is drawn is kept.
  """
  config = judging_all(config)
  run.clock.take()
  num_parts = -(-len(prepared.problems) // config["rollout"]["prompts"])
  with prepared.pool as pool:
    pool.warm(prepared.problems)
    with Progress(name, num_parts, console=run.console) as progress:

      def on_part(part: int, num_parts: int) -> None:
        progress.step(part, {})
        run.watchdog.beat(part)

      own = OwnAnswers(
        run,
        name,
        config,
        prepared.sampler,
        pool,
        prepared.problems,
        part=config["choose"]["part"] or "total",
        more_parts=ModelParts(run, config),
        on_part=on_part,
      )
      weights = prepared.sampler.weights(run.params_of(config["init"]))
      lines, counts, work = own.drawn(1, 1, weights, prepared.prompts)
      del weights
    seen = summary(lines) | {
      f"verifier/{what}": counts[what] for what in ("timeouts", "crashes", "errors")
    }
    made: list[Made] = []
    if run.is_main:
      with run.clock("choose"):
        made, found = chosen(run, name, config, prepared, pool, lines)
      seen |= found | pool.seen()
  times = run.clock.take()
  if work:
    seen["rollout/tokens_per_s"] = work["rollout"].tokens / times["time/rollout_s"]
  dropped = prepared.sieve.examples
  products.write(run, name, [one.line() for one in made], dropped, seen | times)


def chosen(
  run: Run,
  name: str,
  config: Mapping[str, Any],
  prepared: Prepared,
  pool: RewardPool,
  lines: Sequence[Line],
) -> tuple[list[Made], dict[str, float]]:
  """The set, and metrics of how it came to be."""
  sieve, keep = prepared.sieve, config["keep"]
  choose = choosing.CHOOSE[config["choose"]["kind"]]
  made = choose(config, sieve, drawn(name, config, prepared, lines))
  made = choosing.readable(config, sieve, made)
  if config["choose"]["kind"] == "best":
    place = {problem.id: i for i, problem in enumerate(prepared.problems)}
    made = sorted(made, key=lambda one: (place[one.problem.id], -one.score))
  made = sieve("duplicates", made, filters.once(mixing.text_of))
  limit = filters.at_most(keep["per_problem"], lambda one: one.problem.id)
  made = sieve("over_limit", made, limit)
  if prepared.ask is not None and made:
    made = choosing.rewritten(config, sieve, made, ask=prepared.ask, pool=pool)
  if not made:
    raise InputError(
      f"nothing is left of {len(lines)} answers ({sieve.counts}); begin with a better "
      "model (config.init), ask easier problems, or look at config.choose and "
      "config.keep"
    )
  seen: dict[str, float] = {
    "answers": len(lines),
    "kept": len(made),
    "solved": len({one.problem.id for one in made}) / len(prepared.problems),
  }
  found = [one.parts.get("accuracy") for one in made]
  if known := [accuracy for accuracy in found if accuracy is not None]:
    seen["kept_accuracy"] = float(np.mean(known))
  anew = filters.once(mixing.text_of)
  made = sieve("duplicates", made, anew)
  made, missing = mixing.mixed(
    run,
    name,
    config,
    sieve,
    mixing.in_formats(run, name, config, made, exemplars=prepared.exemplars),
    also={
      key: prepared.also.get(key) or sets.examples(run, _source(settings))
      for key, settings in config["also"].items()
    },
    faults={
      "contaminated": mixing.contaminated(config, prepared.held_out),
      "duplicates": anew,
    },
  )
  seen["set_size"] = len(made)
  seen |= {f"dropped_{key}": count for key, count in sieve.counts.items()}
  seen |= {f"missing_{key}": count for key, count in missing.items()}
  table = mixing.by_category(run, made)
  for category, (count, tokens) in table.items():
    seen |= {f"size_{category}": count, f"tokens_{category}": tokens}
  _say(run, name, len(lines), sieve.counts, table, missing)
  seen = {f"rejection/{key}": value for key, value in seen.items()}
  if prepared.ask is not None:
    seen |= {f"rewriter/{key}": value for key, value in prepared.ask.counts.items()}
  return made, seen


def drawn(
  name: str, config: Mapping[str, Any], prepared: Prepared, lines: Sequence[Line]
) -> list[Made]:
  """Each answer as the example that it may become."""
  by_id = {problem.id: problem for problem in prepared.problems}
  return [
    Made(
      problem=by_id[line["problem_id"]],
      completion=line["completion"],
      category=categories.of(by_id[line["problem_id"]]),
      answer=by_id[line["problem_id"]].answer,
      source=config["init"] or name,
      score=line["score"],
      sample=line["sample"],
      parts=line["reward"],
      ended=line["stop"] == "eos",
    )
    for line in lines
  ]


def _say(
  run: Run,
  name: str,
  num_answers: int,
  dropped: Mapping[str, int],
  table: Mapping[str, tuple[int, float]],
  missing: Mapping[str, int],
) -> None:
  lost = [f"{key.replace('_', ' ')} {count}" for key, count in dropped.items() if count]
  said = [f"{name}: {num_answers} answers; dropped: {', '.join(lost) or 'none'}"]
  said += [
    f"{category} {count} of {tokens:.1f} tokens"
    for category, (count, tokens) in table.items()
  ]
  said += [f"{key} lacks {count}" for key, count in missing.items()]
  run.say("; ".join(said))
