"""Which answers of several completions are one and the same."""

from collections.abc import Mapping
from typing import Any

from r1jax.rewards import choice, extract


def vote(text: str, problem: Mapping[str, Any]) -> tuple[str, str] | None:
  """(a key that equal answers share, the answer as it stands); None without one.

  Equal are answers with the same letter to a multiple choice, those that are the same
  number (7/2, 3.5 and $3.50), and texts that differ in case and white space alone. The
  gold answer is not read. Departs: formulas that are equal as algebra alone are
  different votes, which would make each vote a comparison with all others.

  Args:
    text: the completion.
    problem: a record; of it `verifier`, and `meta` for a choice.
  """
  if problem["verifier"] == "choice":
    options = choice.by_letter(problem["meta"].get("options", ()))
    letter = choice.choose(text, options)
    return None if letter is None else (letter, letter)
  readings = extract.readings(text)
  if not readings:
    return None
  shown = readings[-1]
  number = extract.number(shown)
  key = " ".join(shown.casefold().split()) if number is None else str(number)
  return (key, shown) if key else None
