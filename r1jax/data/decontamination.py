"""Removing training problems that an evaluation set contains."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from r1jax.types import Problem

# Punctuation separates words and is dropped, except operators: without them
# "3 a+4" and "3 a-4" would be one text. A hyphen inside a word is no operator.
_WORD = re.compile(r"[^\W_]+|(?<![^\W\d_])-|-(?![^\W\d_])|[+*/^=<>]")


@dataclasses.dataclass(frozen=True)
class Contamination:
  """What was dropped: how many, and some as (train id, evaluation id, words)."""

  count: int
  examples: tuple[tuple[str, str, str], ...]


def ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
  """Runs of n lower-cased words; a text of fewer words is one run as a whole."""
  words = _WORD.findall(text.lower())
  for i in range(max(1, len(words) - n + 1)):
    yield tuple(words[i : i + n])


def overlap(
  evaluation: Iterable[Problem], *, n: int
) -> Callable[[str], tuple[str, str] | None]:
  """Finds what a text shares: (evaluation id, n words in a row), None for nothing."""
  seen: dict[tuple[str, ...], str] = {}
  for problem in evaluation:
    for run in ngrams(problem.prompt, n):
      seen.setdefault(run, problem.id)

  def shared(text: str) -> tuple[str, str] | None:
    run = next((run for run in ngrams(text, n) if run in seen), None)
    return None if run is None else (seen[run], " ".join(run))

  return shared


def decontaminate(
  problems: Iterable[Problem],
  evaluation: Sequence[Problem],
  *,
  n: int = 10,
  num_examples: int = 5,
) -> tuple[list[Problem], Contamination]:
  """Drops problems whose prompt shares a run of n words with an evaluation prompt.

  DeepSeek-R1 report (arXiv 2501.12948 v2), evaluation: 10-gram match. Texts shorter
  than n words match only as a whole. Departs: operators count as words.

  Returns:
    The kept problems in order, and what was dropped.
  """
  shared = overlap(evaluation, n=n)
  kept, examples, count = [], [], 0
  for problem in problems:
    found = shared(problem.prompt)
    if found is None:
      kept.append(problem)
      continue
    count += 1
    if len(examples) < num_examples:
      examples.append((problem.id, *found))
  return kept, Contamination(count, tuple(examples))
