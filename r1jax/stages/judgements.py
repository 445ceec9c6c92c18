"""What of a policy's answers is judged, by whom, and what is said of it.

What somebody has said is kept in the run directory, in parts, each with all that was
asked; a part that is there is not asked again.
"""

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1jax import metrics, prng, trees
from r1jax.data import filters, judged, pairing
from r1jax.data.filters import Sieve
from r1jax.data.pairing import Answer
from r1jax.data.templates import THINK_CLOSE, THINK_OPEN
from r1jax.rewards import judge
from r1jax.rewards.combine import combine
from r1jax.rewards.pool import RewardPool
from r1jax.stages import categories, scalar_model, step_labels
from r1jax.stages.own_answers import Line
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run, Stopped, anywhere
from r1jax.types import Problem

Record = dict[str, Any]


# ----------------------------------------------------------------------- what is asked


def asked_of(
  run: Run,
  config: Mapping[str, Any],
  problem: Problem,
  lines: Sequence[Line],
  sieve: Sieve,
) -> list[Record]:
  """What is to be judged of the answers to a problem: pairs of them (`responses`), or
  some of them (`completion`)."""
  own = config["choose"]
  answers = usable(run, config, lines, sieve)
  draw = random.Random(prng.host_seed(run.seed, f"{problem.id}/pairs"))
  about = judged.question(problem)
  about |= {"problem_id": problem.id, "category": categories.of(problem)}
  if config["labels"] != "pairwise":
    picked = draw.sample(answers, min(own["per_problem"], len(answers)))
    return [
      about | {"completion": one.text, "points": one.points, "sample": one.sample}
      for one in sorted(picked, key=lambda one: one.sample)
    ]
  pairs = pairing.choose(
    answers,
    kind=own["kind"],
    count=own["per_problem"],
    threshold=own["threshold"],
    draw=draw,
  )
  none = f"{len(answers)} answers make none" if not pairs else ""
  sieve("no_pair", [about], lambda about: none)
  return [
    about
    | {
      "responses": [answer.text for answer in pair],
      "samples": [answer.sample for answer in pair],
      "points": [answer.points for answer in pair],
      "gap": pairing.gap(*pair, kind=own["kind"]),
    }
    for pair in pairs
  ]


def usable(
  run: Run, config: Mapping[str, Any], lines: Sequence[Line], sieve: Sieve
) -> list[Answer]:
  """Answers that ended, say something, and say it for the first time."""
  reads, most = config["judge"]["reads"], config["rollout"]["max_tokens"]

  def cut_off(line: Line) -> str:
    return "" if line["stop"] == "eos" else "no end within max_tokens"

  def empty(line: Line) -> str:
    return "" if shown(reads, line["completion"]) else f"nothing of {reads!r} to judge"

  def too_long(line: Line) -> str:
    # What was drawn in few tokens may be spelled in more of them.
    tokens = length(run, reads, line["completion"])
    return "" if tokens <= most else f"{tokens} tokens as it is read back"

  lines = sieve("truncated", lines, cut_off)
  lines = sieve("no_answer", lines, empty)
  lines = sieve("duplicates", lines, filters.once(lambda line: line["completion"]))
  if config["labels"] == "process":
    lines = sieve("too_long", lines, too_long)
  return [
    Answer(
      line["sample"],
      line["completion"],
      line["score"],
      length(run, reads, line["completion"]),
    )
    for line in lines
  ]


def shown(reads: str, text: str) -> str:
  """What of an answer is judged: all, or what stands behind its thought."""
  if reads == "answer":
    text = text.rpartition(THINK_CLOSE)[2].partition(THINK_OPEN)[0]
  return text.strip()


def length(run: Run, reads: str, text: str) -> int:
  """Tokens, the end token included."""
  ids = [*run.tokenizer.encode(text), run.tokenizer.eos_id]
  return len(scalar_model.read_part(reads, run, ids))


# ------------------------------------------------------------------------------ judging


class Says:
  """What a judge says, or nothing where points decide."""

  def __init__(
    self,
    run: Run,
    config: Mapping[str, Any],
    ask: Callable[[], judge.Ask] | None,
  ):
    self._run, self._config = run, config
    self._make = ask
    self._ask: judge.Ask | None = None
    self.is_kept = ask is not None
    # A server is asked once, a model in this process by all processes together.
    self.is_shared = config["judge"]["kind"] == "model"

  def __call__(self, asked: Sequence[Record]) -> list[Record]:
    """Fields that say what came of each."""
    if self._make is None:
      return [{} for _ in asked]
    if self._ask is None:
      self._ask = self._make()
    count, reads = (self._config["judge"][key] for key in ("judgements", "reads"))
    requests = [record.get("messages") or record["prompt"] for record in asked]
    if self._config["labels"] == "pointwise":
      items = [
        (request, shown(reads, record["completion"]))
        for request, record in zip(requests, asked, strict=True)
      ]
      return [{"verdicts": one} for one in judge.safety(self._ask, items, count)]
    pairs = [
      (request, *(shown(reads, text) for text in record["responses"]))
      for request, record in zip(requests, asked, strict=True)
    ]
    orders = [
      judged.show_first(
        f"{record['problem_id']}/{record['samples']}", count, self._run.seed
      )
      for record in asked
    ]
    found = judge.comparisons(self._ask, pairs, orders)
    return [{"judgements": one} for one in found]

  def seen(self) -> dict[str, float]:
    """What the judge has counted in this process."""
    counts = {} if self._ask is None else self._ask.counts
    return {f"judge/{key}": value for key, value in counts.items()}


