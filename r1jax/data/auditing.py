"""What is the matter with a data set: kinds of findings, and those of its texts alone.

What verifiers make of its golds is added by the command (`r1jax/audit.py`).
"""

import collections
import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from r1jax.data import decontamination, problems
from r1jax.data.problems import ProblemSet
from r1jax.types import Problem

_CHARACTERS = 300  # of a text in a finding


class Kind(NamedTuple):
  says: str
  is_severe: bool


# Severe is what makes a reward or an accuracy wrong.
KINDS = {
  "unparsable_gold": Kind("no verifier could read the gold; loading drops it", False),
  "gold_rejected": Kind("the gold, written in this form, is judged wrong", True),
  "gold_disputed": Kind("what its worked solution marks as answer is wrong", True),
  "extractors_disagree": Kind("what else can be read there is wrong", False),
  "false_positive": Kind("a wrong answer is judged right", True),
  "doubtful_positive": Kind("an answer that may be wrong is judged right", False),
  "question_accepted": Kind("the question is judged a right answer", False),
  "no_verdict": Kind("the verifier ran out of time or memory, or died", True),
  "error": Kind("the verifier raised", True),
  "conflicting_golds": Kind("asked before, with a gold that is judged wrong", True),
  "duplicate": Kind("asked before, up to case and white space", False),
  "overlap": Kind("shares words with an evaluation; training drops it", False),
  "overlap_kept": Kind("so it does, and decontaminate=0 keeps it", True),
}


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that is the matter.

  Attributes:
    data_set: its name.
    kind: a key of KINDS.
    problem: its id.
    what: which way of looking has found it; "" where there is one.
    detail: what was judged, or what is shared with whom.
  """

  data_set: str
  kind: str
  problem: str
  what: str
  gold: str
  detail: str


@dataclasses.dataclass
class Audit:
  """All that is found in one data set.

  Attributes:
    tried: {(kind, what): how often it was looked for}.
    facts: further numbers, JSON-like.
  """

  data_set: str
  tried: collections.Counter[tuple[str, str]] = dataclasses.field(
    default_factory=collections.Counter
  )
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  _findings: dict[Finding, None] = dataclasses.field(default_factory=dict)

  def add(self, kind: str, problem: Problem, detail: str, *, what: str = "") -> None:
    """Adds a finding, unless it is there."""
    gold, detail = problem.answer[:_CHARACTERS], detail[:_CHARACTERS]
    one = Finding(self.data_set, kind, problem.id, what, gold, detail)
    self._findings[one] = None

  @property
  def findings(self) -> list[Finding]:
    return list(self._findings)

  @property
  def num_severe(self) -> int:
    return sum(KINDS[finding.kind].is_severe for finding in self._findings)

  def checks(self) -> list[dict[str, Any]]:
    """What was looked for and how often it was found, in the order of KINDS."""
    found = collections.Counter((one.kind, one.what) for one in self._findings)
    first = {(one.kind, one.what): one.problem for one in reversed(self.findings)}
    place = {kind: i for i, kind in enumerate(KINDS)}
    return [
      {
        "kind": kind,
        "what": what,
        "found": found[kind, what],
        "of": tried,
        "severe": KINDS[kind].is_severe,
        "first": first.get((kind, what)),
      }
      for (kind, what), tried in sorted(
        self.tried.items(), key=lambda item: place[item[0][0]]
      )
    ]


def find_unparsable(found: Audit, entries: Sequence[Problem]) -> list[Problem]:
  """Adds problems whose gold cannot be read; returns the others."""
  found.tried["unparsable_gold", ""] = len(entries)
  others = []
  for problem in entries:
    if problems.gold_parses(problem):
      others.append(problem)
    else:
      found.add("unparsable_gold", problem, problem.prompt)
  return others


def find_overlap(
  found: Audit, kept: ProblemSet, held_out: Mapping[str, ProblemSet], *, words: int
) -> None:
  """Adds problems that share words with an evaluation, as training looks for them.

  Args:
    held_out: by name.
    words: in a row; 0, where training does not look, is the usual number.
  """
  kind = "overlap" if words else "overlap_kept"
  by_id = {problem.id: problem for problem in kept}
  for name, evaluation in held_out.items():
    found.tried[kind, name] = len(kept)
    _, shared = decontamination.decontaminate(
      kept, evaluation, num_examples=len(kept), **({"n": words} if words else {})
    )
    for ours, theirs, run in shared.examples:
      found.add(kind, by_id[ours], f"{theirs}: {run}", what=name)


def asked_again(entries: Iterable[Problem]) -> Iterator[tuple[Problem, Problem]]:
  """(first, later) for every problem whose prompt says what an earlier one said."""
  first: dict[str, Problem] = {}
  for problem in entries:
    before = first.setdefault(normalised(problem.prompt), problem)
    if before is not problem:
      yield before, problem


def normalised(prompt: str) -> str:
  """The text in composed Unicode and small letters, any white space as one blank."""
  return " ".join(unicodedata.normalize("NFC", prompt).casefold().split())


def most_common_gold(kept: Sequence[Problem]) -> tuple[str, float]:
  """The gold that is written most often, and its share of the problems."""
  counts = collections.Counter(problem.answer.strip() for problem in kept)
  [(gold, count)] = counts.most_common(1)
  return gold[:_CHARACTERS], count / len(kept)
