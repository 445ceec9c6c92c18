"""Tests of the format reward."""

import pytest

from r1jax.rewards import format


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ("<think>a</think><answer>b</answer>", 1.0),
    (" <think>a\nb</think>\n\n<answer>\nb\n</answer>\n", 1.0),
    ("<think>1 < 2, <b></think><answer>b</answer>", 1.0),
    ("<think></think><answer></answer>", 1.0),
    ("<answer>b</answer>", 0.0),
    ("<think>a</think>", 0.0),
    ("<think>a</think><answer>b", 0.0),
    ("<answer>b</answer><think>a</think>", 0.0),
    ("<think>a<answer>b</answer></think>", 0.0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
    ("<think><think>a</think><answer>b</answer>", 0.0),
    ("Well: <think>a</think><answer>b</answer>", 0.0),
    ("<think>a</think> so <answer>b</answer>", 0.0),
    ("<think>a</think><answer>b</answer> I hope", 0.0),
    ("<Think>a</Think><answer>b</answer>", 0.0),
    ("", 0.0),
  ],
)
def test_tags_once_in_order_and_nothing_outside(text, want):
  assert format.score(text) == want
