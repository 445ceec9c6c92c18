"""Tests of the verifiers by name: what a problem's record decides."""

from absl.testing import absltest, parameterized

from r1jax.data import problems
from r1jax.errors import InputError
from r1jax.rewards import accuracy


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
    ("0.5", "It is 1/2.", 1.0),
    ("2.5", "It is 7/2.5", 1.0),
    ("2", "1/2", 0.0),
    ("5", r"4\frac{1}{2} + \frac{1}{2} = 5", 1.0),
    ("1.5", r"1\frac{1}{2}", 1.0),
    ("1.5", "1 1/2 cups", 1.0),
    ("0.5", "1 1/2 cups", 0.0),
    ("2", r"\frac{1}{2}", 0.0),
    ("100", "10^2", 1.0),
    ("2", "10^2", 0.0),
    ("15", "15 cm^2", 1.0),
    ("2", "15 cm^2", 0.0),
    ("1500", r"1.5 \times 10^3", 1.0),
    ("1500", "1.5e3", 1.0),
    ("3", "1.5e3", 0.0),
    ("72", "seventy-two", 0.0),
    ("72", "", 0.0),
  )
  def test_gsm8k(self, gold, answer, want):
    self.assertEqual(accuracy.score(tagged(answer), record(gold, "gsm8k")), want)

  @parameterized.parameters(
    ("It is 4.\n#### 5", 1.0),
    ("#### 4\nno:\n#### 5\n6 is too much", 1.0),
    ("It is 5.\n#### 4", 0.0),
    ("It is 5.\n####", 0.0),
    (r"#### 4, or \boxed{5}", 1.0),
    ("#### 4 <answer>5</answer>", 1.0),
  )
  def test_gsm8k_mark(self, text, want):
    self.assertEqual(accuracy.score(text, record("5", "gsm8k")), want)

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
    (r"1 \le x < 2", "[1,2)", 1.0, 1.0),
    (r"50\%", "0.5", 1.0, 1.0),
    # and not: a rounding answers an exact number, which does not answer the rounding
    (r"\frac{1}{3}", "0.333333", 1.0, 0.0),
    # a base may be left out, but not be added
    ("204_5", "204", 1.0, 0.0),
    # a percent sign may be left out; where it is added the gold must be above 1
    (r"1\%", "1", 1.0, 0.0),
    # an equation for another unknown is no value
    ("2x = 10", "10", 0.0, 0.0),
  )
  def test_math_with_gold_and_answer_exchanged(self, gold, answer, there, back):
    """R9: the gold is the gold, whichever way the comparison leans."""
    self.assertEqual(accuracy.score(tagged(answer), record(gold)), there)
    self.assertEqual(accuracy.score(tagged(gold), record(answer)), back)

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


if __name__ == "__main__":
  absltest.main()
