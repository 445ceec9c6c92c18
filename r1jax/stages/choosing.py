"""Which answers of a policy become examples: those chosen, and of them the readable.

Whatever drops an answer counts it, in a `Sieve`.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from r1jax.data import filters
from r1jax.data.examples import Made
from r1jax.data.filters import Sieve
from r1jax.data.selection import majority
from r1jax.errors import InputError
from r1jax.rewards import endpoint, language, rewriter, votes
from r1jax.rewards.judge import Ask
from r1jax.rewards.pool import RewardPool

# How answers are chosen -> the settings of `choose` that this reads.
CHOICES = {
  "right": ("part", "least"),
  "majority": ("least",),
  "best": ("part",),
}


def _right(config: Mapping[str, Any], sieve: Sieve, made: list[Made]) -> list[Made]:
  part, least = config["choose"]["part"], config["choose"]["least"]
  return sieve("wrong", made, _below(least, lambda one: one.score, part))


def _majority(config: Mapping[str, Any], sieve: Sieve, made: list[Made]) -> list[Made]:
  """Those with the answer that most of a problem's have; no gold is read.

  An answer that was cut off has no vote, and counts in the whole all the same.
  """
  voted, shown = [], {}
  by_problem = collections.defaultdict(list)
  for one in made:
    key, answer = (_vote(one) if one.ended else None) or (None, "")
    shown.setdefault((one.problem.id, key), answer)
    by_problem[one.problem.id].append(key)
    voted.append(dataclasses.replace(one, vote=key))
  labels = {problem: majority(keys) for problem, keys in by_problem.items()}

  def labelled(one: Made) -> Made:
    label, share = labels[one.problem.id]
    return dataclasses.replace(one, answer=shown[one.problem.id, label], score=share)

  voted = [labelled(one) for one in voted]
  kept = sieve("no_answer", voted, lambda one: "" if one.vote else "no answer")
  least = config["choose"]["least"]
  kept = sieve("unsure", kept, _below(least, lambda one: one.score, "share of votes"))

  def minority(one: Made) -> str:
    label = labels[one.problem.id][0]
    return "" if one.vote == label else f"{one.vote!r} against {label!r}"

  return sieve("minority", kept, minority)


def _vote(one: Made) -> tuple[str, str] | None:
  record = {"verifier": one.problem.verifier, "meta": one.problem.meta}
  return votes.vote(one.completion, record)


# How answers are chosen -> what does so. The best are told apart once others are gone.
CHOOSE: dict[str, Callable[[Mapping[str, Any], Sieve, list[Made]], list[Made]]] = {
  "right": _right,
  "majority": _majority,
  "best": lambda config, sieve, made: made,
}


def readable(
  config: Mapping[str, Any],
  sieve: Sieve,
  made: list[Made],
  *,
  prefix: str = "",
  without: Sequence[str] = (),
) -> list[Made]:
  """Those that people read with ease.

  Args:
    prefix: of the filters' names.
    without: parts of the reward that are not looked at.
  """
  keep, target = config["keep"], config["reward"]["language"]
  if not keep["truncated"]:
    made = sieve(f"{prefix}truncated", made, lambda one: "" if one.ended else "cut off")
  for part, least in keep["least"].items():
    if part not in without:
      below = _below(least, lambda one, part=part: one.parts.get(part), part)
      made = sieve(f"{prefix}low_{part}", made, below)
  measures = {
    **filters.MEASURES,
    "foreign_words": functools.partial(foreign_words, target=target),
  }
  for key, measure in measures.items():
    if keep[key] is not None:
      made = sieve(f"{prefix}{key}", made, _above(keep[key], measure))
  return made


def foreign_words(text: str, *, target: str) -> float:
  """Share of the words of all of an answer that are not of a language, 0 of none."""
  found = [is_own for _, is_own in language.judged(filters.untagged(text), target)]
  return 1.0 - sum(found) / len(found) if found else 0.0


def _below(
  least: float, of: Callable[[Made], float | None], name: str
) -> Callable[[Made], str]:
  """A fault of those with too little, or without any, as of a part of the reward."""

  def fault(one: Made) -> str:
    value = of(one)
    if value is None:
      return f"no {name}"
    return "" if value >= least else f"{name} {value:g}"

  return fault


def _above(most: float, measure: Callable[[str], float]) -> Callable[[Made], str]:
  def fault(one: Made) -> str:
    value = measure(one.completion)
    return "" if value <= most else f"{value:g} above {most:g}"

  return fault


def rewriter_of(config: Mapping[str, Any]) -> endpoint.Endpoint | None:
  """Who writes answers anew; None where nobody does."""
  with _of_rewriter():
    return endpoint.of_section(config["rewrite"]["endpoint"])


@contextlib.contextmanager
def _of_rewriter() -> Iterator[None]:
  """Errors of the endpoint name its section here."""
  try:
    yield
  except InputError as e:
    said = str(e).replace("config.reward.judge", "config.rewrite.endpoint")
    raise InputError(said) from e


def rewritten(
  config: Mapping[str, Any],
  sieve: Sieve,
  made: Sequence[Made],
  *,
  ask: Ask,
  pool: RewardPool,
) -> list[Made]:
  """Written anew by a model, where that is right still and as readable.

  The part "format" is of what the policy was asked for, and not looked at again.
  """
  choose = config["choose"]
  with _of_rewriter():
    texts = rewriter.rewritten(
      ask,
      [(one.problem.prompt, one.completion) for one in made],
      form=config["rewrite"]["form"],
    )
  new = [
    dataclasses.replace(one, completion=text or "", ended=text is not None)
    for one, text in zip(made, texts, strict=True)
  ]
  new = sieve("rewriting_failed", new, lambda one: "" if one.ended else "no such reply")
  if not new:
    return []
  parts, _ = pool.score([one.completion for one in new], [one.problem for one in new])
  new = [
    dataclasses.replace(one, parts={**one.parts, **own})
    for one, own in zip(new, parts, strict=True)
  ]
  if choose["kind"] == "majority":

    def fault(one: Made) -> str:
      found = _vote(one)
      return "" if found and found[0] == one.vote else f"{found} against {one.vote!r}"

  else:
    part = choose["part"]
    new = [dataclasses.replace(one, score=one.parts.get(part)) for one in new]
    fault = _below(choose["least"], lambda one: one.score, part)
  new = sieve("rewritten_wrong", new, fault)
  others = [part for part in config["keep"]["least"] if part not in pool.names]
  return readable(config, sieve, new, prefix="rewritten_", without=["format", *others])
