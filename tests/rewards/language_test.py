"""Tests of language consistency."""

import pytest

from r1jax.errors import InputError
from r1jax.rewards import language


def thinks(text):
  return f"<think>{text}</think><answer>答案 5</answer>"


def test_eighteen_words_of_twenty():
  """Worked number of the method notes: 18 target words of 20 give 0.9."""
  text = "one two three four five six seven eight nine ten " * 2
  text = text.replace("ten", "", 2) + "但是"
  assert language.score(thinks(text)) == pytest.approx(0.9)
  assert language.score(thinks(text), target="zh") == pytest.approx(0.1)


@pytest.mark.parametrize(
  ("text", "target", "want"),
  [
    (thinks("All of this is English."), "en", 1.0),
    (thinks("全部都是中文。"), "zh", 1.0),
    (thinks("全部都是中文。"), "en", 0.0),
    # Han by character, within one run of letters: 2 of 3
    (thinks("设x"), "zh", 0.5),
    (thinks("其中x为3"), "zh", 0.75),
    (thinks("это word"), "en", 0.5),
    # digits, operators and LaTeX commands are no words
    (thinks(r"12 + 3 = \frac{30}{2}，所以"), "zh", 1.0),
    (thinks("12 + 3"), "en", 0.0),
    (thinks(""), "en", 0.0),
    ("<answer>words</answer>", "en", 0.0),
    ("no thought at all", "en", 0.0),
    # opened by the prompt; never finished
    ("so it is</think>答案", "en", 1.0),
    ("<think>so it is", "en", 1.0),
  ],
)
def test_share_of_words(text, target, want):
  assert language.score(text, target=target) == pytest.approx(want)


def test_unknown_language():
  with pytest.raises(InputError, match=r"config\.reward\.language='eng'.*'en'"):
    language.score("x", target="eng")
