"""Tests of what equals what, on cases by hand and on perturbed golds.

The real files are used where they are: R1JAX_DATA names the folder of gsm8k/ and
math500/.
"""

import collections
import itertools
import json
import os
import pathlib
import random

import pytest

from r1jax.rewards import accuracy, maths
from tests.rewards.perturbations import perturb

# (gold, right answers, wrong answers) by hand, each for a reason of its own
CASES = [
  # what stands around a number
  (
    "5",
    ["x=5", "x + y = 5", "2 + 3 = 5", "(5)", r"\{5\}", r"5\text{ m}", "+5", "|-5|"],
    ["2x=5", "x^2=5", "5 or 6", "5, 6", "-5", "5±0", "x > 5", r"\approx 5", "", "{}"],
  ),
  (
    "5",
    [],
    ["5x", "5xy", "5t", "5 m", "5i", r"5\pi", "5!", "5^2", "5_6", "5:6", "5 million"],
  ),
  (
    "5",
    ["5, by symmetry", "It is 5."],
    ["5 halves", "5 dozen", "at least 5", "about 5", "5 and a half", "not 5", "6 or 5"],
  ),
  ("-5", ["- 5", "−5"], ["5"]),
  ("5000000", ["5 million", r"5 \times 10^6", "5{,}000{,}000", "5e6"], ["5"]),
  # what stands within one
  ("2", ["02", "2."], [r"\frac{5}{2}", "x_2", r"\sqrt2", r"\log 2", r"\frac12"]),
  ("1/2", ["0.5", ".5", "50%", r"\dfrac{2}{4}", "½"], ["1:2", "2", "1 2", "0.05"]),
  (r"-\frac12", [r"\frac{-1}{2}", r"\frac{1}{-2}", "-0.5"], ["0.5", "2"]),
  ("1.25", [r"1\frac14", "1 1/4", r"\frac54"], [r"\frac14", "1.26", "11/4"]),
  ("3", [], ["3.0000001", "2.9999999"]),
  (".0000672", ["6.72e-5", r"6.72 \times 10^{-5}"], [".0000674", "0"]),
  ("10^{-20}", [], ["10^{-21}", "0"]),
  # six digits, rounded rightly
  (r"\frac23", ["0.666667"], ["0.666666", "0.67", "0.66667"]),
  (r"\pi", ["3.14159", "π"], ["3.14", "22/7", "3.14158"]),
  (r"\sqrt2", ["1.41421", "√2", "2^{1/2}"], ["1.41422", "1.41"]),
  # percent
  (r"10\%", ["10", "0.1", "10 percent", r"\frac{1}{10}"], ["0.1%", "1%", "100"]),
  ("10", ["10%", "1000%"], ["0.1", "0.1%", "100%"]),
  ("0.1", ["10%"], ["0.1%", "10"]),
  ("1", ["100%"], ["1%"]),
  # units
  (
    r"5\text{ cm}",
    ["5", "5 cm", "5cm", "5 centimeters", r"5\,\mathrm{cm}"],
    ["5 m", "5 mm", "5 cm^2", "5 inches", "50 mm", "5%"],
  ),
  (r"15\mbox{ cm}^2", ["15 square centimeters", "15 sq. cm"], ["15 cm", "225"]),
  (r"5\text{ m/s}", ["5 m/s", "5 meters per second"], ["5 km/h", "5 m"]),
  (r"60\text{ mph}", ["60 miles per hour"], ["60 km/h"]),
  (r"\$18.90", ["18.9", "$18.90", "18.90 dollars"], ["18.90 cents", "€18.90", "1890"]),
  (r"5.4\text{ cents}", ["5.4", "5.4 cents"], ["5.4 dollars", "$5.4"]),
  (r"90^\circ", ["90", "90°", "90 degrees"], [r"\frac{\pi}{2}", "90%", "90 cm"]),
  ("42", ["42 apples"], ["42 more apples than before"]),
  # bases, ratios, times
  ("204_5", ["204", "204_{5}", "204 (base 5)"], ["204_6", "54"]),
  ("2:3", ["2 : 3"], ["3:2", r"\frac23", "2"]),
  # tuples, lists, sets, matrices
  (
    "(1,2)",
    ["1, 2", "x=1, y=2", "(x,y) = (1,2)", r"\left(1, \frac42\right)", "1 < x < 2"],
    ["(2,1)", "2, 1", "[1,2]", "(1,2]", "(1,2,3)", r"\{1,2\}", "1", "12", "(1,-2)"],
  ),
  (
    "1,2",
    ["2,1", "2 and 1", r"\{2, 1\}", "x = 1 or x = 2", "(1,2)"],
    ["1", "1,2,3", "1,1", "12", "(2,1)", "1 or 3"],
  ),
  ("1,1,2", ["1,2,1"], ["1,2,2", "1,2"]),
  (r"\{1\pm\sqrt5,-2\}", [r"-2, 1-\sqrt5, 1+\sqrt5"], [r"-2, 1+\sqrt5", "-2, 1, 5"]),
  (r"\pm 2", ["2, -2", r"x = \pm 2"], ["2", "-2"]),
  (
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    [r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"],
    [r"\begin{pmatrix}1&2\end{pmatrix}", "(1,2)", r"\begin{pmatrix}2\\1\end{pmatrix}"],
  ),
  # intervals and relations
  ("[1,2)", [r"1 \le x < 2", r"x \in [1,2)"], ["[1,2]", "(1,2)", r"1 \le x \le 2"]),
  (r"(-\infty,3)", ["x<3", "3 > x"], [r"x \le 3", "x > 3", r"(-\infty,3]", "3"]),
  ("x<3", [r"(-\infty,3)", "3>x"], ["x>3", "y<3", "3"]),
  (
    r"(-\infty,2)\cup(3,\infty)",
    [r"(3,\infty) \cup (-\infty,2)", "x<2 or x>3", r"\mathbb{R}\setminus[2,3]"],
    [
      r"x<2 or x\ge3",
      r"(-\infty,\infty)",
      r"(-\infty,2)",
      r"(-\infty,3)\cup(2,\infty)",
    ],
  ),
  # formulas
  ("y=2x+3", ["2x+3", "y=3+2x", "2x-y+3=0", "2y=4x+6"], ["y=2x-3", "x=2y+3", "2x"]),
  ("2x+3", ["y=2x+3", "3+2x"], ["2y+3", "2x+4", "2x"]),
  ("(x+1)^2", ["x^2+2x+1", "(1+x)(x+1)"], ["x^2+1", "(x-1)^2"]),
  (r"\frac{x}{2}", ["0.5x", "x/2"], ["2x", "x"]),
  (r"\frac{\sqrt3}{3}", [r"\frac{1}{\sqrt3}"], [r"\sqrt3", r"\frac{\sqrt3}{2}"]),
  (r"2\sqrt{3}", ["2√3", "2sqrt(3)", r"\sqrt{12}"], [r"3\sqrt2", r"\sqrt6", "6"]),
  (r"\cot x", [r"\frac{\cos x}{\sin x}"], [r"\tan x"]),
  (r"\sin x", ["sin(x)"], [r"\cos x"]),
  ("1+2i", ["2i+1"], ["1-2i", "(1,2)", "2+i"]),
  ("120", ["5!"], ["4!"]),
  # words; the letters of "east" are no product
  (r"\text{east}", ["east", "East", r"\textbf{east}"], ["seat", "teas", "west", "5"]),
  (r"\text{(B)}", ["B", "(B)"], ["(C)", "A, B", "A"]),
  ("x=5", ["5", "5 = x"], ["y=5", "x=-5", "x"]),
  (r"x \in [-2,7]", ["[-2,7]"], [r"-x \in [-2,7]", r"$-x \in [-2,7]$"]),
  # the question, which an algebra system would solve for words
  ("x=5", [], [r"Find all values of $x$ that satisfy $x = \!\sqrt{11-2x} + 4$."]),
]


def score(gold, text, verifier="math"):
  problem = {"id": "p", "prompt": "?", "answer": gold, "verifier": verifier, "meta": {}}
  return accuracy.score(text, problem)


@pytest.mark.parametrize(("gold", "right", "wrong"), CASES)
def test_by_hand(gold, right, wrong):
  tags = "<think>1</think><answer>{}</answer>"
  missed = [one for one in [gold, *right] if not score(gold, tags.format(one))]
  assert missed == []
  assert [answer for answer in wrong if score(gold, tags.format(answer))] == []


@pytest.mark.parametrize("gold", ["and", "?", ";", "", " ", r"\frac{1}{"])
def test_gold_without_meaning_is_never_matched(gold):
  for answer in (gold, "or", "5", "{}", r"\frac{1}{"):
    assert not maths.equal(gold, answer)


@pytest.mark.parametrize(
  "answer",
  [
    "9^{9^{9^{9}}}",
    "2^{100000000}",
    "(1000000)!",
    "9" * 400,
    r"\sqrt{" * 50 + "x" + "}" * 50,
    "(" * 300,
    "1+" * 1000 + "1",
    ", ".join("x" * 40),
  ],
)
def test_what_is_too_large_is_no_answer_and_costs_nothing(answer):
  assert not maths.equal("x^2", answer)
  assert maths.equal.cache_info().maxsize is not None


# Of the kinds that MATH's golds have.
GOLDS = [
  "7",
  "-12",
  "2220",
  "10,\\!080",
  "0.15",
  ".0000672",
  "\\frac{14}{3}",
  "-\\frac{3}{8}",
  "\\dfrac{17}{50}",
  "1\\frac{4}{5}",
  "106^\\circ",
  "\\$18.90",
  "15\\mbox{ cm}^2",
  "5.4 \\text{ cents}",
  "204_5",
  "\\text{(C)}",
  "\\text{Evelyn}",
  "(8,-2)",
  "\\left( \\frac{3}{2}, -13 \\right)",
  "(3,4]",
  "(0,9) \\cup (9,36)",
  "3, 5, 7",
  "x=5",
]
FORMULAS = [
  "3\\sqrt{13}",
  "7\\pi",
  "6 - 5i",
  "x^3+3x-6",
  "y = 2x + 3",
  "1 \\pm \\sqrt{19}",
  "\\{1\\pm\\sqrt{5},-2\\}",
  "\\begin{pmatrix} -7 \\\\ 16 \\\\ 5 \\end{pmatrix}",
  "\\left[ \\frac{\\pi^2}{8}, \\frac{5 \\pi^2}{4} \\right]",
  "x \\in [-2,7]",
  "(-\\infty, 2) \\cup (3, \\infty)",
]


def agreement(golds, verifier="math"):
  """(cases, disagreements) by kind, and the disagreements themselves."""
  rng = random.Random(0)
  seen, missed = collections.Counter(), collections.Counter()
  wrong = []
  for gold in golds:
    for case in perturb(gold, rng):
      text = f"<think>It may be 1, or 2.</think> <answer>{case.answer}</answer>"
      seen[case.kind] += 1
      if score(gold, text, verifier) != case.right:
        missed[case.kind] += 1
        wrong.append((gold, case))
  return seen, missed, wrong


@pytest.mark.parametrize(("golds", "fewest"), [(GOLDS, 650), (FORMULAS, 220)])
def test_perturbed(golds, fewest):
  seen, _, wrong = agreement(golds)
  assert seen.total() >= fewest
  assert wrong == []


def test_perturbations_are_labelled_by_arithmetic():
  """The labels must not come from what they test."""
  cases = list(perturb("\\frac{14}{3}", random.Random(0)))
  assert {case.answer for case in cases if case.kind == "mixed"} == {
    "4\\frac{2}{3}",
    "4 2/3",
  }
  assert {case.answer: case.right for case in cases if case.kind == "reciprocal"} == {
    "\\frac{3}{14}": False
  }
  # 2 sqrt(1) without its root is 2 again, and no near miss
  assert not [c for c in perturb("2\\sqrt{1}", random.Random(0)) if "left" in c.kind]
  assert not any(case.right for case in cases if case.kind == "digit")


def real(name):
  """Golds of a file, one each; skips where the file is not."""
  path = pathlib.Path(os.environ.get("R1JAX_DATA", "../shared/data")) / name
  if not path.is_file():
    pytest.skip(f"set R1JAX_DATA to the folder of {name}")
  return [json.loads(line) for line in path.read_text().splitlines()]


# A gold in its place. Where LaTeX stands in plain text, no reader knows its ends.
PLACES = {
  "boxed": r"Thus \boxed{%s}.",
  "boxed in a formula": r"So $x = 7$ or rather $\boxed{%s}$.",
  "tags": "<answer>%s</answer>",
  "R1's template": "<think>Is it 7? Or 8.</think> <answer> %s </answer>",
  "R1's box": "<think>7\n</think>\n\n**Final Answer**\n\\[\n\\boxed{%s}\n\\]",
  "boxed in tags": r"<think>7</think><answer>The answer is \boxed{%s}.</answer>",
  "sentence in tags": "<think>7</think><answer>The answer is $%s$.</answer>",
  "sentence": "Since 2 + 3 = 5, the answer is $%s$.",
  "sentence that goes on": r"The final answer is \(%s\), as we wanted.",
  "sentence without a formula": "The answer is %s.",
  "last formula": "Adding 17 and 18 shows that it equals $%s$.",
  "GSM8K's mark": "7 is too few.\n#### %s",
}


@pytest.mark.parametrize("place", PLACES)
def test_golds_match_themselves(place):
  for gold in [*GOLDS, *FORMULAS]:
    assert score(gold, PLACES[place] % gold) == 1.0, gold


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_math500_gold_matches_itself(place):
  golds = [row["answer"] for row in real("math500/test.jsonl")]
  assert [gold for gold in golds if not score(gold, PLACES[place] % gold)] == []


@pytest.mark.slow
def test_every_math500_solution_is_right_and_no_other_gold_is():
  rows = real("math500/test.jsonl")
  assert [r for r in rows if not score(r["answer"], r["solution"])] == []
  for gold, other in ((a["answer"], b["answer"]) for a, b in itertools.pairwise(rows)):
    # "x=5" is a right way to answer "5", as 90 is to answer 90°
    if gold.removesuffix("^\\circ") != other.rpartition("=")[2]:
      assert not score(gold, PLACES["tags"] % other), (gold, other)


@pytest.mark.parametrize(
  "split", ["test", pytest.param("train", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("verifier", ["gsm8k", "math"])
def test_every_gsm8k_gold_matches_itself(split, verifier):
  rows = real(f"gsm8k/{split}.jsonl")
  for row in rows if verifier == "gsm8k" else rows[::10]:
    _, _, gold = row["answer"].rpartition("####")
    plain = gold.strip().replace(",", "")
    assert score(plain, row["answer"], verifier) == 1.0, gold
    for place, text in PLACES.items():
      assert score(plain, text % gold.strip(), verifier) == 1.0, (gold, place)


@pytest.mark.slow
def test_perturbed_math500():
  """At least 99.5 % agree with the label, and no kind of perturbation is read badly."""
  golds = dict.fromkeys(row["answer"] for row in real("math500/test.jsonl"))
  seen, missed, wrong = agreement(golds)
  print(
    f"\n{len(wrong)} of {seen.total()} cases of {len(golds)} golds misjudged: {wrong}"
  )
  assert seen.total() > 9000
  assert len(wrong) <= 0.005 * seen.total()
  bad = {kind: count for kind, count in missed.items() if count > 0.05 * seen[kind]}
  assert bad == {}


# What a tagged answer to GSM8K may look like besides a bare number.
_SPOKEN = (
  "{} dollars",
  "{} apples.",
  "She has {} left.",
  "${}",
  "1 + 1 = {}",
  "**{}**",
)


@pytest.mark.parametrize("verifier", ["gsm8k", "math"])
def test_perturbed_gsm8k(verifier):
  rows = real("gsm8k/test.jsonl")
  rng = random.Random(0)
  for row in rng.sample(rows, 200):
    gold = row["answer"].rpartition("####")[2].strip().replace(",", "")
    value = int(gold)
    forms = [
      gold,
      f"{value:,}",
      f"{value}.00",
      *(form.format(gold) for form in _SPOKEN),
    ]
    near = [value + 1, value - 1, -value or 1, value * 10, value + 100, f"{value}.5"]
    near += [f"{value}1", f"1{abs(value)}", f"{value}/7", f"{value + 1} dollars"]
    for answer in forms:
      assert score(gold, PLACES["R1's template"] % answer, verifier) == 1.0, answer
    for answer in near:
      assert score(gold, PLACES["R1's template"] % answer, verifier) == 0.0, answer
