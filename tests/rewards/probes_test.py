"""Probes: the right are right, the wrong are wrong, and what a pool makes of them."""

import dataclasses
import sys

import pytest

from r1jax.rewards import accuracy, code, extract, probes
from r1jax.types import Problem

PART = '''
import os, time

def score(text, record):
  """Does what the text says, and gives half a point."""
  if text == "sleep":
    time.sleep(1000)
  if text == "die":
    os._exit(1)
  if text == "raise":
    raise ArithmeticError("no number (of any kind)")
  return 0.5
'''


def problem(answer, verifier="math", **meta):
  return Problem("p/1", "How many?", answer, verifier, meta)


def judged(probe, of):
  return accuracy.score(probe.text, dataclasses.asdict(of))


def answers(made):
  return {probe.what: probe.answer for probe in made}


@pytest.mark.parametrize(
  ("verifier", "gold"),
  [
    *(("gsm8k", gold) for gold in ("18", "-3", "2.5")),
    *(
      ("math", gold) for gold in ("18", "\\frac{14}{3}", "x \\in [-2,7]", "3\\sqrt{2}")
    ),
    *(("math", gold) for gold in ("\\text{east}", "50\\%", "\\$1,234", "1, -2")),
    ("choice", "C"),
    ("exact", "a b, c"),
  ],
)
def test_verifiers_judge_probes_as_they_should(verifier, gold):
  """All forms of the gold are read, and of the doubtful ones none is right here."""
  of = problem(gold, verifier)
  right = list(probes.right(of))
  assert {probe.what for probe in right} == set(probes.FORMS_OF[verifier])
  assert [probe for probe in right if judged(probe, of) != 1.0] == []
  others = ("8", "9") if verifier != "choice" else ("A", "B")
  wrong = list(probes.wrong(of, others))
  assert len(wrong) >= 6
  assert [probe.answer for probe in wrong if judged(probe, of) > 0.0] == []


def test_wrong_numbers_by_hand():
  made = list(probes.wrong(problem("4"), ("5", "6")))
  near = {p.what: p.answer for p in made if p.kind == "false_positive"}
  assert near.pop("digit") in "012356789"
  assert near == {
    "sign": "-4",
    "one more": "5",
    "one less": "3",
    "times ten": "40",
    "a tenth": "2/5",
    "reciprocal": "1/4",
    "list": "3, 4, 5",
    "another gold": "5",
    "empty": "",
    "any number": "any number",
  }
  assert [(p.what, p.answer) for p in made if p.kind == "question_accepted"] == [
    ("question", "How many?")
  ]


@pytest.mark.parametrize(
  ("gold", "equal"),
  [
    ("0", {"sign", "times ten", "a tenth", "reciprocal"}),
    ("1", {"reciprocal"}),
    ("-1", {"reciprocal"}),
    ("\\frac{1}{2}", set()),
  ],
)
def test_what_is_equal_after_all_is_no_probe(gold, equal):
  made = list(probes.wrong(problem(gold), ("8",)))
  for probe in made:
    if probe.kind == "false_positive" and probe.what != "list":
      assert extract.number(probe.answer) != extract.number(gold)
  kinds = {"digit", "sign", "one more", "one less", "times ten", "a tenth"}
  kinds |= {"reciprocal", "list", "another gold", "empty", "any number", "question"}
  assert {probe.what for probe in made} == kinds - equal
  same = list(probes.wrong(problem("0.5"), ("1/2",)))
  assert "another gold" not in answers(same)


def test_only_arithmetic_makes_a_probe_sure():
  sure = {"empty", "any number"}
  for of in (problem("3\\sqrt{2}"), problem("4", "reasoning_gym")):
    made = list(probes.wrong(of, ("8", "9")))
    assert {p.what for p in made if p.kind == "false_positive"} == sure
    assert len([p for p in made if p.kind == "doubtful_positive"]) >= 4
  exact = list(probes.wrong(problem("ab 1", "exact"), ("8", "9")))
  assert {p.kind for p in exact} == {"false_positive", "question_accepted"}


