"""Is the answer right? One verifier per `Problem.verifier`, text in, float out.

A problem arrives as a plain record (`id`, `prompt`, `answer`, `verifier`, `meta`), so
that nothing here needs jax: this module runs in reward workers. Heavy libraries are
imported where they are used, and before that by the workers' server (`modules_of`).
"""

import functools
import importlib
import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from r1jax.errors import InputError, one_of

Record = Mapping[str, Any]

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(
  r"(?P<sign>(?<![\w)\]}.])[-+])?(?:\$\s?(?P<minus>-)?)?"
  r"(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
  r"(?:\s?/\s?(?P<below>\d+(?![\d.])))?"
)
_INTEGER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)")
_DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed")
_QUOTED = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{[^{}]*\}")
_WORD = re.compile(
  r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|theta|alpha|beta|inf)"
  r"(?![A-Za-z]))[A-Za-z]{3,}"
)


def score(text: str, problem: Record) -> float:
  """1.0 for a right answer, 0.0 for a wrong or missing one; tasks may give parts.

  Args:
    text: the completion, without the prompt.
  """
  verify = VERIFIERS[one_of(problem["verifier"], VERIFIERS, key="config.data.verifier")]
  return verify(text, problem)


def answer_span(text: str) -> tuple[str | None, bool]:
  """The part of a completion in which the answer stands, and whether tags mark it.

  What follows the last `</think>` counts (all of the text where there is none). There,
  the last complete `<answer>…</answer>`; an opened tag without its end is no answer
  (None). Without answer tags, everything outside an unfinished thought. So the thought
  is searched only where no tag of either kind marks it off.
  """
  final = text.rpartition("</think>")[2]
  if "<answer>" in final:
    found = _ANSWER.findall(final)
    return (found[-1].strip(), True) if found else (None, True)
  return final.partition("<think>")[0].strip(), False


def last_boxed(text: str) -> str | None:
  r"""Content of the last complete `\boxed{…}`, with braces balanced; None without."""
  start = text.rfind("\\boxed{")
  while start >= 0:
    depth, begin = 0, start + len("\\boxed")
    for i in range(begin, len(text)):
      depth += {"{": 1, "}": -1}.get(text[i], 0)
      if depth == 0:
        return text[begin + 1 : i].strip()
    start = text.rfind("\\boxed{", 0, start)
  return None


def numbers(text: str) -> list[Fraction]:
  """Every number of a text in order: 1,234 | $5 | -3.50 | 7/2; never over zero."""
  text = text.replace("−", "-").replace("{,}", ",").replace("\\", "")
  found = []
  for match in _NUMBER.finditer(text):
    below = int(match["below"]) if match["below"] is not None else 1
    if below == 0:
      continue
    value = Fraction(Decimal(match["number"].replace(",", ""))) / below
    negative = match["minus"] is not None or (match["sign"] or "").startswith("-")
    found.append(-value if negative else value)
  return found


def verify_gsm8k(text: str, problem: Record) -> float:
  r"""The last number of the answer equals the gold number exactly, as a fraction.

  Searched in this order: `<answer>` content, last `\boxed{}`, whole span; in each, the
  last number, so that "18 dollars" and "so she has $1,234.00." are read.
  """
  span, _ = answer_span(text)
  if span is None:
    return 0.0
  boxed = last_boxed(span)
  found = numbers(span if boxed is None else boxed)
  gold = numbers(problem["answer"])
  return float(bool(found) and bool(gold) and found[-1] == gold[-1])


