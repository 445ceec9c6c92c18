"""Which answers are one and the same vote."""

import pytest

from r1jax.rewards.votes import vote

PLAIN = {"verifier": "math", "meta": {}}


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ("The answer is 108.", ("108", "108")),
    ("<think>96 or 108</think><answer>96</answer>", ("96", "96")),
    ("so it is 7/2", ("7/2", "7/2")),
    (r"\boxed{3.5}", ("7/2", "3.5")),
    (r"\boxed{\frac72}", ("7/2", r"\frac72")),
    ("The answer is $3.50.", ("7/2", "$3.50")),
    ("The answer is  Paris .", ("paris", "Paris")),
    ("", None),
    ("<think>it never ends: 7", None),
    ("<answer></answer>", None),
  ],
)
def test_votes(text, want):
  assert vote(text, PLAIN) == want


def test_a_choice_is_its_letter():
  record = {"verifier": "choice", "meta": {"options": {"A": "Rome", "B": "Paris"}}}
  assert vote("The answer is (B).", record) == vote("The answer is Paris.", record)
  assert vote("The answer is A or B.", record) is None
