"""Tests of the verifiers: where the answer is looked for, and what equals what."""

import os
import pathlib
from fractions import Fraction

import pytest
from absl.testing import absltest, parameterized

from r1jax.data import problems
from r1jax.errors import InputError
from r1jax.rewards import accuracy, extract


def record(answer, verifier="math", **meta):
  return {
    "id": "p/1",
    "prompt": "?",
    "answer": answer,
    "verifier": verifier,
    "meta": meta,
  }


def tagged(answer):
  return f"<think>It may be 1, or 2.</think> <answer> {answer} </answer>"


class AnswerSpanTest(parameterized.TestCase):
  @parameterized.parameters(
    (tagged("5"), ("5", True)),
    ("<answer>4</answer> no, <answer>5</answer>", ("5", True)),
    ("<think>try <answer>5</answer></think>", ("", False)),
    ("<think>try <answer>4</answer></think><answer>5</answer>", ("5", True)),
    ("<think>a</think><answer>5", (None, True)),
    ("<think>it is 5", ("", False)),
    ("<think>it is <answer>5</answer>", ("5", True)),
    ("it was open: 4</think> so 5", ("so 5", False)),
    ("It is 5.", ("It is 5.", False)),
    ("", ("", False)),
  )
  def test_span(self, text, want):
    self.assertEqual(extract.answer_span(text), want)

  @parameterized.parameters(
    (r"\boxed{4} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed{4} and \boxed{5", "4"),
    (r"\boxed{}", ""),
    ("5", None),
  )
  def test_last_boxed(self, text, want):
    self.assertEqual(extract.last_boxed(text), want)

  @parameterized.parameters(
    ("1,234 and 5", [1234, 5]),
    ("-$5 $-6 $7", [-5, -6, 7]),
    ("-3.50 .5 3.", [Fraction(-7, 2), Fraction(1, 2), 3]),
    ("7/2 of 1/0", [Fraction(7, 2)]),
    ("5-3 = 2, 5 - 3 = 2", [5, 3, 2, 5, 3, 2]),
    (r"\$1{,}234.", [1234]),
    ("−4", [-4]),
    ("12,34", [12, 34]),
    ("none", []),
  )
  def test_numbers(self, text, want):
    self.assertEqual(extract.numbers(text), want)


