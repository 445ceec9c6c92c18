"""Language consistency: is the thought written in the language asked for?"""

import itertools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from r1jax.errors import one_of

# The first word of a letter's Unicode name, which names its script for letters.
SCRIPTS = {"en": "LATIN", "zh": "CJK"}
_LETTERS = re.compile(r"[^\W\d_]+")
_COMMAND = re.compile(r"\\[A-Za-z]+")


def score(
  text: str, problem: Mapping[str, Any] | None = None, *, target: str = "en"
) -> float:
  """Words of the thought in the target language over all its words, in [0, 1].

  DeepSeek-R1 report (arXiv 2501.12948), section 2.3.2: 18 target words of 20 give 0.9.
  A word is a run of letters of one script; every Han character is a word of its own.
  Digits, operators and LaTeX commands are no words.

  Departs: languages are told apart by script, so that French counts as "en", Japanese
  kanji as "zh", and a variable x as a Latin word. A thought without any word, or no
  thought, gives 0: silence is not consistency.

  Args:
    text: the completion, without the prompt. The thought ends at the first `</think>`
      and starts at `<think>` before it, or at the beginning where the prompt has opened
      it; an unfinished thought goes to the end.
    target: a key of SCRIPTS.
  """
  del problem
  one_of(target, SCRIPTS, key="config.reward.language")
  words = scripts(thought(text))
  return words.count(SCRIPTS[target]) / len(words) if words else 0.0


def thought(text: str) -> str:
  before, closed, _ = text.partition("</think>")
  _, opened, after = before.partition("<think>")
  return after if opened else before if closed else ""


def scripts(text: str) -> list[str]:
  """The script of every word, in order."""
  found = []
  for letters in _LETTERS.findall(_COMMAND.sub(" ", text)):
    names = (unicodedata.name(letter, "?").split(" ")[0] for letter in letters)
    for script, run in itertools.groupby(names):
      found += [script] * (len(list(run)) if script == "CJK" else 1)
  return found
