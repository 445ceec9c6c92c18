"""Worked examples: what is written, how often it is worked out, from where."""

import json
import re

import pytest

from r1jax.data import chain, examples
from r1jax.errors import InputError
from r1jax.rewards import accuracy, format
from r1jax.types import Problem

CHAINS = {"source": "worked", "task": "op_chain", "size": 400}


def record(example):
  return {**vars(example.problem), "meta": dict(example.problem.meta)}


@pytest.mark.parametrize("task", examples.WRITERS)
def test_completions_are_right_and_thoughts_have_the_format(task):
  """Those of small talk are right now and then."""
  found = examples.load_examples("worked", task=task, size=50, think_share=0.5)
  thinks = ["<think>" in example.completion for example in found]
  assert 10 < sum(thinks) < 40
  for example, think in zip(found, thinks, strict=True):
    points = accuracy.score(example.completion, record(example))
    assert points == 1.0 or task == "small_talk"
    assert format.score(example.completion, kind="r1_zero", strict=True) == float(think)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_is_worked_out(share):
  found = examples.load_examples(**CHAINS, think_share=share)
  thinks = sum("<think>" in example.completion for example in found)
  assert thinks == pytest.approx(400 * share, abs=0 if share in (0, 1) else 35)


def test_a_prefix_is_the_start_of_more():
  few = examples.load_examples(**{**CHAINS, "size": 20}, think_share=0.5)
  assert few == examples.load_examples(**CHAINS, think_share=0.5)[:20]


def test_seeds_differ_and_a_corpus_may_repeat_itself():
  one = examples.load_examples(**CHAINS, task_args={"min_steps": 1, "max_steps": 1})
  other = examples.load_examples(
    **CHAINS, task_args={"min_steps": 1, "max_steps": 1}, seed=1
  )
  prompts = [example.problem.prompt for example in one]
  assert prompts != [example.problem.prompt for example in other]
  assert len(set(prompts)) < len(prompts)


def test_the_corpus_shares_no_question_with_the_other_splits():
  args = {"min_steps": 2, "max_steps": 2, "split": "corpus"}
  for example in examples.load_examples(**CHAINS, task_args=args):
    assert chain.split_of(example.problem.prompt) == "corpus"


def test_a_sum_adds_one_term_at_a_time():
  entry = {"metadata": {"expression": "12 - 30 + 7"}, "answer": "-11"}
  want = "<think>12 - 30 = -18, -18 + 7 = -11</think>\n<answer>-11</answer>"
  assert examples.chain_sum_text(entry, "think") == want
  assert examples.chain_sum_text(entry, "direct") == "<answer>-11</answer>"


def test_jsonl(tmp_path):
  path = tmp_path / "cold.jsonl"
  lines = [{"prompt": "1+1?", "completion": "<answer>2</answer>"}]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  (example,) = examples.load_examples("jsonl", path=path)
  assert example.problem.prompt == "1+1?"
  assert example.problem.id == "cold/1"
  assert example.completion == "<answer>2</answer>"
  path.write_text('{"prompt": "1+1?"}\n')
  with pytest.raises(InputError, match=re.escape(f"{path}:1: no field 'completion'")):
    examples.load_examples("jsonl", path=path)


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"source": "workd", "task": "op_chain", "size": 1}, "did you mean 'worked'"),
    ({"source": "worked", "task": "op_chian", "size": 1}, "did you mean 'op_chain'"),
    ({"source": "worked", "size": 1}, "config.examples.task is missing"),
    ({"source": "worked", "task": "op_chain"}, "config.examples.size is missing"),
    ({"source": "jsonl"}, "config.examples.path is missing"),
    ({"source": "jsonl", "path": "a", "task": "b"}, "task='b' is not used"),
    ({**CHAINS, "stage": "cold"}, "config.examples.stage='cold' is not used"),
    ({**CHAINS, "think_share": 1.5}, "think_share=1.5; needed: 0 to 1"),
  ],
)
def test_bad_settings(settings, said):
  with pytest.raises(InputError, match=re.escape(said)):
    examples.load_examples(**settings)


def test_what_a_stage_has_made(tmp_path):
  messages = ({"role": "user", "content": "q"},)
  made = [
    examples.Made(
      Problem("p/1", "1 + 1?", "2", "exact"),
      "<answer>2</answer>",
      category="math",
      answer="2",
      source="zero",
      score=1.0,
      sample=3,
      parts={"accuracy": 1.0},
    ),
    examples.Made(
      Problem("chat/7", "q", "", "exact", messages=messages),
      "a",
      category="general",
      answer="",
      source="talk",
    ),
  ]
  lines = [one.line() for one in made]
  assert lines[0] == {
    "prompt": "1 + 1?",
    "completion": "<answer>2</answer>",
    "problem_id": "p/1",
    "sample": 3,
    "category": "math",
    "source": "zero",
    "answer": "2",
    "score": 1.0,
    "reward": {"accuracy": 1.0},
  }
  path = tmp_path / "cold" / "made.jsonl"
  path.parent.mkdir()
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  found = examples.load_examples("stage", stage="cold", path=path)
  assert [example.completion for example in found] == [one.completion for one in made]
  one, other = (example.problem for example in found)
  meta = {"category": "math"}
  assert one == Problem("cold/1", "1 + 1?", "2", "exact", meta=meta)
  assert (other.id, other.messages) == ("cold/2", messages)


def worked(task, size, **changes):
  return {"source": "worked", "task": task, "size": size, **changes}


def test_a_mixture_is_spread_evenly():
  of = {"chains": worked("op_chain", 6), "talk": worked("small_talk", 3)}
  found = examples.load_examples("mixture", of=of)
  kinds = [example.problem.id.split("/")[0] for example in found]
  assert kinds == ["op_chain", "small_talk", "op_chain"] * 3
  parts = [examples.load_examples(**own) for own in of.values()]
  assert sorted(found, key=repr) == sorted([*parts[0], *parts[1]], key=repr)


def test_thoughts_may_mix_languages():
  own = worked("op_chain", 40, languages=("en", "zh"))
  thoughts = [example.completion for example in examples.load_examples(**own)]
  assert {("then" in t, "再" in t) for t in thoughts} >= {(True, True)}
  own = worked("op_chain", 40, languages=("en",))
  assert not any("再" in e.completion for e in examples.load_examples(**own))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"source": "mixture"}, r"config\.examples\.of is missing with source='mixture'"),
    (worked("op_chain", 4, of={"a": {}}), r"config\.examples\.of=.* is not used"),
    (worked("chain_sum", 4, languages=("en",)), r"languages=\('en',\): of the task"),
    (
      {"source": "mixture", "of": {"a": {"source": "stage", "stage": "b"}}},
      r"config\.examples\.of\.a\.source='stage'",
    ),
  ],
)
def test_mixtures_and_languages_that_cannot_be(settings, message):
  with pytest.raises(InputError, match=message):
    examples.load_examples(**settings)
