"""R1-Zero's format: a thought in its tags, then an answer in its tags."""

import re
from collections.abc import Mapping
from typing import Any

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORMAT = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


def score(text: str, problem: Mapping[str, Any] | None = None) -> float:
  """1.0 where every tag stands exactly once, in order, and nothing is left outside.

  DeepSeek-R1 report (arXiv 2501.12948), section 2.2: the thought between `<think>` and
  `</think>`, then the answer in its tags. White space may stand around and between;
  either may be empty. Departs: the report publishes no magnitude; this is 1 or 0.

  Args:
    text: the completion, without the prompt.
    problem: not looked at; every part has the same arguments.
  """
  del problem
  once = all(text.count(tag) == 1 for tag in TAGS)
  return float(once and _FORMAT.fullmatch(text) is not None)
