"""Worked examples for supervised training: generated, or read from a file."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from r1jax import prng
from r1jax.data import builders, chain, problems
from r1jax.errors import InputError, one_of
from r1jax.types import Problem


@dataclasses.dataclass(frozen=True)
class Example:
  """A problem and the text to answer it with."""

  problem: Problem
  completion: str


def load_examples(
  source: str,
  *,
  path: epath.PathLike | None = None,
  task: str | None = None,
  task_args: Mapping[str, Any] | None = None,
  size: int | None = None,
  think_share: float | None = None,
  seed: int = 0,
) -> list[Example]:
  """Loads examples in a fixed order.

  Args:
    source: "worked" writes answers to a procedural task (a key of WRITERS); "jsonl"
      reads a file with `prompt` and `completion` on each line.
    path: for jsonl.
    task, task_args, size: for worked, as of `problems.load_problems`.
    think_share: for worked, how often an answer is worked out in `<think>` tags; the
      others are given at once. 1 for None.

  Raises:
    InputError: unknown names, missing settings, bad lines, nothing left.
  """
  one_of(source, ("worked", "jsonl"), key="config.examples.source")
  for name, value in (("path", path), ("task", task)):
    if (value is not None) != (name == {"worked": "task", "jsonl": "path"}[source]):
      state = " is missing" if value is None else f"={value!r} is not used"
      raise InputError(f"config.examples.{name}{state} with source={source!r}")
  if source == "jsonl":
    return list(read_jsonl(path))
  one_of(task, WRITERS, key="config.examples.task")
  share = 1.0 if think_share is None else think_share
  if not 0 <= share <= 1:
    raise InputError(f"config.examples.think_share={share}; needed: 0 to 1")
  if size is None:
    raise InputError("config.examples.size is missing with source='worked'")
  # Unlike a set of problems, a corpus may say the same thing twice.
  drawn = problems.read_reasoning_gym(
    split="examples", seed=seed, task=task, size=size, task_args=task_args
  )
  return [_written(problem, WRITERS[task], share, seed) for problem in drawn]


def _written(problem: Problem, write: Callable, share: float, seed: int) -> Example:
  draw = random.Random(prng.host_seed(seed, problem.id)).random()
  mode = "think" if draw < share else "direct"
  return Example(problem, write(problem.meta["entry"], mode))


def read_jsonl(path: epath.PathLike) -> Iterator[Example]:
  for number, record in builders.read_lines(
    path,
    lambda record: builders.text_fields(record, ("prompt", "completion")),
    on_bad_line="error",
    key="config.examples.path",
  ):
    name = f"{epath.Path(path).stem}/{number}"
    yield Example(Problem(name, record["prompt"], "", "exact"), record["completion"])


def chain_sum_text(entry: Mapping[str, Any], mode: str) -> str:
  """A sum as R1-Zero's format wants it, one term added at a time in the thought."""
  one_of(mode, ("direct", "think"), key="mode")
  terms = entry["metadata"]["expression"].split(" ")
  value, steps = int(terms[0]), []
  for sign, term in zip(terms[1::2], terms[2::2], strict=True):
    before, value = value, value + int(f"{sign}{term}")
    steps.append(f"{before} {sign} {term} = {value}")
  thought = f"<think>{', '.join(steps)}</think>\n" if mode == "think" else ""
  return f"{thought}<answer>{entry['answer']}</answer>"


# Task -> (entry, "direct" or "think") -> completion.
WRITERS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
  chain.NAME: chain.corpus_text,
  "chain_sum": chain_sum_text,
}
