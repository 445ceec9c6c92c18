"""Does the program of an answer pass the problem's tests?

Tests stand in the problem's `meta`:

- `tests`: a list of records. Those with `stdout` (and `stdin`, by default empty) run
  the program; those with `result` (and `args`, `kwargs`) call a function of it.
- `function`: which, as `name`, or as `Class.name` of a class made without arguments.
- `tolerance`: by how much a number may be off, absolutely or relatively; 0 without it.

Programs are Python with its standard library alone. What should come out is compared
out here and never enters the sandbox.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r1jax.errors import InputError, one_of
from r1jax.rewards.extract import answer_span
from r1jax.rewards.sandbox import Limits, Sandbox, choose, run

if TYPE_CHECKING:
  from r1jax.types import Problem

Record = Mapping[str, Any]

_PYTHON = ("python", "python3", "py")
_RUN = {"stdin": str, "stdout": str}
_CALL = {"args": list, "kwargs": dict, "result": object}
SCORES: dict[str, Callable[[Sequence[bool]], float]] = {
  "fraction": lambda passed: sum(passed) / len(passed),
  "all": lambda passed: float(all(passed)),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Where programs run, what they may take, and how passed tests count (SCORES)."""

  sandbox: Sandbox
  limits: Limits
  score: str


def prepare(
  problems: "Iterable[Problem]",
  *,
  timeout_s: float,
  sandbox: str,
  score: str,
  **limits: float,
) -> Settings | None:
  """Settings of config.reward.code; None where no problem has the verifier "code".

  Args:
    timeout_s: of the reward pool, per answer; all tests together must end before it.
    sandbox: a key of `sandbox.KINDS`.
    limits: of `sandbox.Limits`.

  Raises:
    InputError: tests that cannot be read; settings; no such sandbox here.
  """
  asked = [problem for problem in problems if problem.verifier == "code"]
  for problem in asked:
    tests_of({"id": problem.id, "meta": problem.meta})
  if not asked:
    return None
  one_of(score, SCORES, key="config.reward.code.score")
  allowed = Limits(**limits)
  if allowed.total_s >= timeout_s:
    raise InputError(
      f"config.reward.code.total_s={allowed.total_s} is not below "
      f"config.reward.timeout_s={timeout_s}, at which the pool gives an answer up"
    )
  return Settings(choose(sandbox, allowed), allowed, score)


def verify(text: str, problem: Record, settings: Settings | None = None) -> float:
  """What the program of an answer scores on the problem's tests, in [0, 1].

  A test is passed by exit code 0 and the right output. Without a program: 0.
  """
  if settings is None:
    raise InputError(
      f"problem {problem['id']!r}: the verifier 'code' runs programs, for which it "
      "needs the settings of config.reward.code"
    )
  program = program_of(text)
  if program is None:
    return 0.0
  tests = tests_of(problem)
  outcomes = run(
    program,
    [inputs(test) for test in tests],
    settings.sandbox,
    settings.limits,
    function=problem["meta"].get("function"),
    stop=settings.score == "all",
  )
  tolerance = problem["meta"].get("tolerance", 0)
  return SCORES[settings.score](
    [
      outcome.status == "ok" and right(outcome.output, test, tolerance)
      for test, outcome in zip(tests, outcomes, strict=True)
    ]
  )


def program_of(text: str) -> str | None:
  """The program in the answer of a completion, or None.

  In the answer's span (`extract.answer_span`), the first of these that is there: the
  last complete block fenced as Python; the last one fenced without a language; without
  any fence all of an `<answer>`. So a block in another language is never run.
  """
  span, tagged = answer_span(text)
  if not span:
    return None
  found = list(blocks(span))
  for languages in (_PYTHON, ("",)):
    programs = [program for language, program in found if language in languages]
    if programs:
      return programs[-1]
  return span if tagged and "```" not in span else None


