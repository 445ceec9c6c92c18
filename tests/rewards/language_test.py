"""Tests of language consistency, and its error on a labelled set.

    python -m pytest -s tests/rewards/language_test.py -k measured

prints the error.
"""

import pathlib
import pickle
import re
import subprocess
import sys

import pytest

from r1jax.errors import InputError
from r1jax.rewards import language

SET = pathlib.Path(__file__).with_name("thoughts.txt")


def thinks(text):
  return f"<think>{text}</think><answer>答案 5</answer>"


def test_eighteen_words_of_twenty():
  """Worked number of the method notes: 18 target words of 20 give 0.9."""
  text = "Now add the three numbers to get twelve and then divide the sum by two. "
  text += "That is six. 但是"
  assert len(language.judged(text, "en")) == 20
  assert language.score(thinks(text), target="en") == pytest.approx(0.9)
  assert language.score(thinks(text), target="zh") == pytest.approx(0.1)


@pytest.mark.parametrize(
  ("text", "target", "want"),
  [
    (thinks("All of this is English."), "en", 1.0),
    (thinks("Rien de tout cela n'est en anglais."), "en", 0.0),
    (thinks("Rien de tout cela n'est en anglais."), "fr", 1.0),
    (thinks("全部都是中文。"), "zh", 1.0),
    (thinks("全部都是中文。"), "en", 0.0),
    (thinks("это word"), "en", 0.5),
    (thinks("त्रिभुज का क्षेत्रफल"), "hi", 1.0),
    # Han is Japanese in a sentence with kana, and only there
    (thinks("答えは五。"), "ja", 1.0),
    (thinks("答えは五。"), "zh", 0.0),
    (thinks("答案五。答えは五。"), "zh", 3 / 7),
    # symbols, numbers, formulas, code and addresses are no words
    (thinks("设x为3"), "zh", 1.0),
    (thinks("其中 a_1, x2 和 AB 以及 π"), "zh", 1.0),
    (thinks("所以 sin(x) + log(y)"), "zh", 1.0),
    (thinks(r"12 + 3 = \frac{30}{2}，所以 $a \text{ is even}$"), "zh", 1.0),
    (thinks("运行 `print(total)` 和 ```python\nfor x in xs: pass\n```"), "zh", 1.0),
    (thinks("见 https://example.com/some/page"), "zh", 1.0),
    (thinks("```unfinished code"), "en", 0.0),
    # but what stands between prices is
    (thinks("$5 und dann 但是 $6"), "zh", 0.5),
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


def test_too_few_letters_to_tell_are_of_the_target():
  assert language.score(thinks("Ja. 7"), target="en") == 1.0


def test_unknown_language():
  with pytest.raises(InputError, match=r"config\.reward\.language='eng'.*'en'"):
    language.score("x", target="eng")


def test_a_worker_gets_it_loaded_and_without_jax(tmp_path):
  """What a reward worker's server does: it reads the part, and forks after that."""
  (tmp_path / "part").write_bytes(pickle.dumps(language.Consistency("en")))
  program = (
    f"import pickle, sys; part = pickle.load(open({str(tmp_path / 'part')!r}, 'rb'));"
    "from r1jax.rewards import language;"
    "print(language._detector.cache_info().currsize, 'jax' in sys.modules,"
    "part('<think>This is English.'))"
  )
  told = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert told.stdout.split() == ["1", "False", "1.0"]


def labelled():
  """[(language, text of a stretch)] of each thought that measures."""
  measured = SET.read_text().partition("# MEASURED\n")[2]
  lines = [line for line in measured.splitlines() if line[:1] == "["]
  return [re.findall(r"\[([a-z]{2})\](.*?)(?=\[[a-z]{2}\]|$)", line) for line in lines]


@pytest.mark.parametrize(
  ("target", "most_wrong", "most_off"),
  [
    ("en", 0.016, 0.012),
    ("zh", 0.006, 0.005),
    ("ja", 0.002, 0.002),
    ("fr", 0.016, 0.04),
    ("de", 0.010, 0.04),
    ("es", 0.014, 0.04),
  ],
)
def test_measured(target, most_wrong, most_off):
  """Thoughts on which nothing was tuned; the bounds are a little above what is seen."""
  num_words = num_wrong = 0
  off = []
  for stretches in labelled():
    got = [
      is_target
      for _, is_target in language.judged("".join(t for _, t in stretches), target)
    ]
    want = [
      of == target for of, text in stretches for _ in language.judged(text, target)
    ]
    assert len(got) == len(want)
    num_words += len(want)
    num_wrong += sum(g != w for g, w in zip(got, want, strict=True))
    off.append(abs(sum(got) - sum(want)) / len(want))
  wrong, mean_off = num_wrong / num_words, sum(off) / len(off)
  print(
    f"\n{target}: {num_wrong} of {num_words} words wrong ({wrong:.2%}); share off by "
    f"{mean_off:.4f} on average, by more than 0.1 in {sum(o > 0.1 for o in off)} of "
    f"{len(off)} thoughts"
  )
  assert wrong <= most_wrong
  assert mean_off <= most_off
