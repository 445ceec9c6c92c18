"""Worked examples for supervised training: generated, or read from a file.

A file that a stage has made (`made.jsonl`) has on each line the question before any
template, `prompt`, or a conversation, `messages`, the `completion`, and what is known
of it: `problem_id`, `category`, `answer`, `score`, ...
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from r1jax import prng
from r1jax.data import builders, chain, problems, small_talk
from r1jax.errors import InputError, one_of
from r1jax.types import Problem


@dataclasses.dataclass(frozen=True)
class Example:
  """A problem and the text to answer it with."""

  problem: Problem
  completion: str


@dataclasses.dataclass(frozen=True)
class Made:
  """An example that a stage makes, on its way into a set.

  Attributes:
    problem: what is asked; its prompt is that of the example.
    answer: the gold, or what a vote of all answers has chosen.
    source: the stage that drew it, or the name of the data that it is from.
    score: of the part of the reward that it was chosen by, or the share of votes.
    sample: its number among the answers to the problem.
    format: of `data.formats.FORMATS`.
    parts: of the reward.
    ended: whether the answer ended by itself.
    vote: what `rewards.votes.vote` says of the answer that it was chosen by.
  """

  problem: Problem
  completion: str
  category: str
  answer: str
  source: str
  score: float | None = None
  sample: int | None = None
  format: str | None = None
  parts: Mapping[str, float] | None = None
  ended: bool = True
  vote: str | None = None

  def line(self) -> dict[str, Any]:
    """As `read_made` reads it."""
    line = {
      "prompt": self.problem.prompt,
      "messages": [dict(message) for message in self.problem.messages] or None,
      "completion": self.completion,
      "problem_id": self.problem.id,
      "sample": self.sample,
      "category": self.category,
      "source": self.source,
      "format": self.format,
      "answer": self.answer,
      "score": self.score,
      "reward": self.parts,
    }
    return {key: value for key, value in line.items() if value is not None}


def load_examples(
  source: str,
  *,
  path: epath.PathLike | None = None,
  stage: str | None = None,
  task: str | None = None,
  task_args: Mapping[str, Any] | None = None,
  size: int | None = None,
  think_share: float | None = None,
  languages: Sequence[str] = (),
  of: Mapping[str, Mapping[str, Any]] | None = None,
  seed: int = 0,
) -> list[Example]:
  """Loads examples in a fixed order.

  Args:
    source: "worked" writes answers to a procedural task (a key of WRITERS); "jsonl"
      reads a file with `prompt` and `completion` on each line; "stage" reads what an
      earlier stage has made; "mixture" has others beside each other, evenly spread.
    path: for jsonl; for stage where its file lies, which no config says.
    stage: its name.
    task, task_args, size: for worked, as of `problems.load_problems`.
    think_share: for worked, how often an answer is worked out in `<think>` tags; the
      others are given at once. 1 for None.
    languages: for worked chains, see `chain.trace`.
    of: for mixture: {name: settings of worked examples or a file}.

  Raises:
    InputError: unknown names, missing settings, bad lines, nothing left.
  """
  used = USES[one_of(source, USES, key="config.examples.source")]
  given = {"path": path, "task": task, "stage": stage, "of": of or None}
  for name, value in given.items():
    if (value is not None) != (name in used):
      state = " is missing" if value is None else f"={value!r} is not used"
      raise InputError(f"config.examples.{name}{state} with source={source!r}")
  if source == "jsonl":
    return list(read_jsonl(path))
  if source == "stage":
    return list(read_made(path))
  if source == "mixture":
    return _mixed(of)
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
  write = WRITERS[task]
  if languages:
    if task != chain.NAME:
      raise InputError(
        f"config.examples.languages={tuple(languages)}: of the task {chain.NAME!r} "
        f"alone, not of {task!r}"
      )
    write = functools.partial(write, languages=tuple(languages))
  return [_written(problem, write, share, seed) for problem in drawn]


def _mixed(of: Mapping[str, Mapping[str, Any]]) -> list[Example]:
  placed = []
  for part, (name, settings) in enumerate(of.items()):
    allowed = ("worked", "jsonl")
    one_of(settings["source"], allowed, key=f"config.examples.of.{name}.source")
    own = load_examples(**settings)
    placed += [((i + 0.5) / len(own), part, example) for i, example in enumerate(own)]
  return [example for *_, example in sorted(placed, key=lambda item: item[:2])]


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


def read_made(path: epath.PathLike) -> Iterator[Example]:
  """Examples that a stage has made, with their category in `Problem.meta`."""

  def check(record: builders.Record) -> Mapping[str, Any]:
    builders.text_fields(record, ("prompt", "completion", "category"))
    return record

  for number, record in builders.read_lines(
    path, check, on_bad_line="error", key="config.examples.stage"
  ):
    yield Example(
      Problem(
        id=f"{epath.Path(path).parent.name}/{number}",
        prompt=record["prompt"],
        answer=record["answer"],
        verifier="exact",
        meta={"category": record["category"]},
        messages=tuple(record.get("messages", ())),
      ),
      record["completion"],
    )


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


# Source -> what it cannot do without, and others do not use.
USES = {
  "worked": ("task",),
  "jsonl": ("path",),
  "stage": ("stage", "path"),
  "mixture": ("of",),
}
# Task -> (entry, "direct" or "think") -> completion.
WRITERS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
  chain.NAME: chain.corpus_text,
  "chain_sum": chain_sum_text,
  small_talk.NAME: small_talk.corpus_text,
}
