"""A model's own answers to all problems: drawn, judged, and kept as JSONL on disk.

They come in rounds; a stage that needs them once draws one.

A file holds the answers to as many problems as are drawn at a time. It is written whole
or not at all, each line with a digest of what is trained on, and the weights' checksum;
so a run that was stopped in a round draws only what is missing.

Letters: Q prompts of a call, G samples per prompt.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1jax import limits, metrics, prng, trees
from r1jax.data.selection import Answer
from r1jax.errors import InputError
from r1jax.rewards.combine import combine
from r1jax.rewards.pool import COUNTS, RewardPool
from r1jax.stages import categories
from r1jax.stages.rollouts import Judging, Sampler, records
from r1jax.stages.run import Run, Stopped, anywhere
from r1jax.types import Problem

Line = Mapping[str, Any]
# (parts [Q, G], problems, completions as ids) -> the parts and some more
MoreParts = Callable[
  [Mapping[str, np.ndarray], Sequence[Problem], Sequence[Sequence[int]]],
  Mapping[str, np.ndarray],
]


class OwnAnswers:
  """Draws rounds of answers to all problems, or reads those that are there.

  Args:
    config: all settings of the stage; `rollout` and `reward` are read.
    problems: all of them, in order.
    part: of the reward, what the score of a line is.
    more_parts: adds those that are not of text alone.
    on_part: is told how many parts of a round are there, and of how many.
  """

  def __init__(
    self,
    run: Run,
    name: str,
    config: Mapping[str, Any],
    sampler: Sampler,
    pool: RewardPool,
    problems: Sequence[Problem],
    *,
    part: str = "total",
    more_parts: MoreParts = lambda parts_QG, problems, completions: parts_QG,
    on_part: Callable[[int, int], None] = lambda part, num_parts: None,
  ):
    self._run, self._name, self._config = run, name, config
    self._sampler = sampler
    self._pool = pool
    self._part, self._more_parts, self._on_part = part, more_parts, on_part
    size = config["rollout"]["prompts"]
    self._batches = [problems[i : i + size] for i in range(0, len(problems), size)]
    self._checksum = jax.jit(trees.checksum)

  def drawn(
    self,
    number: int,
    step: int,
    weights: Any,
    prompts: Mapping[str, Sequence[int]],
  ) -> tuple[list[Line], dict[str, float], dict[str, limits.Work]]:
    """The lines of a round, drawn where they are missing or of other weights.

    Args:
      number: of the round, from 1; `step` is its first.
      weights: what `Sampler.weights` made.
      prompts: problem id -> token ids.

    Returns:
      (lines, what was counted while judging, work by phase; both of what is drawn now).

    Raises:
      Stopped: the run was asked to stop; what is drawn is kept.
    """
    run, key = self._run, prng.at(prng.root(self._run.seed), self._name, number)
    checksum = int(self._checksum(weights))
    counts, work = dict.fromkeys(COUNTS, 0.0), {}
    lines: list[Line] = []
    for batch, problems in enumerate(self._batches):
      found = self._read(number, batch, problems)
      is_usable = found is not None and found[0]["weights"] == checksum
      if anywhere(not is_usable):
        if anywhere(run.stop_asked()):
          raise Stopped(
            f"{self._name}: stopped in round {number}, {batch} of "
            f"{len(self._batches)} parts of whose answers are kept"
          )
        with run.clock("rollout"):
          found, judged, done = self._draw(step, weights, key, problems, prompts)
        found = [
          {"round": number, **line, "weights": checksum, "digest": _digest(line)}
          for line in found
        ]
        if run.is_main:
          metrics.write_samples(
            run.workdir, self._name, f"round_{number:03d}", batch, found
          )
        for name, value in judged.items():
          counts[name] += value
        before = work.get("rollout", limits.Work(0, 0.0))
        work["rollout"] = limits.Work(*map(sum, zip(before, done, strict=True)))
      lines += found
      self._on_part(batch + 1, len(self._batches))
    anywhere(False)  # waits until the files are written, which all processes read
    return lines, counts, work

  def kept(self, number: int) -> list[Line]:
    """The lines of a round that was drawn.

    Raises:
      InputError: they are not there any more, or not as they were.
    """
    lines: list[Line] = []
    for batch, problems in enumerate(self._batches):
      found = self._read(number, batch, problems)
      if found is None:
        raise InputError(
          f"{self._path(number, batch)} is missing or was changed, from which stage "
          f"{self._name!r} goes on; put it back, or run the stage again in another "
          "--workdir"
        )
      lines += found
    return lines

  def _path(self, number: int, batch: int) -> Any:
    folder = self._run.workdir / "samples" / self._name
    return folder / f"round_{number:03d}_{batch:06d}.jsonl"

  def _read(
    self, number: int, batch: int, problems: Sequence[Problem]
  ) -> list[Line] | None:
    """The lines of a part of a round; None where they are missing or damaged."""
    path = self._path(number, batch)
    if not path.exists():
      return None
    samples = self._config["rollout"]["group_size"]
    want = [(problem.id, i) for problem in problems for i in range(samples)]
    try:
      lines = [json.loads(line) for line in path.read_bytes().splitlines()]
      is_whole = all(line["digest"] == _digest(line) for line in lines)
      asked = [(line["problem_id"], line["sample"]) for line in lines]
    except (ValueError, KeyError, TypeError):
      return None
    return lines if is_whole and asked == want else None

  def _draw(
    self,
    step: int,
    weights: Any,
    key: jax.Array,
    problems: Sequence[Problem],
    prompts: Mapping[str, Sequence[int]],
  ) -> tuple[list[dict[str, Any]], dict[str, float], limits.Work]:
    run, sampler, config = self._run, self._sampler, self._config
    asked = [prompts[problem.id] for problem in problems]
    judging = Judging(self._pool, problems, config["rollout"]["group_size"])
    rollout = sampler(
      weights,
      asked,
      problems,
      key,
      on_complete=lambda q, ids: judging.add(q, sampler.texts(ids)),
    )
    completions = sampler.completions(rollout)
    with run.clock("reward"):
      parts_QG, judged = judging.result()
      parts_QG = self._more_parts(parts_QG, problems, completions)
    lines = records(
      run,
      step=step,
      stage=self._name,
      problems=problems,
      prompts=asked,
      texts=sampler.texts(completions),
      rollout=rollout,
      parts_QG=parts_QG,
      total_QG=combine(parts_QG, categories.weights(config, problems)),
    )
    plain = [
      {
        **line,
        # As they are read back.
        "reward": (reward := {k: float(v) for k, v in line["reward"].items()}),
        "length": int(line["length"]),
        "score": reward.get(self._part),
        "tokens": ids,
      }
      for line, ids in zip(lines, completions, strict=True)
    ]
    work = limits.rollout_work(
      run.machine, run.model, weights, asked, rollout, cache=config["rollout"]["cache"]
    )
    return plain, judged, work


def answers(lines: Sequence[Line]) -> list[Answer]:
  """What `data.selection` reads of lines."""
  return [
    Answer(
      line["problem_id"],
      tuple(line["tokens"]),
      line["completion"],
      line["score"],
      line["stop"] == "eos",
    )
    for line in lines
  ]


def summary(lines: Sequence[Line]) -> dict[str, float]:
  """Metrics of a round's answers."""
  means = {}
  for part in dict.fromkeys(part for line in lines for part in line["reward"]):
    has = [line["reward"][part] for line in lines if part in line["reward"]]
    means[f"reward/{part}"] = float(np.mean(has))
  return means | {
    "rollout/length_mean": float(np.mean([line["length"] for line in lines])),
    "rollout/truncated": float(np.mean([line["stop"] == "length" for line in lines])),
    "rollout/weights_checksum": lines[0]["weights"],
  }


def _digest(line: Line) -> str:
  names = ("problem_id", "sample", "tokens", "completion", "score", "stop", "reward")
  return trees.digest(json.dumps([line[name] for name in names], sort_keys=True))
