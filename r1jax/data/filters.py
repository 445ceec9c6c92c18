"""What is measured of worked-out answers, and the sieve that drops some of them.

DeepSeek-R1 (arXiv 2501.12948, section 2.3.3) leaves out chains of thought with mixed
languages, long paragraphs and code blocks. It does not say where a paragraph is long;
bounds stand in the config.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from r1jax.data.templates import TAGS, THINK_CLOSE, THINK_OPEN

T = TypeVar("T")
_TAG = re.compile("|".join(map(re.escape, TAGS)))
_BLANK = re.compile(r"\n[^\S\n]*\n")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$", re.MULTILINE)


def chain(text: str) -> str:
  """The chain of thought: what stands before the first `</think>`, without `<think>`.

  All of an answer that has no `</think>` is one: there is no summary.
  """
  before, _, _ = text.partition(THINK_CLOSE)
  _, opened, after = before.partition(THINK_OPEN)
  return after if opened else before


def untagged(text: str) -> str:
  """A text in which every tag is a blank line."""
  return _TAG.sub("\n\n", text)


def paragraphs(text: str) -> list[str]:
  """What blank lines and tags part, each without white space around it."""
  parts = _BLANK.split(untagged(text))
  return [part.strip() for part in parts if part.strip()]


def paragraph_words(text: str) -> int:
  """Words of the longest paragraph of the chain of thought."""
  return max((len(part.split()) for part in paragraphs(chain(text))), default=0)


def paragraph_characters(text: str) -> int:
  """The same in characters, for languages that are written without spaces."""
  return max((len(part) for part in paragraphs(chain(text))), default=0)


def code_blocks(text: str) -> int:
  """Fenced blocks of the chain of thought; one that is not closed counts.

  As CommonMark has them: a fence is closed by one of the same sign, at least as long,
  with nothing behind it. Departs: indented blocks are none.
  """
  count, opened = 0, ""
  for match in _FENCE.finditer(chain(text)):
    fence, rest = match[1], match[2]
    if not opened:
      count, opened = count + 1, fence
    elif fence.startswith(opened) and not rest.strip():
      opened = ""
  return count


# Name in `config.keep` -> what is measured, of which there may be so much at most.
MEASURES: dict[str, Callable[[str], int]] = {
  "paragraph_words": paragraph_words,
  "paragraph_characters": paragraph_characters,
  "code_blocks": code_blocks,
}


class Sieve:
  """Drops items, counts them by filter, and keeps a few of each as examples.

  Args:
    num_examples: kept of each filter.
    shown: an item as JSON.

  Attributes:
    counts: {filter: items dropped}, of every filter that was used.
    examples: {"filter", "why", ...what `shown` made} of the first items dropped.
  """

  def __init__(self, num_examples: int, shown: Callable[[Any], dict[str, Any]]):
    self._num_examples = num_examples
    self._shown = shown
    self.counts: dict[str, int] = {}
    self.examples: list[dict[str, Any]] = []

  def __call__(
    self, name: str, items: Sequence[T], fault: Callable[[T], str]
  ) -> list[T]:
    """The items without a fault, in order; `fault` says it, "" is none."""
    self.counts.setdefault(name, 0)
    kept = []
    for item in items:
      why = fault(item)
      if not why:
        kept.append(item)
        continue
      self.counts[name] += 1
      if self.counts[name] <= self._num_examples:
        self.examples.append({"filter": name, "why": why, **self._shown(item)})
    return kept


def once(key: Callable[[T], Any]) -> Callable[[T], str]:
  """A fault of items whose key an earlier one has had."""
  met: set[Any] = set()

  def fault(item: T) -> str:
    if (own := key(item)) in met:
      return "an earlier one is the same"
    met.add(own)
    return ""

  return fault


def at_most(limit: int, key: Callable[[T], Any]) -> Callable[[T], str]:
  """A fault of items before which `limit` had the same key; 0 is no limit."""
  counts: dict[Any, int] = {}

  def fault(item: T) -> str:
    own = key(item)
    if limit and counts.get(own, 0) >= limit:
      return f"{limit} of {own!r} are kept"
    counts[own] = counts.get(own, 0) + 1
    return ""

  return fault


def same_text(*texts: str) -> tuple[str, ...]:
  """A key that texts share which differ in case and white space alone."""
  return tuple(" ".join(text.casefold().split()) for text in texts)
