"""Expert iteration: a model learns from those of its own answers that are right.

A round asks every problem several times, keeps the right answers, and fine-tunes the
weights that the stage begins with, never those of the round before, on what is kept: of
all rounds so far (Havrilla et al., arXiv 2403.04642; STaR, arXiv 2203.14465) or of this
one alone (ReST-EM, arXiv 2312.06585). Rounds end when held-out accuracy stops rising,
and the stage leaves the weights that had most of it.

With tags it is return-conditioned (Havrilla et al.): wrong answers are trained on too,
each question ends in the tag that tells which kind follows, and held-out problems are
asked with the tag of the right ones. Departs: a tag speaks of the whole answer, there
of every step.

A step is an update. Before the first one of a round its answers are drawn, which lie in
the run directory; what the set is made of is read from there.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import limits, prng, sharding
from r1jax.data import packing, selection, stream, templates
from r1jax.errors import InputError, one_of
from r1jax.rewards.accuracy import NO_GOLD
from r1jax.rewards.pool import RewardPool
from r1jax.stages import categories, evaluate, model_part, sets, sft, supervised
from r1jax.stages.evaluate import Evaluation
from r1jax.stages.model_part import ModelParts
from r1jax.stages.own_answers import Line, OwnAnswers, answers, summary
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run, Stage
from r1jax.stages.trainable import Trainable
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.types import Problem, TokenRows

# What a round trains on, and whose answers it draws: those of the weights with the best
# held-out accuracy so far, or of the round before.
SETS = ("growing", "round")
ASKS = ("best", "last")


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a stage has read and checked before any stage begins.

  Attributes:
    problems: all of those to train on.
    eval_sets: name -> problems.
    dev: the one of them whose accuracy decides.
    prompts: tag -> problem id -> token ids; the tag is "" where there is none.
    sampler, eval_sampler: what the stage draws and is evaluated with.
    pool: judges answers; its processes are started when they are needed.
  """

  problems: Sequence[Problem]
  eval_sets: Mapping[str, Sequence[Problem]]
  dev: str
  prompts: Mapping[str, Mapping[str, list[int]]]
  sampler: Sampler
  eval_sampler: Sampler
  pool: RewardPool


def prepare_expert(run: Run, name: str, config: Mapping[str, Any]) -> Prepared:
  """Reads the data; raises InputError on what would not work later."""
  rollout, keep = config["rollout"], config["keep"]
  supervised.check(run, config)
  one_of(keep["set"], SETS, key="config.keep.set")
  one_of(config["asks"], ASKS, key="config.asks")
  model_part.check(run, config)
  names = dict.fromkeys([*categories.parts(config), "accuracy", "format"])
  one_of(keep["part"], names, key="config.keep.part")
  config = categories.with_parts(config, [keep["part"]])
  if keep["per_problem"] < 0:
    raise InputError(
      f"config.keep.per_problem={keep['per_problem']}: must be 0 (all) or more"
    )
  for key in ("patience", "round_steps"):
    if config[key] < 1:
      raise InputError(f"config.{key}={config[key]}: must be 1 or more")
  if config["num_steps"] % config["round_steps"]:
    raise InputError(
      f"config.num_steps={config['num_steps']} are no whole rounds of config."
      f"round_steps={config['round_steps']}; give a multiple"
    )
  longest = rollout["prompt_length"] + rollout["max_tokens"]
  if config["training"]["row_length"] < longest:
    raise InputError(
      f"config.training.row_length={config['training']['row_length']} is shorter than "
      f"a prompt and its answer may be: config.rollout.prompt_length + max_tokens = "
      f"{longest}; raise it"
    )
  tags = check_tags(run, config["tags"])
  problems, eval_sets = sets.load(run, name, config)
  prompts = {}
  for tag in dict.fromkeys(("", *tags)):
    encode = functools.partial(
      templates.encode,
      tokenizer=run.tokenizer,
      length=rollout["prompt_length"],
      **with_tag(config, tag)["template"],
    )
    ids = [problem.id for problem in problems]
    prompts[tag] = dict(zip(ids, encode(problems), strict=True))
    for held_out in eval_sets.values():
      encode(held_out)
  dev = config["dev"] or next(iter(eval_sets), "")
  if dev not in eval_sets or (not config["dev"] and len(eval_sets) > 1):
    raise InputError(
      f"config.dev={config['dev']!r}: name the set of config.eval.sets whose accuracy "
      f"ends the rounds; there are: {', '.join(eval_sets) or 'none'}"
    )
  if all(problem.verifier == NO_GOLD for problem in eval_sets[dev]):
    raise InputError(
      f"config.dev={config['dev']!r}: no problem of config.eval.sets.{dev} has a gold "
      "answer, so that it has no accuracy; name another set"
    )
  return Prepared(
    problems,
    eval_sets,
    dev,
    prompts,
    supervised.sampler_of(run, config),
    evaluate.sampler_of(run, config, eval_sets),
    sets.reward_pool(
      config,
      [*problems, *itertools.chain(*eval_sets.values())],
      needed=[keep["part"]],
    ),
  )


