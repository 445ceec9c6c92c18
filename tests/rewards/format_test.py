"""Tests of the format reward."""

import pytest

from r1jax.errors import InputError
from r1jax.rewards import format


@pytest.mark.parametrize(
  ("text", "strict", "soft"),
  [
    ("<think>a</think><answer>b</answer>", 1.0, 1.0),
    (" <think>a\nb</think>\n\n<answer>\nb\n</answer>\n", 1.0, 1.0),
    ("<think>1 < 2, <b></think><answer>b</answer>", 1.0, 1.0),
    ("<think></think><answer></answer>", 1.0, 1.0),
    ("<answer>b</answer>", 0.0, 0.5),
    ("<think>a</think>", 0.0, 0.5),
    ("<think>a", 0.0, 0.25),
    ("<think>a</think><answer>b", 0.0, 0.75),
    # behind those before it: the second pair alone, or the first alone
    ("<answer>b</answer><think>a</think>", 0.0, 0.5),
    ("<think>a<answer>b</answer></think>", 0.0, 0.5),
    # a tag that stands twice stands nowhere
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0, 0.5),
    ("<think><think>a</think><answer>b</answer>", 0.0, 0.75),
    ("Well: <think>a</think><answer>b</answer>", 0.0, 1.0),
    ("<think>a</think> so <answer>b</answer>", 0.0, 1.0),
    ("<think>a</think><answer>b</answer> I hope", 0.0, 1.0),
    ("<Think>a</Think><answer>b</answer>", 0.0, 0.5),
    ("", 0.0, 0.0),
  ],
)
def test_tags_once_in_order_and_nothing_outside(text, strict, soft):
  assert format.score(text, kind="r1_zero", strict=True) == strict
  assert format.score(text, kind="r1_zero", strict=False) == soft


@pytest.mark.parametrize(
  ("text", "strict", "soft"),
  [
    ("so it is 5\n</think>\n\nIt is 5.", 1.0, 1.0),
    ("\n\n</think>5", 1.0, 1.0),
    ("so it is 5</think> \n", 0.0, 0.5),
    ("so it is 5, and", 0.0, 0.0),
    ("<think>so it is 5</think>5", 0.0, 1.0),
    ("so</think>5</think>5", 0.0, 0.0),
    ("so</think><answer>5</answer>", 0.0, 1.0),
    ("", 0.0, 0.0),
  ],
)
def test_thought_that_the_prompt_has_opened(text, strict, soft):
  assert format.score(text, kind="think_prefix", strict=True) == strict
  assert format.score(text, kind="think_prefix", strict=False) == soft


@pytest.mark.parametrize(
  ("text", "strict", "soft"),
  [
    ("<think>\nso it is 5\n</think>\n\nIt is 5.", 1.0, 1.0),
    (" <think></think>5", 1.0, 1.0),
    ("so it is 5</think>5", 0.0, 0.5),
    ("<think>so it is 5</think>", 0.0, 0.75),
    ("<think>so it is 5, and", 0.0, 0.5),
    ("<think>a</think><think>b</think>5", 0.0, 0.5),
    ("Well: <think>a</think>5", 0.0, 0.5),
    ("<think>a</think><answer>5</answer>", 0.0, 1.0),
    ("", 0.0, 0.0),
  ],
)
def test_thought_that_the_answer_opens(text, strict, soft):
  assert format.score(text, kind="think", strict=True) == strict
  assert format.score(text, kind="think", strict=False) == soft


@pytest.mark.parametrize(
  ("text", "strict", "soft"),
  [
    (r"It is \boxed{5}.", 1.0, 1.0),
    (r"so \boxed{4}? no</think>It is \boxed{\frac{1}{2}}.", 1.0, 1.0),
    (r"<think>a</think><answer>\boxed{5}</answer>", 1.0, 1.0),
    (r"\boxed{5} or \boxed{6}", 0.0, 1.0),
    (r"\boxed{}", 0.0, 1.0),
    (r"It is \boxed{\frac{1}{2}", 0.0, 0.5),
    # in the thought, finished or not, it is not the answer
    (r"so \boxed{5}</think>It is 5.", 0.0, 0.0),
    (r"<think>so \boxed{5}", 0.0, 0.0),
    ("It is 5.", 0.0, 0.0),
  ],
)
def test_one_box(text, strict, soft):
  assert format.score(text, kind="boxed", strict=True) == strict
  assert format.score(text, kind="boxed", strict=False) == soft


def test_unknown_kind():
  message = r"config\.reward\.format\.kind='boxes'.*did you mean 'boxed'"
  with pytest.raises(InputError, match=message):
    format.score("", kind="boxes", strict=True)
