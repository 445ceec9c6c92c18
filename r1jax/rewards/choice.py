"""Multiple choice: the letter that an answer names, A to J.

Read in this order, the first that applies: a letter alone ("C", "(C)", "C."); the text
of exactly one option; a letter before a text ("C. Paris", "(C) Paris", and after a cue
"C because …"); the only letter that is marked as one ("option C", "(C)"). What names
several, or a letter beside the text of another option, is wrong.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.errors import InputError
from r1jax.rewards import extract

LETTERS = "ABCDEFGHIJ"

_QUOTED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_ALONE = re.compile(r"(?:option|choice)?\s*\(?([A-Ja-j])[).:]*", re.IGNORECASE)
_LEADING = re.compile(r"(?:[Oo]ption|[Cc]hoice)?\s*\(?([A-J])(?:[).:]+\s*|\s+|$)")
_PUNCTUATED = re.compile(r"(?:[Oo]ption|[Cc]hoice)?\s*\(?[A-J][).:]")
_NAMED = re.compile(r"\(([A-J])\)|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+\(?([A-J])\b")
_ANOTHER = re.compile(r"(?:\b(?:or|and)\b|[,/&])\s*(?:option|choice)?\s*\(?([A-J])\b")


def verify_choice(text: str, problem: Mapping[str, Any]) -> float:
  """1.0 where the completion names the gold's letter, and no other.

  `meta["options"]`, where given, are the options' texts, in order or by letter.

  Raises:
    InputError: a gold that is no letter from A to J.
  """
  gold = _ALONE.fullmatch(problem["answer"].strip())
  if gold is None:
    raise InputError(
      f"problem {problem['id']!r}: the verifier 'choice' needs one letter from A to J "
      f"as answer, not {problem['answer']!r}; set config.data.verifier"
    )
  options = by_letter(problem["meta"].get("options", ()))
  return float(choose(text, options) == gold[1].upper())


def by_letter(options: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
  if isinstance(options, Mapping):
    return {letter.upper(): _plain(text) for letter, text in options.items()}
  return {LETTERS[i]: _plain(text) for i, text in enumerate(options[: len(LETTERS)])}


def choose(text: str, options: Mapping[str, str]) -> str | None:
  """The letter that a completion names; None for none and for several.

  Args:
    options: texts by letter, as `by_letter` gives them.
  """
  span, tagged = extract.answer_span(text)
  if not span:
    return None
  answer = extract.marked(span)
  cued = answer is not None
  if answer is None:
    answer = span if tagged else span.splitlines()[-1]
  return letter(answer, options, cued=cued)


def letter(
  answer: str, options: Mapping[str, str], *, cued: bool = False
) -> str | None:
  """The letter that an answer names, without the text around it.

  Args:
    cued: "answer is" or the like stood before, so that "C because" names C.
  """
  answer = _QUOTED.sub(r"\1", answer.replace("$", "").replace("\\ ", " "))
  answer = answer.replace("**", "").strip()
  alone = _ALONE.fullmatch(answer)
  if alone:
    return alone[1].upper()
  told = [name for name, text in options.items() if text and text == _plain(answer)]
  if told:
    return told[0] if len(told) == 1 else None
  named = {a or b for a, b in _NAMED.findall(answer)} | set(_ANOTHER.findall(answer))
  leading = _LEADING.match(answer)
  if leading and (cued or _PUNCTUATED.match(answer)):
    named.add(leading[1])
    rest = _plain(answer[leading.end() :])
    named |= {name for name, text in options.items() if text and text == rest}
  return named.pop() if len(named) == 1 else None


def _plain(text: str) -> str:
  return " ".join(re.sub(r"[^\w%.+*/^-]+", " ", text.casefold()).split()).rstrip(".")
