"""Is the answer written as it was asked for? One kind per way of asking."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.boxes import last_boxed
from r1jax.errors import one_of
from r1jax.rewards.extract import answer_span

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_R1_ZERO = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


def score(
  text: str, problem: Mapping[str, Any] | None = None, *, kind: str, strict: bool
) -> float:
  """1.0 for a well-formed completion, by the rules of a kind (a key of KINDS).

  DeepSeek-R1 report (arXiv 2501.12948), section 2.2. Departs: the report publishes no
  magnitude; strict forms are 1 or 0, soft ones give a fraction for each mark that
  stands where it should, so that a model which never gets all of them right learns.

  Args:
    text: the completion, without the prompt.
    problem: not looked at; every part has the same arguments.
  """
  del problem
  return KINDS[one_of(kind, KINDS, key="config.reward.format.kind")](text, strict)


def r1_zero(text: str, strict: bool) -> float:
  """`<think>…</think> <answer>…</answer>`: R1-Zero's.

  Strict: every tag stands exactly once, in order, and only white space is outside and
  between; either content may be empty. Soft: a quarter for each tag that stands exactly
  once, behind those before it in the order; what is outside does not matter.
  """
  if strict:
    once = all(text.count(tag) == 1 for tag in TAGS)
    return float(once and _R1_ZERO.fullmatch(text) is not None)
  placed, end = 0, 0
  for tag in TAGS:
    at = text.find(tag)
    if at >= end and text.count(tag) == 1:
      placed, end = placed + 1, at + len(tag)
  return placed / len(TAGS)


def think_prefix(text: str, strict: bool) -> float:
  """`…</think>…`: R1's, whose prompt ends in `<think>`, so that the thought is open.

  Strict: `</think>` stands exactly once, no other tag of the order does, and something
  is said behind it; the thought may be empty. Soft: half for exactly one `</think>`,
  half more where something is said behind it; other tags do not matter.
  """
  _, closed, answer = text.partition("</think>")
  if not closed or "</think>" in answer:
    return 0.0
  if strict:
    return float(bool(answer.strip()) and not any(tag in text for tag in TAGS[::2]))
  return 1.0 if answer.strip() else 0.5


def think(text: str, strict: bool) -> float:
  """`<think>…</think>…`: R1's, where the answer opens the thought itself.

  Strict: as `think_prefix`, behind a `<think>` that the answer begins with. Soft: half
  for beginning with it, half as much as `think_prefix` gives for the rest.
  """
  opened = text.lstrip().startswith("<think>")
  rest = text.partition("<think>")[2] if opened else text
  if strict:
    return think_prefix(rest, strict) if opened else 0.0
  return 0.5 * opened + 0.5 * think_prefix(rest, strict)


def boxed(text: str, strict: bool) -> float:
  r"""`\boxed{…}` where `answer_span` looks for the answer, so not in the thought.

  Strict: exactly one box, with its braces closed and something in it. Soft: 1.0 for any
  closed box, half for one that is opened and never closed.
  """
  span, _ = answer_span(text)
  span = span or ""
  box, num_boxes = last_boxed(span), span.count("\\boxed{")
  if strict:
    return float(num_boxes == 1 and bool(box))
  return 0.5 * (num_boxes > 0) + 0.5 * (box is not None)


KINDS: dict[str, Callable[[str, bool], float]] = {
  "r1_zero": r1_zero,
  "think_prefix": think_prefix,
  "think": think,
  "boxed": boxed,
}
