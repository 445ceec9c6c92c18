"""Held-out accuracy during training, with its interval and every answer kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1jax import metrics, prng
from r1jax.data import templates
from r1jax.evals.intervals import clustered_interval
from r1jax.rewards.combine import combine
from r1jax.rewards.pool import RewardPool
from r1jax.stages import categories
from r1jax.stages.rollouts import Judging, Sampler, records
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.types import Problem

_CONTROLS = ("temperature", "top_p", "repetition_penalty", "min_tokens")


def sampler_of(
  run: Run, config: Mapping[str, Any], sets: Mapping[str, Sequence[Problem]]
) -> Sampler:
  """What held-out problems are answered with.

  Args:
    config: all settings of a stage; those of `eval` are read.
    sets: name -> problems, one at least.
  """
  own = config["eval"]
  return Sampler(
    run,
    Trainable.of(run, config),
    prompts=min(own["batch"], max(map(len, sets.values()))),
    samples=own["samples"],
    prompt_length=config["rollout"]["prompt_length"],
    max_tokens=own["max_tokens"],
    slots=own["slots"],
    stop_strings=own["stop_strings"],
    controls={key: own[key] for key in _CONTROLS},
    section="eval",
  )


class Evaluation:
  """Answers to sets of problems, judged like the training's.

  Accuracy is of the problems that have a gold answer; a set of none has no accuracy.

  Args:
    config: all settings of the stage.
    sets: name -> problems.
    sampler: what `sampler_of` made.
    frozen: what the weights are made of, beside the trained tree.
    held_frozen: what `Sampler.hold` made of `frozen`, by a sampler without quantized
      weights; None makes it.
  """

  def __init__(
    self,
    run: Run,
    stage: str,
    config: Mapping[str, Any],
    sets: Mapping[str, Sequence[Problem]],
    sampler: Sampler,
    *,
    frozen: Any | None,
    held_frozen: Any | None,
    pool: RewardPool,
  ):
    self._run = run
    self._stage = stage
    self._pool = pool
    self._config = config
    self._samples = config["eval"]["samples"]
    length = config["rollout"]["prompt_length"]
    self._sets = {
      name: (
        list(problems),
        templates.encode(problems, run.tokenizer, length=length, **config["template"]),
      )
      for name, problems in sets.items()
    }
    self._batch = sampler.num_prompts
    self._sampler = sampler
    self._held_frozen = sampler.hold(frozen) if held_frozen is None else held_frozen

  def __call__(self, trained: Any, step: int) -> dict[str, float]:
    """`eval/<set>/...` of every set; the answers go to samples/<stage>/."""
    weights = self._sampler.weights(trained, self._held_frozen)
    key = prng.at(prng.root(self._run.seed), "eval", step)
    seen = {}
    for name, (problems, prompts) in self._sets.items():
      lines = []
      for start in range(0, len(problems), self._batch):
        part = slice(start, start + self._batch)
        lines += self._answered(weights, problems[part], prompts[part], key, step)
      if self._run.is_main:
        metrics.write_samples(
          self._run.workdir, self._stage, f"eval_{name}", step, lines
        )
      seen |= {f"eval/{name}/{key}": value for key, value in self._summary(lines)}
    return seen

  def _answered(
    self,
    weights: Any,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    step: int,
  ) -> list[dict[str, Any]]:
    judging = Judging(self._pool, problems, self._samples)

    def judge(problem: int, completions: Sequence[Sequence[int]]) -> None:
      judging.add(problem, self._sampler.texts(completions))

    rollout = self._sampler(weights, prompts, problems, key, on_complete=judge)
    texts = self._sampler.texts(self._sampler.completions(rollout))
    parts_QG, _ = judging.result()
    # Totals of evaluations are of what text alone decides.
    weights_Q = [
      {part: weight for part, weight in own.items() if part in parts_QG}
      for own in categories.weights(self._config, problems)
    ]
    return records(
      self._run,
      step=step,
      stage=self._stage,
      problems=problems,
      prompts=prompts,
      texts=texts,
      rollout=rollout,
      parts_QG=parts_QG,
      total_QG=combine(parts_QG, weights_Q),
    )

  def _summary(self, lines: Sequence[Mapping[str, Any]]):
    """(name, value) of what is said of a set."""
    found = [line["reward"] for line in lines]
    right = np.asarray([own["accuracy"] for own in found if "accuracy" in own])
    if right.size:
      per_problem = right.astype(np.float64).reshape(-1, self._samples).mean(axis=1)
      low, high = clustered_interval(
        per_problem.tolist(), samples_per_problem=self._samples
      )
      yield "accuracy", float(per_problem.mean())
      yield "accuracy_low", low
      yield "accuracy_high", high
    yield "length_mean", float(np.mean([line["length"] for line in lines]))
    for part in ("format", "language"):
      if part in found[0]:
        yield part, float(np.mean([own[part] for own in found]))
    yield "truncated", float(np.mean([line["stop"] == "length" for line in lines]))
    yield "n", len(lines) // self._samples