class Steps:
  """Labels of the steps of answers, from completions of what they begin with.

  Args:
    prompts: problem id -> token ids.
    completer: draws completions of a prompt and steps behind it.
    weights: what it draws with.
  """

  is_kept = is_shared = True

  def __init__(
    self,
    run: Run,
    name: str,
    config: Mapping[str, Any],
    problems: Sequence[Problem],
    prompts: Mapping[str, Sequence[int]],
    *,
    completer: Sampler,
    weights: Any,
    pool: RewardPool,
  ):
    self._run, self._config = run, config
    self._problems = {problem.id: problem for problem in problems}
    self._prompts = prompts
    self._completer, self._weights, self._pool = completer, weights, pool
    self._key = prng.at(prng.root(run.seed), f"{name}/steps")
    self._is_right: dict[tuple[str, str], bool] = {}
    self._completions = 0

  def __call__(self, asked: Sequence[Record]) -> list[Record]:
    solutions = []
    for record in asked:
      problem, text = self._problems[record["problem_id"]], record["completion"]
      solutions.append((problem, text))
      self._is_right[problem.id, text] = self._passes(record["points"])
    own = self._config["steps"]
    found = step_labels.label_steps(
      solutions,
      sample=self._sample,
      verify=lambda text, problem: self._is_right[problem.id, text],
      num_rollouts=own["rollouts"],
      labels=own["labels"],
    )
    return [{key: line[key] for key in ("ends", "labels", "hits")} for line in found]

  def _passes(self, points: float) -> bool:
    return points >= self._config["choose"]["threshold"]

  def _sample(
    self, asked: Sequence[tuple[Problem, str]], num_rollouts: int
  ) -> list[list[str]]:
    """Completions of each; what is right among the wholes is kept for later."""
    run, completer = self._run, self._completer
    drawn: list[list[str]] = []
    for first in range(0, len(asked), completer.num_prompts):
      part = asked[first : first + completer.num_prompts]
      ids = [
        [*self._prompts[problem.id], *run.tokenizer.encode(prefix)]
        for problem, prefix in part
      ]
      # A draw depends on the problem's id, and shall on the prefix.
      named = [
        dataclasses.replace(problem, id=f"{problem.id}/{trees.digest(prefix)}")
        for problem, prefix in part
      ]
      rollout = completer(self._weights, ids, named, self._key)
      texts = completer.texts(completer.completions(rollout))
      drawn += [texts[i : i + num_rollouts] for i in range(0, len(texts), num_rollouts)]
      run.watchdog.beat()
    wholes = [
      (problem, prefix + text)
      for (problem, prefix), texts in zip(asked, drawn, strict=True)
      for text in texts
    ]
    self._completions += len(wholes)
    parts, _ = self._pool.score(
      [text for _, text in wholes], [problem for problem, _ in wholes]
    )
    table_N1 = {
      key: np.asarray([[one.get(key, np.nan)] for one in parts])
      for key in categories.parts(self._config)
    }
    asked_N = [problem for problem, _ in wholes]
    points_N1 = combine(table_N1, categories.weights(self._config, asked_N))
    for (problem, text), points in zip(wholes, points_N1[:, 0].tolist(), strict=True):
      self._is_right[problem.id, text] = self._passes(points)
    return drawn

  def seen(self) -> dict[str, float]:
    """What was drawn by this process."""
    return {"pairs/completions": self._completions}


def kept(
  run: Run,
  name: str,
  asked: Sequence[Record],
  says: Says | Steps,
  *,
  number: int,
  num_parts: int,
) -> list[Record]:
  """What is asked with what is said of it: read where that is kept, else made and kept.

  Args:
    number: of this part, from 0.

  Raises:
    Stopped: the run was asked to stop, and something has to be made.
  """
  if not says.is_kept:
    return list(asked)
  path = run.workdir / "samples" / name / f"judged_{number:06d}.jsonl"
  found = _read(path, asked)
  if anywhere(found is None):
    if anywhere(run.stop_asked()):
      raise Stopped(
        f"{name}: stopped; {number} of {num_parts} parts of its judgements are kept"
      )
    if run.is_main or says.is_shared:
      with run.clock("judge"):
        said = says(asked)
    if run.is_main:
      lines = [{**a, **b} for a, b in zip(asked, said, strict=True)]
      metrics.write_samples(run.workdir, name, "judged", number, lines)
    anywhere(False)  # waits until the file is written, which all processes read
    found = _read(path, asked)
  return found


def _read(path: Path, asked: Sequence[Record]) -> list[Record] | None:
  """What was kept of the same, or None."""
  if not path.exists():
    return None
  try:
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    same = [
      {key: line[key] for key in record}
      for line, record in zip(lines, asked, strict=True)
    ]
  except (ValueError, KeyError):
    return None
  return lines if same == list(asked) else None
