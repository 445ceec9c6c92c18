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
from r1jax.stages.rollouts import Judging, Sampler, records
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.types import Problem


class Evaluation:
  """Answers to sets of problems, judged like the training's.

  Args:
    sets: name -> problems.
    trainable, frozen: what the weights are made of, beside the trained tree.
    held_frozen: what `Sampler.hold` made of `frozen`, by a sampler without quantized
      weights; None makes it.
    template: settings of `templates.encode`, and `prompt_length`.
    weights: of the reward parts, for the totals in the samples.
    batch: problems answered by one call; the last is filled up.
    samples: answers per problem. `temperature` 0 is greedy, and then 1 is enough.
  """

  def __init__(
    self,
    run: Run,
    stage: str,
    sets: Mapping[str, Sequence[Problem]],
    *,
    trainable: Trainable,
    frozen: Any | None,
    held_frozen: Any | None,
    template: Mapping[str, Any],
    pool: RewardPool,
    weights: Mapping[str, float],
    prompt_length: int,
    max_tokens: int,
    batch: int,
    slots: int,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    min_tokens: int = 0,
    stop_strings: Sequence[str] = (),
  ):
    self._run = run
    self._stage = stage
    self._pool = pool
    self._weights = dict(weights)
    self._samples = samples
    self._sets = {
      name: (
        list(problems),
        templates.encode(problems, run.tokenizer, length=prompt_length, **template),
      )
      for name, problems in sets.items()
    }
    largest = max(map(len, sets.values()))
    self._batch = min(batch, largest)
    self._sampler = Sampler(
      run,
      trainable,
      prompts=self._batch,
      samples=samples,
      prompt_length=prompt_length,
      max_tokens=max_tokens,
      slots=slots,
      controls={
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "min_tokens": min_tokens,
      },
      stop_strings=stop_strings,
    )
    if held_frozen is None:
      held_frozen = self._sampler.hold(frozen)
    self._held_frozen = held_frozen

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
    return records(
      self._run,
      step=step,
      stage=self._stage,
      problems=problems,
      prompts=prompts,
      texts=texts,
      rollout=rollout,
      parts_QG=parts_QG,
      total_QG=combine(parts_QG, self._weights),
    )

  def _summary(self, lines: Sequence[Mapping[str, Any]]):
    """(name, value) of what is said of a set."""
    right = np.asarray([line["reward"]["accuracy"] for line in lines], np.float64)
    per_problem = right.reshape(-1, self._samples).mean(axis=1)
    low, high = clustered_interval(
      per_problem.tolist(), samples_per_problem=self._samples
    )
    yield "accuracy", float(per_problem.mean())
    yield "accuracy_low", low
    yield "accuracy_high", high
    yield "length_mean", float(np.mean([line["length"] for line in lines]))
    yield "format", float(np.mean([line["reward"]["format"] for line in lines]))
    yield "truncated", float(np.mean([line["stop"] == "length" for line in lines]))
    yield "n", len(per_problem)
