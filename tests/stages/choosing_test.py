"""Which answers are chosen, which of them are readable, and what rewriting leaves."""

import pytest

from configs import common
from r1jax.data.examples import Made
from r1jax.data.filters import Sieve
from r1jax.errors import InputError
from r1jax.rewards.format import TAGS
from r1jax.stages import choosing
from r1jax.types import Problem

WORDS = "We add the two numbers and look at what comes out of it in the end."


def one(text, score=1.0, *, problem="p", ended=True, **parts):
  return Made(
    Problem(problem, f"question {problem}", "7", "math"),
    text,
    category="math",
    answer="7",
    source="zero",
    score=score,
    sample=0,
    parts={"accuracy": score, **parts},
    ended=ended,
  )


def config(choice="right", **changes):
  s = common.rejection(choice)
  s.unlock()
  s.update(changes)
  return s.to_dict()


def chosen(made, choice="right", **changes):
  """(what is kept, {filter: dropped})."""
  sieve = Sieve(9, Made.line)
  kept = choosing.CHOOSE[choice](config(choice, **changes), sieve, made)
  return kept, {key: count for key, count in sieve.counts.items() if count}


def readable(made, **keep):
  sieve = Sieve(9, Made.line)
  kept = choosing.readable(config(keep=keep), sieve, made)
  lost = {key: count for key, count in sieve.counts.items() if count}
  return [one.completion for one in kept], lost


def test_right_answers():
  made = [one("a"), one("b", 0.5), one("c", 0.0)]
  kept, lost = chosen(made)
  assert ([x.completion for x in kept], lost) == (["a"], {"wrong": 2})
  assert chosen(made, choose={"least": 0.5})[1] == {"wrong": 1}


def test_the_majority_is_learnt_from_and_no_gold_is_read():
  """Method notes, section 6: of 108, 96 and 108 two paths are kept; the gold is 7."""
  made = [one(f"The answer is {n}.", 0.0) for n in ("108", "96", "108.0")]
  kept, lost = chosen(made, "majority")
  assert [x.completion for x in kept] == ["The answer is 108.", "The answer is 108.0."]
  assert {x.answer for x in kept} == {"108"}
  assert {x.score for x in kept} == {2 / 3}
  assert lost == {"minority": 1}
  assert chosen(made, "majority", choose={"least": 0.7}) == ([], {"unsure": 3})


def test_what_was_cut_off_has_no_vote_and_counts_in_the_whole():
  made = [one("The answer is 5.", ended=False), one("I do not know."), one("so 6")]
  kept, lost = chosen([*made, one("so 5", problem="q")], "majority")
  assert [(x.problem.id, x.answer, x.score) for x in kept] == [
    ("p", "6", 1 / 3),
    ("q", "5", 1.0),
  ]
  assert lost == {"no_answer": 2}


def test_without_any_vote_there_is_no_label():
  kept, lost = chosen([one("I do not know."), one("")], "majority")
  assert (kept, lost) == ([], {"no_answer": 2})


def test_each_filter_has_a_bound_and_is_off_without():
  long = f"<think>{WORDS} {WORDS}</think>7"
  code = "<think>so\n```\n1\n```\n</think>7"
  mixed = f"<think>{WORDS}</think>Поэтому ответ: семь"
  texts = [long, code, mixed]
  made = [one(text, format=float(text != mixed)) for text in texts]
  made.append(one("cut", ended=False, format=1.0))
  kept, lost = readable(made)
  assert (kept, lost) == (texts, {"truncated": 1})
  assert readable(made, truncated=True) == ([*texts, "cut"], {})
  assert readable(made, paragraph_words=20)[1] == {"truncated": 1, "paragraph_words": 1}
  assert readable(made, paragraph_characters=99)[1] == {
    "truncated": 1,
    "paragraph_characters": 1,
  }
  assert readable(made, code_blocks=0)[1] == {"truncated": 1, "code_blocks": 1}
  assert readable(made, foreign_words=0.1)[1] == {"truncated": 1, "foreign_words": 1}
  assert readable(made, least={"format": 1.0})[1] == {"truncated": 1, "low_format": 1}
  assert (
    readable(made[:2], code_blocks=1, paragraph_words=32, foreign_words=0.0)[1] == {}
  )


def test_tags_are_no_foreign_words():
  text = f"{TAGS[0]}因为{TAGS[1]}七"
  assert choosing.foreign_words(text, target="zh") == 0.0
  assert choosing.foreign_words(text, target="en") == 1.0
  assert choosing.foreign_words("7", target="en") == 0.0


class Pool:
  """Right is what ends in 7; the longer a text, the better its language."""

  names = ("accuracy", "language", "format")

  def score(self, texts, problems):
    assert len(texts) == len(problems)
    return [
      {
        "accuracy": float(text.endswith("7")),
        "language": min(len(text) / 30, 1.0),
        "format": 0.0,
      }
      for text in texts
    ], {}


def rewritten(made, replies, choice="right", **changes):
  sieve = Sieve(9, Made.line)
  kept = choosing.rewritten(
    config(choice, **changes), sieve, made, ask=lambda prompts: replies, pool=Pool()
  )
  lost = {key: count for key, count in sieve.counts.items() if count}
  return [(one.completion, one.score) for one in kept], lost


def said(summary, thought="I add 3 and 4."):
  return f'{{"thought": "{thought}", "summary": "{summary}"}}'


def test_a_rewriting_is_verified_again():
  made = [one(text, format=1.0, language=1.0, model=0.5) for text in "abcd"]
  replies = [said("It is 7"), said("It is 8"), "no JSON", said("7", thought="I")]
  keep = {"least": {"format": 1.0, "language": 1.0, "model": 0.2}}
  kept, lost = rewritten(made, replies, keep=keep)
  assert kept == [("<think>\nI add 3 and 4.\n</think>\n\nIt is 7", 1.0)]
  assert lost == {
    "rewriting_failed": 1,
    "rewritten_wrong": 1,
    "rewritten_low_language": 1,
  }
  assert rewritten(made[:1], [""]) == ([], {"rewriting_failed": 1})


def test_a_rewriting_keeps_the_answer_that_was_voted_for():
  made, _ = chosen([one("The answer is 8."), one("The answer is 8.0.")], "majority")
  replies = [said("The answer is 8."), said("The answer is 7.")]
  kept, lost = rewritten(made, replies, "majority")
  assert [score for _, score in kept] == [1.0]
  assert lost == {"rewritten_wrong": 1}


def test_errors_of_the_rewriter_name_its_section():
  changes = {"rewrite": {"endpoint": {"url": "ftp://x"}}}
  with pytest.raises(InputError, match=r"^config\.rewrite\.endpoint\.url must read"):
    choosing.rewriter_of(config(**changes))
  assert choosing.rewriter_of(config()) is None
