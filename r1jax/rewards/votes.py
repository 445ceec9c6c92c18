"""Which answers of several completions are one and the same."""

from collections.abc import Mapping
from typing import Any

from r1jax.rewards import choice, extract

# Verifiers that read all of an answer's span, as it is.
_OF_SPAN = ("exact", "reasoning_gym")
# Of programs none is like another, and a judge reads sentences.
NO_VOTE = ("code", "judge")


def vote(text: str, problem: Mapping[str, Any]) -> tuple[str, str] | None:
  """(a key that equal answers share, the answer as it stands); None without one.

  Equal are answers with the same letter to a multiple choice, those that are the same
  number (7/2, 3.5 and $3.50), and texts that differ in white space alone, or in case
  where their verifier does not care. The gold answer is not read; problems with a
  verifier in NO_VOTE have no votes. Departs: formulas that are equal as algebra alone
  are different votes, which would make each vote a comparison with all others.

  Args:
    text: the completion.
    problem: a record; of it `verifier`, and `meta` for a choice.
  """
  if problem["verifier"] in NO_VOTE:
    return None
  if problem["verifier"] == "choice":
    options = choice.by_letter(problem["meta"].get("options", ()))
    letter = choice.choose(text, options)
    return None if letter is None else (letter, letter)
  if problem["verifier"] in _OF_SPAN:
    shown, _ = extract.answer_span(text)
  else:
    shown = next(iter(extract.readings(text)[-1:]), None)
  if not shown:
    return None
  number = extract.number(shown)
  said = shown if problem["verifier"] in _OF_SPAN else shown.casefold()
  key = " ".join(said.split()) if number is None else str(number)
  return (key, shown) if key else None
