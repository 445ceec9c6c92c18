"""Tests of where an answer is looked for, and of the numbers in a text."""

import time
from fractions import Fraction

import pytest
from absl.testing import absltest, parameterized

from r1jax import boxes
from r1jax.rewards import extract


def tagged(answer):
  return f"<think>It may be 1, or 2.</think> <answer> {answer} </answer>"


class SpanTest(parameterized.TestCase):
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
    (r"\boxed{4 and \boxed{5}", "5"),
    (r"\boxed{\text{as } \boxed{5}}", "5"),
    (r"} \boxed{5} {", "5"),
    (r"\boxed{}", ""),
    ("5", None),
  )
  def test_last_boxed(self, text, want):
    self.assertEqual(boxes.last_boxed(text), want)


class ReadingsTest(parameterized.TestCase):
  @parameterized.parameters(
    # one rule after the other, by the number of the order
    (r"<think>\boxed{1}</think> \boxed{2} <answer>3</answer>", ("3",)),
    (r"<think>1</think><answer>The answer is 4, or \boxed{3}</answer>", ("3",)),
    ("The answer is 2.\n#### 3\nThe answer is 4.", ("3",)),
    ("The answer is 3. It is not 4.", ("3",)),
    ("**Answer:** 3", ("3",)),
    (r"The final answer is: \(3\). I hope it is correct.", (r"\(3\)",)),
    ("Answers are 3 and 5.", ("3 and 5", "3 and 5")),
    ("The answer is 3.5. No more.", ("3.5",)),
    (tagged("x = 3"), ("x = 3",)),
    ("So $x = 3$ for $y = 4$", ("y = 4",)),
    ("It was 3, 5 then 7.", ("7",)),
    ("They are $3$, $5$, and $7$.", ("3, 5, 7",)),
    ("They are 3, 5 and 7.", ("3, 5 and 7",)),
    ("The point is (3, 5).", ("(3, 5)",)),
    (r"So it is \frac{1}{2}.", (r"\frac{1}{2}",)),
    ("There are 2^5 of them", ("2^5",)),
    ("That makes $18 of $20.", ("$20",)),
    # two readings: with the words, and without
    (tagged("42, by symmetry"), ("42, by symmetry", "42")),
    ("The answer is $3$ since $1+2=3$.", ("$3$ since $1+2=3$", "3")),
    # but a word beside a number may make it another
    (tagged("at least 42"), ("at least 42",)),
    (tagged("not 42"), ("not 42",)),
    (tagged("42 million"), ("42 million",)),
    (tagged("42 and a half"), ("42 and a half",)),
    ("The answer is two.", ("two",)),
    ("", ()),
    (tagged(""), ()),
    ("<think>3", ()),
    ("<answer>3", ()),
    ("no number", ()),
  )
  def test_order(self, text, want):
    self.assertEqual(extract.readings(text), want)


class NumbersTest(parameterized.TestCase):
  @parameterized.parameters(
    ("1,234 and 5", [1234, 5]),
    ("-$5 $-6 $7", [-5, -6, 7]),
    ("-3.50 .5 3.", [Fraction(-7, 2), Fraction(1, 2), 3]),
    ("7/2 of 1/0", [Fraction(7, 2)]),
    ("5-3 = 2, 5 - 3 = 2", [5, 3, 2, 5, 3, 2]),
    (r"\$1{,}234.", [1234]),
    ("−4", [-4]),
    ("12,34", [12, 34]),
    (r"1 1/2, 2\frac12, 1 7/2", [Fraction(3, 2), Fraction(5, 2)]),
    (r"\frac{-3}{4} \dfrac34", [Fraction(-3, 4), Fraction(3, 4)]),
    (r"2e3, 2 \times 10^{-1}, 10^3", [2000, Fraction(1, 5), 1000]),
    ("x^2, 5 cm^2, a_1, 10_2", [5, 10]),
    ("none", []),
  )
  def test_numbers(self, text, want):
    self.assertEqual(extract.numbers(text), want)

  @parameterized.parameters(
    ("1,234", 1234),
    (r"-\frac{1}{2}", Fraction(-1, 2)),
    (r"\$5.00", 5),
    ("1.5e3", 1500),
    ("5 cm", None),
    ("x", None),
    ("10_2", None),
    ("1/0", None),
    ("1, 2", None),
    ("", None),
  )
  def test_number(self, text, want):
    self.assertEqual(extract.number(text), want)

  @parameterized.parameters(
    ("0.333333", True),
    ("0.3333333", True),
    ("0.333334", False),
    ("0.33333", False),
    ("00000.33", False),
    ("333333", False),
  )
  def test_rounding_needs_six_right_digits(self, text, want):
    self.assertEqual(extract.rounds_to(Fraction(1, 3), text), want)


@pytest.mark.parametrize(
  "text", ["\\boxed{", "9", "1,", "$a", "(1,", "a", "<answer>", "answer is ", "{" * 9]
)
def test_time_grows_gently_with_a_text_that_never_ends(text):
  """Answers of models that repeat themselves; a quadratic scan took seconds here."""
  long = text * (8000 // len(text))
  start = time.process_time()
  extract.readings(long)
  extract.numbers(long)
  assert time.process_time() - start < 1.0


if __name__ == "__main__":
  absltest.main()
