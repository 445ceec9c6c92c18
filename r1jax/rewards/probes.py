r"""Texts of which it is known how a verifier should judge them, made from a gold.

Right ones are the gold in every form that the verifier reads, and what a worked
solution says. Wrong ones are near the gold, or are what a policy may find that seeks
points without solving anything. Whether a number differs from the gold is exact
arithmetic; where that cannot tell, a kind says so.
"""

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from r1jax.boxes import last_boxed
from r1jax.rewards import choice, code, extract
from r1jax.rewards.combine import Part
from r1jax.rewards.pool import RewardPool

if TYPE_CHECKING:
  from r1jax.types import Problem


class Probe(NamedTuple):
  """A text, and what should be said of it.

  Attributes:
    kind: what is the matter where the verdict is another: "gold_rejected",
      "gold_disputed" (by its worked solution), "extractors_disagree",
      "false_positive", "doubtful_positive" (it may be right after all) or
      "question_accepted".
    what: how the text was made.
    answer: what was made, without the form around it.
    text: the completion.
    right: whether it should get full points.
  """

  kind: str
  what: str
  answer: str
  text: str
  right: bool


# Before and behind the gold.
FORMS = {
  "alone": ("", ""),
  "tags": ("<answer>", "</answer>"),
  "R1-Zero's template": ("<think>Let me see.</think> <answer>", "</answer>"),
  "boxed": ("So it is $\\boxed{", "}$."),
  "R1's template": ("Let me see.\n</think>\n\n**Answer**\n\\[\\boxed{", "}\\]"),
  "sentence": ("The answer is ", "."),
  "sentence with a formula": ("The answer is $", "$."),
}
_TAGGED = ("tags", "R1-Zero's template")
# Which of them a verifier is meant to read.
FORMS_OF = {
  "math": (*_TAGGED, "boxed", "R1's template", "sentence with a formula"),
  "gsm8k": (*_TAGGED, "boxed", "R1's template", "sentence"),
  "choice": (*_TAGGED, "boxed", "R1's template", "sentence"),
  "exact": ("alone", *_TAGGED),
  "reasoning_gym": ("alone", *_TAGGED),
}


def of_all(problems: Sequence["Problem"]) -> Iterator[tuple["Problem", Probe]]:
  """All probes of all problems; golds of other problems are the next ones."""
  distinct = list(dict.fromkeys(problem.answer.strip() for problem in problems))
  place = {gold: i for i, gold in enumerate(distinct)}
  for problem in problems:
    i = place[problem.answer.strip()]
    shifts = range(1, min(3, len(distinct)))
    others = [distinct[(i + shift) % len(distinct)] for shift in shifts]
    for probe in (*right(problem), *worked(problem), *wrong(problem, others)):
      yield problem, probe


def right(problem: "Problem") -> Iterator[Probe]:
  """The gold in each form of FORMS_OF; of code the program in `meta["solution"]`."""
  if problem.verifier == "code":
    program = problem.meta.get("solution")
    if isinstance(program, str):
      yield Probe("gold_rejected", "solution", program, fenced(program), True)
    return
  gold = problem.answer.strip()
  for what in FORMS_OF[problem.verifier]:
    before, behind = FORMS[what]
    yield Probe("gold_rejected", what, gold, f"{before}{gold}{behind}", True)


def worked(problem: "Problem") -> Iterator[Probe]:
  r"""What several extractors read in `meta["solution"]`, where a text is there, and a
  verifier that extracts.

  Marked as the answer: what stands in `<answer>` tags or in `\boxed{}`. Else: what
  follows `####` or "answer is" and, where the gold is a number, the last number.
  """
  solution = problem.meta.get("solution")
  if problem.verifier not in ("math", "gsm8k", "choice"):
    return
  if not isinstance(solution, str):
    return
  span, tagged = extract.answer_span(solution)
  boxed = last_boxed(solution)
  marked = {"tags": span if tagged else None, "boxed": boxed}
  others = {"cue": extract.marked(solution) if boxed is None else None}
  if extract.number(problem.answer) is not None:
    numbers = extract.numbers(solution)
    others["last number"] = str(numbers[-1]) if numbers else None
  for kind, found in {"gold_disputed": marked, "extractors_disagree": others}.items():
    for what, answer in found.items():
      if answer is not None:
        yield Probe(kind, what, answer, tags(answer), True)


def wrong(problem: "Problem", others: Sequence[str]) -> Iterator[Probe]:
  """Answers that should get less than full points.

  Args:
    others: golds of other problems that are written otherwise.
  """
  if problem.verifier == "code":
    yield from wrong_programs(problem)
    return
  if problem.verifier == "choice":
    near = wrong_letters(problem)
  elif extract.number(problem.answer) is None:
    near = wrong_texts(problem.answer.strip(), others)
  else:
    near = wrong_numbers(problem.answer.strip(), others)
  # A task may have several right answers; a text differs if it is written otherwise.
  for what, answer, is_sure in near:
    sure = problem.verifier == "exact" or (
      is_sure and problem.verifier != "reasoning_gym"
    )
    kind = "false_positive" if sure else "doubtful_positive"
    yield Probe(kind, what, answer, tags(answer), False)
  for what, answer in (("empty", ""), ("any number", "any number")):
    yield Probe("false_positive", what, answer, tags(answer), False)
  yield Probe(
    "question_accepted", "question", problem.prompt, tags(problem.prompt), False
  )


# --------------------- each is (how it was made, answer, whether it is wrong for sure)