def check_tags(run: Run, tags: Mapping[str, str]) -> tuple[str, ...]:
  """The tags of right and wrong answers, or () where there are none.

  Raises:
    InputError: one alone, equal ones, one that the tokenizer does not represent.
  """
  good, bad = tags["good"], tags["bad"]
  if not good and not bad:
    return ()
  if not good or not bad or good == bad:
    raise InputError(
      f"config.tags.good={good!r} and bad={bad!r}: give two texts that differ, or '' "
      "for both"
    )
  for key, tag in tags.items():
    # Within a text, since a vocabulary may begin words in another way.
    said = run.tokenizer.decode(run.tokenizer.encode(f"a{tag}"))
    if said != f"a{tag}":
      raise InputError(
        f"config.tags.{key}={tag!r} is {said[1:]!r} to the tokenizer, which lacks some "
        "of it; choose another text, or add it to config.tokenizer.symbols"
      )
  return good, bad


def with_tag(config: Mapping[str, Any], tag: str) -> dict[str, Any]:
  """Settings in which every question ends in a tag."""
  template = config["template"]
  suffix = template.get("suffix", "") + tag
  return {**config, "template": {**template, "suffix": suffix}}


def train_expert(
  run: Run, name: str, config: Mapping[str, Any], prepared: Prepared
) -> None:
  """Walks rounds of `round_steps` updates; leaves a checkpoint with the best weights.

  Config: `data` and `eval.sets` (`data.problems.load_problems`), `decontaminate`,
  `init` (a stage, or "" for `config.model`), `num_steps` (of all rounds),
  `round_steps`, `patience`, `dev`, `asks`, and the sections that `configs/common.py`
  explains. Rounds that end early leave their last checkpoint at `num_steps`.
  """
  config = categories.with_parts(config, [config["keep"]["part"]])
  training, round_steps = config["training"], config["round_steps"]
  trainable = Trainable.of(run, config)
  optimizer, rate = trainable.optimizer(config["optim"])
  specs = trainable.specs
  shardings = states.state_shardings(specs, optimizer, run.partition, np.float32)
  batch_sharding = run.partition.sharding(None, "batch")
  copy = jax.jit(
    lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings.params
  )
  train_on = steps.make_update(
    functools.partial(sft.loss, run, config),
    optimizer,
    shardings,
    batch_sharding,
    bias_rate=config["moe"]["bias_rate"],
  )
  abstract = states.abstract_state(specs, optimizer, run.partition, np.float32)
  everywhere = run.partition.sharding()
  number = jax.ShapeDtypeStruct((), np.int32, sharding=everywhere)
  held = {"train": abstract, "best": abstract.params} | {
    "accuracy": jax.ShapeDtypeStruct((), np.float32, sharding=everywhere),
    "best_round": number,
    "stalled": number,
  }
  good = config["tags"]["good"]

  def fresh() -> Any:
    params = trainable.fresh(name, config["init"])
    return states.state_of(params, specs, optimizer, run.partition)

  def accuracy_in(seen: Mapping[str, float]) -> float:
    """Of the set that decides, as a checkpoint holds it."""
    return np.float32(seen[f"eval/{prepared.dev}/accuracy"]).item()

  with (
    prepared.pool as pool,
    Stage(run, name, num_steps=config["num_steps"]) as stage,
  ):
    state = stage.take_up(held)
    frozen = trainable.frozen(config["init"])
    held_frozen = prepared.sampler.hold(frozen)
    trainable.announce(name)
    pool.warm(prepared.problems)
    evaluation = Evaluation(
      run,
      name,
      with_tag(config, good),
      prepared.eval_sets,
      prepared.eval_sampler,
      frozen=frozen,
      held_frozen=None if config["rollout"]["weights"] else held_frozen,
      pool=pool,
    )
    own = OwnAnswers(
      run,
      name,
      config,
      prepared.sampler,
      pool,
      prepared.problems,
      part=config["keep"]["part"],
      more_parts=ModelParts(run, config),
    )
    if state is None:
      train = fresh()
      best = copy(train.params)
      first = functools.cache(functools.partial(evaluation, best, 0))
      stage.evaluation(0, first)
      progress = Progress(accuracy_in(first()), 0, 0)
    else:
      train, best = state["train"], state["best"]
      progress = Progress.of(jax.device_get(state))
    rows = order = None
    waste = 0.0

    for step in stage.steps():
      if progress.stalled >= config["patience"]:
        stage.settle()
        run.say(
          f"{name}: ends after round {(step - 1) // round_steps}, as the last "
          f"{progress.stalled} were no better than round {progress.best_round}"
        )
        train = train.replace(params=copy(best))
        stage.end_step(
          config["num_steps"],
          progress.metrics(),
          {"train": train, "best": best} | progress.arrays(everywhere),
          work={},
        )
        break
      past, place = divmod(step - 1, round_steps)
      seen, work = {}, {}
      if place == 0:
        stage.settle()
        asker = best if config["asks"] == "best" else train.params
        weights = prepared.sampler.weights(asker, held_frozen)
        # The first round's model knows no tag.
        prompts = prepared.prompts[good if past else ""]
        lines, counts, work = own.drawn(past + 1, step, weights, prompts)
        del weights
        seen = summary(lines) | {
          f"verifier/{what}": counts[what] for what in ("timeouts", "crashes", "errors")
        }
        if past:
          train = None  # its memory goes to what is made anew
          train = fresh()
      if rows is None or place == 0:
        with run.clock("pack"):
          of_rounds = [own.kept(n) for n in rounds(config, past + 1)]
          rows, waste, found = packed(config, prepared.prompts, of_rounds)
          if place == 0:
            seen |= found
          order = stream.Stream(
            range(len(rows.tokens_BL)),
            batch=min(len(rows.tokens_BL), training["rows"] * training["microbatches"]),
            seed=prng.host_seed(run.seed, f"{name}/order", past + 1),
            key="config.training.rows times config.training.microbatches",
          )
      with run.clock("update"):
        index = order.at(place)
        batch = supervised.take(
          rows, index, microbatches=training["microbatches"], size=training["rows"]
        )
        forward = limits.forward_work(run.machine, run.model, [batch])
        num_tokens = float(batch.mask_BL.sum())
        train, statistics = train_on(
          train,
          frozen,
          sharding.place(batch, batch_sharding),
          -(-len(index) // training["rows"]),
          num_tokens,
        )
        stage.settle()
      if place == round_steps - 1:
        with run.clock("eval"):
          held_out = evaluation(train.params, step)
        seen |= held_out
        progress = progress.after(past + 1, accuracy_in(held_out))
        if progress.best_round == past + 1:
          best = copy(train.params)
        if step == config["num_steps"]:
          train = train.replace(params=copy(best))
      stage.end_step(
        step,
        seen
        | progress.metrics()
        | {"expert/round": past + 1, "optim/lr": rate(place), "pack/waste": waste},
        {"train": train, "best": best} | progress.arrays(everywhere),
        statistics=[statistics],
        work=work | {"update": forward.times(trainable.update_passes)},
      )


@dataclasses.dataclass(frozen=True)
class Progress:
  """How the rounds went: the best accuracy, its round (0: before the first), and the
  rounds since."""

  accuracy: float
  best_round: int
  stalled: int

  @classmethod
  def of(cls, state: Mapping[str, Any]) -> "Progress":
    names = (field.name for field in dataclasses.fields(cls))
    return cls(*(state[name].item() for name in names))

  def after(self, number: int, accuracy: float) -> "Progress":
    """With a round that had some accuracy."""
    if accuracy > self.accuracy:
      return Progress(accuracy, number, 0)
    return dataclasses.replace(self, stalled=self.stalled + 1)

  def metrics(self) -> dict[str, float]:
    return {
      "expert/best_accuracy": self.accuracy,
      "expert/best_round": self.best_round,
      "expert/stalled": self.stalled,
    }

  def arrays(self, at: jax.sharding.Sharding) -> dict[str, jax.Array]:
    return sharding.place(
      {
        "accuracy": np.float32(self.accuracy),
        "best_round": np.int32(self.best_round),
        "stalled": np.int32(self.stalled),
      },
      at,
    )


def rounds(config: Mapping[str, Any], number: int) -> range:
  """Those that a round trains on."""
  return range(1 if config["keep"]["set"] == "growing" else number, number + 1)


def packed(
  config: Mapping[str, Any],
  prompts: Mapping[str, Mapping[str, list[int]]],
  of_rounds: Sequence[Sequence[Line]],
) -> tuple[TokenRows, float, dict[str, float]]:
  """What is trained on: rows, the share of padding in them, and how it was chosen.

  Args:
    of_rounds: lines of each round, that of the last one at the end.

  Raises:
    InputError: no answer is left.
  """
  tags, keep = config["tags"], config["keep"]
  met: set[tuple[str, str]] = set()
  kept: list[tuple[selection.Answer, bool]] = []
  for lines in of_rounds:
    new, counts = selection.select(
      answers(lines),
      met,
      threshold=keep["threshold"],
      per_problem=keep["per_problem"],
      with_wrong=bool(tags["good"]),
    )
    kept += new
  if not any(is_right for _, is_right in kept):
    raise InputError(
      f"none of {len(of_rounds[-1])} answers can be learnt from ({counts}); begin with "
      "a better model (config.init, config.model.path), ask easier problems, or look "
      "at config.keep"
    )
  sequences, trained_from = [], []
  for answer, is_right in kept:
    prompt = prompts[tags["good" if is_right else "bad"]][answer.problem]
    sequences.append([*prompt, *answer.tokens])
    trained_from.append(len(prompt))
  pack = packing.pack(
    sequences, trained_from, row_length=config["training"]["row_length"]
  )
  right = {answer.problem for answer, is_right in kept if is_right}
  seen = {f"expert/{reason}": count for reason, count in counts.items()} | {
    "expert/answers": len(of_rounds[-1]),
    "expert/added": len(new),
    "expert/set_size": len(kept),
    "expert/solved": len(right) / len(prompts[""]),
  }
  return pack.rows, pack.waste, seen