def blocks(text: str) -> Iterator[tuple[str, str]]:
  """(language in small letters, content) of every complete fenced block, in order.

  As CommonMark has it: a fence of backticks is closed by one of at least its length,
  alone on its line and at most three columns further in; the content loses as much of
  its indentation as the opening fence has.
  """
  length, indent, language, content = 0, 0, "", []
  for line in text.split("\n"):
    words = line.strip()
    ticks = len(words) - len(words.lstrip("`"))
    column = len(line) - len(line.lstrip(" "))
    if not length:
      if ticks >= 3 and "`" not in words[ticks:]:
        length, indent, content = ticks, column, []
        language = (words[ticks:].split() or [""])[0].lower()
    elif ticks >= length and ticks == len(words) and column <= indent + 3:
      yield language, "\n".join(content)
      length = 0
    else:
      content.append(line[min(indent, column) :])


def tests_of(problem: Record) -> list[Record]:
  """The tests of a problem.

  Raises:
    InputError: there are none; one is neither a run nor a call; no function to call.
  """
  tests = problem["meta"].get("tests")
  where = f"problem {problem['id']!r}, which the verifier 'code' judges:"
  if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
    raise InputError(f"{where} meta['tests'] is {tests!r}; needed: a list of tests")
  for number, test in enumerate(tests):
    kind = _CALL if "result" in test else _RUN
    if not any(key in test for key in ("stdout", "result")) or not all(
      key in kind and isinstance(value, kind[key]) for key, value in test.items()
    ):
      raise InputError(
        f"{where} test {number} is {str(test)[:200]}; allowed: texts 'stdout' and "
        "'stdin', or 'result' with a list 'args' and a dict 'kwargs'"
      )
    if kind is _CALL and not problem["meta"].get("function"):
      raise InputError(f"{where} test {number} is a call, but meta has no 'function'")
  return list(tests)


def inputs(test: Record) -> dict[str, Any]:
  """What the program is given; nothing of what should come out."""
  if "stdout" in test:
    return {"stdin": test.get("stdin", "")}
  return {"args": list(test.get("args", ())), "kwargs": dict(test.get("kwargs", {}))}


def right(output: bytes, test: Record, tolerance: float) -> bool:
  """Whether a test's output is what it should be."""
  if "stdout" in test:
    return same_text(output.decode(errors="replace"), test["stdout"], tolerance)
  try:
    # As JSON has it: tuples are lists, keys are texts.
    want = json.loads(json.dumps(test["result"]))
    return same_value(json.loads(output), want, tolerance)
  except (ValueError, RecursionError):
    return False


def same_text(got: str, want: str, tolerance: float) -> bool:
  """Line by line, without white space at the ends of lines and empty lines at the end.

  With a tolerance, the words of a line may be set apart otherwise, and those that are
  numbers may differ by it.
  """
  ours, theirs = lines(got), lines(want)
  if ours == theirs or not tolerance:
    return ours == theirs
  words = [(a.split(), b.split()) for a, b in zip(ours, theirs, strict=False)]
  return len(ours) == len(theirs) and all(
    len(a) == len(b) and all(near(x, y, tolerance) for x, y in zip(a, b, strict=True))
    for a, b in words
  )


def lines(text: str) -> list[str]:
  return [line.rstrip() for line in text.rstrip().split("\n")]


def near(got: str, want: str, tolerance: float) -> bool:
  if got == want:
    return True
  try:
    ours, theirs = float(got), float(want)
  except ValueError:
    return False
  # Two whole numbers beyond all floats are both infinite.
  return math.isfinite(theirs) and within(ours, theirs, tolerance)


def within(got: float, want: float, tolerance: float) -> bool:
  if got == want or not tolerance:
    return got == want
  try:
    return math.isclose(got, want, rel_tol=tolerance, abs_tol=tolerance)
  except OverflowError:  # a whole number beyond all floats
    return False


def same_value(got: Any, want: Any, tolerance: float) -> bool:
  """Values of JSON; 1 equals 1.0, true does not equal 1."""
  if isinstance(want, dict):
    return (
      isinstance(got, dict)
      and got.keys() == want.keys()
      and all(same_value(got[key], want[key], tolerance) for key in want)
    )
  if isinstance(want, list):
    return (
      isinstance(got, list)
      and len(got) == len(want)
      and all(same_value(a, b, tolerance) for a, b in zip(got, want, strict=True))
    )
  if isinstance(want, int | float) and not isinstance(want, bool):
    number = isinstance(got, int | float) and not isinstance(got, bool)
    return number and within(got, want, tolerance)
  return type(got) is type(want) and got == want