def test_letters():
  made = list(probes.wrong(problem("b", "choice", options=["x", "y", "z"]), ("A",)))
  near = [p.answer for p in made if p.what == "another option"]
  assert near == ["A", "C"]
  assert answers(made)["list"] == "A, B, C"
  assert answers(probes.wrong(problem("F", "choice"), ()))["list"] == "A, B, C, D, E, F"


@pytest.mark.parametrize(
  ("solution", "gold", "want"),
  [
    ("So \\boxed{7}, in 3 steps.", "7", {"boxed": "7", "last number": "3"}),
    ("It is 6.\n<answer>7</answer>", "7", {"tags": "7", "last number": "7"}),
    ("The answer is 1.5.", "7", {"cue": "1.5", "last number": "3/2"}),
    ("2 and 3 are <<2+3=5>>5\n#### 5", "7", {"cue": "5", "last number": "5"}),
    ("So \\boxed{x + 1}.", "x + 1", {"boxed": "x + 1"}),
    (None, "7", {}),
  ],
)
def test_what_extractors_read_in_a_solution(solution, gold, want):
  made = list(probes.worked(problem(gold, solution=solution)))
  assert answers(made) == want
  marked = {probe.what for probe in made if probe.kind == "gold_disputed"}
  assert marked == {"tags", "boxed"} & set(want)
  assert list(probes.worked(problem(gold, "exact", solution=solution))) == []


def test_programs():
  of = problem("", "code", tests=[{"stdin": "1", "stdout": "it's 2\n"}], solution="s")
  assert [probe.text for probe in probes.right(of)] == ["```python\ns\n```"]
  made = answers(probes.wrong(of, ()))
  assert list(made) == ["empty", "does nothing", "constant"]
  assert list(probes.right(problem("", "code", tests=[]))) == []
  test = {"args": [1], "result": {"a": [True, None]}}
  for name in ("double", "Solution.double"):
    of = problem("", "code", tests=[test], function=name)
    *_, constant = probes.wrong(of, ())
    scope = {}
    exec(code.program_of(constant.text), scope)
    call = scope["Solution"]().double if "." in name else scope["double"]
    assert call(1, b=2) == test["result"]


def test_one_digit_changes_and_always_the_same():
  for text in ("7", "-12.50", "\\frac{14}{3}", "x^2 + 10"):
    changed = probes.changed_digit(text)
    assert len(changed) == len(text)
    assert sum(a != b for a, b in zip(text, changed, strict=True)) == 1
    assert changed == probes.changed_digit(text)
  assert probes.changed_digit("east") == "east"


def test_other_golds_are_those_of_the_next_problems():
  golds = ["1", "2", "2", "3"]
  of = [Problem(f"p/{i}", "?", gold, "gsm8k") for i, gold in enumerate(golds)]
  found = [p.answer for _, p in probes.of_all(of) if p.what == "another gold"]
  assert found == ["2", "3", "3", "1"]
  assert not [p for _, p in probes.of_all(of[1:3]) if p.what == "another gold"]


def test_what_the_pool_makes_of_them(tmp_path, monkeypatch):
  (tmp_path / "probes_test_part.py").write_text(PART)
  monkeypatch.syspath_prepend(str(tmp_path))
  import probes_test_part

  texts = ["fine", "sleep", "fine", "raise", "die", "fine"]
  of = [Problem(f"p ({i})", "?", "7", "gsm8k") for i in range(len(texts))]
  made = [probes.Probe("gold_rejected", "", "", text, True) for text in texts]
  batches = list(
    probes.verdicts(
      probes_test_part.score,
      zip(of, made, strict=True),
      num_workers=1,
      timeout_s=0.5,
      batch_timeout_s=1.5,
      memory_limit_mb=256,
    )
  )
  del sys.modules["probes_test_part"]
  assert [len(batch) for batch in batches] == [3, 3]
  found = [verdict for batch in batches for verdict in batch]
  assert [verdict.problem for verdict in found] == of
  assert [verdict.probe for verdict in found] == made
  assert [verdict.points for verdict in found] == [0.5, None, 0.5, None, None, 0.5]
  assert [verdict.lost for verdict in found] == ["", "timeout", "", "", "crash", ""]
  errors = [verdict.error for verdict in found]
  assert errors.pop(3) == "accuracy: ArithmeticError: no number (of any kind)"
  assert not any(errors)