def verify_math(text: str, problem: Record) -> float:
  r"""math-verify's judgement of a LaTeX, plain or worded answer.

  Searched in this order: last `\boxed{}` in the `<answer>` content, else all of that
  content; without answer tags the last `\boxed{}`, else the last number. The comparison
  is not symmetric (gold "1 < x < 2" accepts the interval, not the other way), so gold
  goes first. A gold that does not parse is never matched.
  """
  span, tagged = answer_span(text)
  if not span:
    return 0.0
  answer = last_boxed(span)
  if answer is None and tagged:
    answer = span
  elif answer is None:
    found = numbers(span)
    answer = str(found[-1]) if found else ""
  answer, gold = as_latex(answer), as_latex(problem["answer"])
  # Most answers are whole numbers, which need no algebra.
  ours, theirs = _INTEGER.fullmatch(answer[1:-1]), _INTEGER.fullmatch(gold[1:-1])
  if ours and theirs:
    return float(numbers(ours[0]) == numbers(theirs[0]))
  golds = parse_gold(gold)
  if not golds:
    return 0.0

  from math_verify import verify

  # The pool has the deadline; math-verify's own would use signals.
  return float(verify(list(golds), parse(answer), timeout_seconds=None))


def as_latex(answer: str) -> str:
  """An answer as math-verify should see it.

  A formula without delimiters gets them ("x^2" would be searched for numbers only).
  Words beside digits ("42 apples", "The answer is 42") stay plain text, in which
  math-verify finds the number; between delimiters their letters would be variables.
  """
  answer = answer.strip().replace("\\$", "")
  if answer.count("$") == 1:  # a currency
    answer = answer.replace("$", "")
  answer = answer.strip().removesuffix(".")
  bare = _QUOTED.sub("", answer)
  worded = _WORD.search(bare) is not None and any(c.isdigit() for c in bare)
  return answer if worded or _DELIMITER.search(answer) else f"${answer}$"


def parse(text: str, *, fallback: str = "first_match") -> list[Any]:
  import math_verify

  return math_verify.parse(text, fallback_mode=fallback, parsing_timeout=None)


@functools.lru_cache(maxsize=4096)
def parse_gold(answer: str) -> tuple[Any, ...]:
  """Expressions that a gold (as `as_latex` leaves it) stands for; none if no maths."""
  return tuple(parse(answer, fallback="no_fallback"))


def verify_exact(text: str, problem: Record) -> float:
  """The span is the gold answer, letter by letter, up to white space around it."""
  span, _ = answer_span(text)
  return float(span is not None and span == problem["answer"].strip())


def verify_reasoning_gym(text: str, problem: Record) -> float:
  """The task's own `score_answer` on the span; some tasks give parts of a point."""
  span, _ = answer_span(text)
  meta = problem["meta"]
  judge = _judge(
    meta["module"], meta["task"], json.dumps(meta["task_args"], default=str)
  )
  return float(judge(span, meta["entry"]))


@functools.lru_cache(maxsize=64)
def _judge(module: str, task: str, task_args: str) -> Callable[[Any, Any], float]:
  importlib.import_module(module)
  from reasoning_gym.factory import create_dataset

  return create_dataset(task, **json.loads(task_args), seed=0, size=1).score_answer


VERIFIERS: dict[str, Callable[[str, Record], float]] = {
  "math": verify_math,
  "gsm8k": verify_gsm8k,
  "exact": verify_exact,
  "reasoning_gym": verify_reasoning_gym,
}


def modules_of(problem: Record) -> tuple[str, ...]:
  """Modules that judging this problem needs; importing them takes seconds.

  Raises:
    InputError: an unknown verifier, or a record without what its verifier reads.
  """
  one_of(problem["verifier"], VERIFIERS, key="config.data.verifier")
  if problem["verifier"] == "math":
    return ("math_verify",)
  if problem["verifier"] == "reasoning_gym":
    missing = {"module", "task", "task_args", "entry"} - set(problem["meta"])
    if missing:
      raise InputError(
        f"problem {problem['id']!r}: the verifier 'reasoning_gym' needs meta "
        f"{sorted(missing)}; load it with config.data.source='reasoning_gym', or set "
        "config.data.verifier"
      )
    return (problem["meta"]["module"],)
  return ()
