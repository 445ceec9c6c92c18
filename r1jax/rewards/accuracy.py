"""Is the answer right? One verifier per `Problem.verifier`, text in, float out.

A problem arrives as a plain record (`id`, `prompt`, `answer`, `verifier`, `meta`), so
that nothing here needs jax: this module runs in reward workers. Heavy libraries are
imported where they are used, and before that by the workers' server (`modules_of`).
"""

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.boxes import last_boxed
from r1jax.errors import InputError, one_of
from r1jax.rewards import choice, code, extract, maths

Record = Mapping[str, Any]
# The verifier of problems without a gold answer, whose answers are neither right nor
# wrong: they have no part "accuracy".
NO_GOLD = "none"


def score(
  text: str, problem: Record, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> float:
  """1.0 for a right answer, 0.0 for a wrong or missing one; tasks may give parts.

  Args:
    text: the completion, without the prompt.
    settings: by verifier, its further arguments.
  """
  name = one_of(problem["verifier"], VERIFIERS, key="config.data.verifier")
  return VERIFIERS[name](text, problem, **(settings or {}).get(name, {}))


def verify_gsm8k(text: str, problem: Record) -> float:
  """The last number of the answer equals the gold number exactly, as a fraction.

  The answer stands where extract.py says, in steps 1 to 3; then after the last `####`,
  where the first number counts; else in the whole span. So "18 dollars" and "so she has
  $1,234.00." are read.
  """
  span, _ = extract.answer_span(text)
  if span is None:
    return 0.0
  boxed = last_boxed(span)
  if boxed is None and "####" in span:
    found = extract.numbers(span.rpartition("####")[2])[:1]
  else:
    found = extract.numbers(span if boxed is None else boxed)
  gold = extract.numbers(problem["answer"])
  return float(bool(found) and bool(gold) and found[-1] == gold[-1])


def verify_exact(text: str, problem: Record) -> float:
  """The span is the gold answer, letter by letter, up to white space around it."""
  span, _ = extract.answer_span(text)
  return float(span is not None and span == problem["answer"].strip())


def verify_reasoning_gym(text: str, problem: Record) -> float:
  """The task's own `score_answer` on the span; some tasks give parts of a point."""
  span, _ = extract.answer_span(text)
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


def no_verdict(text: str, problem: Record) -> float:
  """Of problems without a gold answer; `RewardPool` leaves it out."""
  del text, problem
  return 0.0


VERIFIERS: dict[str, Callable[..., float]] = {
  "math": maths.verify_math,
  "gsm8k": verify_gsm8k,
  "choice": choice.verify_choice,
  "exact": verify_exact,
  "reasoning_gym": verify_reasoning_gym,
  "code": code.verify,
  NO_GOLD: no_verdict,
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