class VerifierTest(parameterized.TestCase):
  @parameterized.parameters(
    ("72", "72", 1.0),
    ("72", "72.0", 1.0),
    ("72", "72.5", 0.0),
    ("1234", "$1,234", 1.0),
    ("1234", r"\$1{,}234.00", 1.0),
    ("18", "18 dollars a day", 1.0),
    ("18", "She makes 9 * 2 = $18.", 1.0),
    ("18", r"\boxed{18} out of 20", 1.0),
    ("20", r"\boxed{18} out of 20", 0.0),
    ("-3", "-3", 1.0),
    ("3", "-3", 0.0),
    ("0.5", "1/2", 1.0),
    ("2", "1/2", 0.0),
    ("72", "seventy-two", 0.0),
    ("72", "", 0.0),
  )
  def test_gsm8k(self, gold, answer, want):
    self.assertEqual(accuracy.score(tagged(answer), record(gold, "gsm8k")), want)

  @parameterized.parameters(
    # the same both ways
    ("5", "5", 1.0, 1.0),
    ("5", "6", 0.0, 0.0),
    ("5", "5.0", 1.0, 1.0),
    ("-7", "-007", 1.0, 1.0),
    ("1,234", "1234", 1.0, 1.0),
    (r"\frac{1}{2}", "1/2", 1.0, 1.0),
    (r"\frac{1}{2}", "0.5", 1.0, 1.0),
    ("p - q", "-q+p", 1.0, 1.0),
    ("p - q", "q - p", 0.0, 0.0),
    (r"2\sqrt{2}", r"\sqrt{8}", 1.0, 1.0),
    (r"\text{Evelyn}", "Evelyn", 1.0, 1.0),
    (r"\{1,2\}", "2, 1", 1.0, 1.0),
    ("(1,2)", "(2,1)", 0.0, 0.0),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})", 1.0, 1.0),
    # and not: an interval answers a relation, no relation answers an interval
    (r"1 \le x < 2", "[1,2)", 1.0, 0.0),
  )
  def test_math_with_gold_and_answer_exchanged(self, gold, answer, there, back):
    """R9: the gold is the gold, whichever way the comparison leans."""
    self.assertEqual(accuracy.score(tagged(answer), record(gold)), there)
    self.assertEqual(accuracy.score(tagged(gold), record(answer)), back)

  @parameterized.parameters(
    ("42", tagged("The answer is 42."), 1.0),
    ("42", tagged("42 apples"), 1.0),
    ("42", tagged("$42$"), 1.0),
    ("42", tagged(r"so \boxed{42}, not 43"), 1.0),
    ("1234", tagged("$1,234"), 1.0),
    ("1234", tagged(r"\$1,234"), 1.0),
    ("1234", tagged("1,234 dollars"), 1.0),
    ("2", tagged("2 sin(x)"), 0.0),
    ("7", tagged("6 or 7"), 0.0),
    ("42", r"First \boxed{41}, then \boxed{\frac{84}{2}}.", 1.0),
    ("42", "6 times 7 is 42", 1.0),
    ("42", "It is 42, one more than 41", 0.0),
    ("42", "<think>42</think><answer>43</answer>", 0.0),
    ("42", r"<think>\boxed{42}</think><answer></answer>", 0.0),
    ("42", "<think>42", 0.0),
    ("42", "", 0.0),
  )
  def test_math_finds_the_answer(self, gold, text, want):
    self.assertEqual(accuracy.score(text, record(gold)), want)

  @parameterized.parameters("", " ", "?", r"\frac{1}{")
  def test_math_gold_that_does_not_parse_is_never_matched(self, gold):
    """R9: elsewhere such a gold gives 1 to any answer."""
    for answer in (gold, "5", ""):
      self.assertEqual(accuracy.score(tagged(answer), record(gold)), 0.0)

  @parameterized.parameters(
    (tagged("b c"), 1.0), ("b c\n", 1.0), (tagged("B c"), 0.0), (tagged("b c d"), 0.0)
  )
  def test_exact(self, text, want):
    self.assertEqual(accuracy.score(text, record("b c", "exact")), want)

  def test_reasoning_gym_task_judges_by_its_own_rule(self):
    [problem] = problems.load_problems("reasoning_gym", task="chain_sum", size=1)
    judged = {"answer": problem.answer, "verifier": problem.verifier, "id": problem.id}
    judged["meta"] = dict(problem.meta)
    self.assertEqual(accuracy.score(tagged(problem.answer), judged), 1.0)
    # chain_sum accepts decimals, and gives little for a wrong number
    self.assertEqual(accuracy.score(tagged(f"{problem.answer}.0"), judged), 1.0)
    self.assertLess(accuracy.score(tagged(int(problem.answer) + 1), judged), 0.1)
    self.assertLess(
      accuracy.score(f"<think>{problem.answer}</think><answer>no</answer>", judged), 0.1
    )

  def test_op_chain_is_judged_by_the_same_path(self):
    args = {"split": "train", "min_steps": 3}
    for problem in problems.load_problems(
      "reasoning_gym", task="op_chain", size=20, task_args=args
    ):
      judged = {"verifier": problem.verifier, "meta": dict(problem.meta), "id": ""}
      wrong = (int(problem.answer) + 1) % 10
      self.assertEqual(accuracy.score(tagged(problem.answer), judged), 1.0)
      self.assertEqual(accuracy.score(tagged(wrong), judged), 0.0)

  def test_unknown_verifier(self):
    with self.assertRaisesRegex(InputError, "config.data.verifier.*'gsm8k'"):
      accuracy.score("5", record("5", "gsm8l"))

  def test_reasoning_gym_without_an_entry(self):
    with self.assertRaisesRegex(InputError, "p/1.*needs meta.*'entry'"):
      accuracy.modules_of(record("5", "reasoning_gym"))


def real_data():
  folder = os.environ.get("R1JAX_DATA", "../shared/data")
  return pathlib.Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(
  not (real_data() / "math500").is_dir(), reason="set R1JAX_DATA to the data folder"
)
def test_every_math500_gold_matches_itself_and_no_neighbour():
  data = problems.load_problems("math500", dir=real_data() / "math500")
  assert len(data) == 500 - data.counts["dropped_unparsable_gold"]
  for i, problem in enumerate(data):
    judged = record(problem.answer)
    assert accuracy.score(tagged(problem.answer), judged) == 1.0, problem.id
    assert accuracy.score(f"Thus \\boxed{{{problem.answer}}}.", judged) == 1.0
    other = data[i - 1].answer
    # "5" is a right way to answer "x=5"
    if other.rpartition("=")[2] != problem.answer.rpartition("=")[2]:
      assert accuracy.score(tagged(other), judged) == 0.0, (problem.id, other)


if __name__ == "__main__":
  absltest.main()
