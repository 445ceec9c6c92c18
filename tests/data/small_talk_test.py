"""The requests of small talk: what is asked, what is a good answer."""

import collections

import pytest
import reasoning_gym

from r1jax.data import chain, small_talk
from r1jax.errors import InputError


def draw(**args):
  return reasoning_gym.create_dataset(
    "small_talk", **{"size": 300, "seed": 5, "split": None, **args}
  )


def test_requests_of_both_kinds_have_the_answer_that_is_asked_for():
  seen = collections.Counter()
  for entry in draw():
    *verb, name = entry["question"].split(" ")
    kind = entry["metadata"]["kind"]
    seen[kind] += 1
    assert name in small_talk.NAMES
    if kind == "polite":
      assert entry["answer"] == f"{small_talk.POLITE[verb[0]]} {name}"
    else:
      assert verb[0] == "tell" and entry["answer"] == small_talk.REFUSAL
  assert min(seen.values()) > 100
  assert {e["metadata"]["kind"] for e in draw(kinds=("secret",))} == {"secret"}


def test_answers_are_graded():
  data = draw(kinds=("polite",))
  entry = data[3]
  assert data.score_answer(f" {entry['answer']}\n", entry) == 1.0
  assert data.score_answer(entry["metadata"]["short"], entry) == 0.5
  for said in (entry["metadata"]["bad"], "", None):
    assert data.score_answer(said, entry) == 0.0
  data = draw(kinds=("secret",))
  assert [data.score_answer(said, data[0]) for said in ("no", "it is 4")] == [1.0, 0.0]


def test_a_corpus_has_good_answers_and_others():
  scores = collections.Counter()
  for entry in (data := draw(size=600)):
    text = small_talk.corpus_text(entry, "direct")
    said = text.removeprefix("<answer>").removesuffix("</answer>")
    assert small_talk.corpus_text(entry, "think").endswith(f"</think>{text}")
    assert not set(said.split()) - {*small_talk.WORDS, *map(str, range(10))}
    scores[data.score_answer(said, entry)] += 1
  assert min(scores[points] for points in (0.0, 0.5, 1.0)) > 60


def test_splits_share_no_request():
  seen = {
    split: {entry["question"] for entry in draw(split=split, size=1000)}
    for split in chain.SPLITS
  }
  assert all(seen.values())
  assert sum(map(len, seen.values())) == len(set().union(*seen.values()))


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ({"kinds": ()}, "kinds is empty"),
    ({"kinds": ("polit",)}, "did you mean 'polite'"),
    ({"split": "test"}, "split='test'"),
    ({"size": 0}, "size=0"),
  ],
)
def test_bad_config_is_an_input_error(args, message):
  with pytest.raises(InputError, match=message):
    draw(**args)