def wrong_numbers(gold: str, others: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
  """Of a gold that is a number. In lists it is neither the first nor the last."""
  value = extract.number(gold)
  made = {
    "digit": changed_digit(gold),
    "sign": str(-value),
    "one more": str(value + 1),
    "one less": str(value - 1),
    "times ten": str(10 * value),
    "a tenth": str(value / 10),
    "reciprocal": str(1 / value) if value else "0",
    "list": f"{value - 1}, {value}, {value + 1}",
  }
  if others:
    made["another gold"] = others[0]
  for what, answer in made.items():
    if differs(gold, answer):
      is_list = what == "list"
      yield what, answer, is_list or extract.number(answer) is not None


def wrong_texts(gold: str, others: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
  """Of a formula, a list or a word; equal ones may be written in many ways."""
  made = {"digit": changed_digit(gold)}
  made["sign"] = gold[1:] if gold.startswith("-") else f"-{gold}"
  if others:
    made["another gold"] = others[0]
  if len(others) > 1:
    made["list"] = f"{others[0]}, {gold}, {others[1]}"
  for what, answer in made.items():
    if answer != gold:
      yield what, answer, False


def wrong_letters(problem: "Problem") -> Iterator[tuple[str, str, bool]]:
  """Every other option, and all of them; A to D at least where there are no texts."""
  gold = choice.letter(problem.answer, {})
  options = list(choice.by_letter(problem.meta.get("options", ())))
  if not options:
    last = choice.LETTERS.find(gold) if gold else 0
    options = list(choice.LETTERS[: max(4, last + 1)])
  for option in options:
    if option != gold:
      yield "another option", option, True
  if len(options) > 1:
    yield "list", ", ".join(options), True


def wrong_programs(problem: "Problem") -> Iterator[Probe]:
  """No program, one that does nothing, one that always says what the first test wants.

  The last may be right where one answer fits all; such tests tell nothing.
  """
  test = code.tests_of({"id": problem.id, "meta": problem.meta})[0]
  if "stdout" in test:
    constant = f"import sys\nsys.stdout.write({test['stdout']!r})"
  else:
    *owner, name = problem.meta["function"].split(".")
    indent = "  " * len(owner)
    constant = "".join(f"class {one}:\n" for one in owner)
    constant += f"{indent}def {name}(*args, **kwargs):\n"
    constant += f"{indent}  return {test['result']!r}"
  yield Probe("false_positive", "empty", "", tags(""), False)
  yield Probe("false_positive", "does nothing", "pass", fenced("pass"), False)
  yield Probe("false_positive", "constant", constant, fenced(constant), False)


def changed_digit(text: str) -> str:
  """One digit is another; the same one in every run. Unchanged without digits."""
  places = [match.start() for match in re.finditer(r"\d", text)]
  if not places:
    return text
  draw = random.Random(text)
  place = draw.choice(places)
  digit = (int(text[place]) + draw.randint(1, 9)) % 10
  return f"{text[:place]}{digit}{text[place + 1 :]}"


def differs(gold: str, answer: str) -> bool:
  """Whether two answers are no equal numbers."""
  value = extract.number(answer)
  return value is None or value != extract.number(gold)


def tags(answer: str) -> str:
  before, behind = FORMS["tags"]
  return f"{before}{answer}{behind}"


def fenced(program: str) -> str:
  return f"```python\n{program}\n```"


# ---------------------------------------------------------------------------- verdicts


class Verdict(NamedTuple):
  """What became of a probe.

  Attributes:
    points: None where there is no verdict.
    lost: then perhaps "timeout", "crash" (memory included), or "timeout or crash".
    error: or what was raised.
  """

  problem: "Problem"
  probe: Probe
  points: float | None
  lost: str = ""
  error: str = ""


def verdicts(
  accuracy: Part,
  probes: Iterable[tuple["Problem", Probe]],
  *,
  num_workers: int,
  timeout_s: float,
  batch_timeout_s: float,
  memory_limit_mb: int,
) -> Iterator[list[Verdict]]:
  """Judges probes in a `RewardPool` of these settings, batch by batch.

  Batches are so small that each ends before its own deadline, even where all of its
  texts run into theirs.
  """
  rest = iter(probes)
  with RewardPool(
    {"accuracy": accuracy, "reached": reached},
    num_workers=num_workers,
    timeout_s=timeout_s,
    batch_timeout_s=batch_timeout_s,
    memory_limit_mb=memory_limit_mb,
  ) as pool:
    size = num_workers * max(1, int(batch_timeout_s / timeout_s))
    while batch := list(itertools.islice(rest, size)):
      results, counts, raised = pool.score_some(
        [probe.text for _, probe in batch], [problem for problem, _ in batch]
      )
      lost = {"timeout": counts["timeouts"], "crash": counts["crashes"]}
      # The pool names the problem of an exception, not the text.
      said = {
        end: line for line, _, end in (x.rpartition(" (problem ") for x in raised)
      }
      found = []
      for (problem, probe), result in zip(batch, results, strict=True):
        error = said.get(f"{problem.id!r})", "")
        if not result["reached"]:
          found.append(
            Verdict(problem, probe, None, " or ".join(filter(lost.get, lost)))
          )
        elif error and not result["accuracy"]:
          found.append(Verdict(problem, probe, None, error=error))
        else:
          found.append(Verdict(problem, probe, result["accuracy"]))
      yield found


def reached(text: str, record: Any) -> float:
  """A part that is 1.0 of every text judged; a pool gives 0 where it gave up."""
  del text, record
  return 1.0
