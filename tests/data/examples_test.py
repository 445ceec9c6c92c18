"""Worked examples: what is written, how often it is worked out, from where."""

import json
import re

import pytest

from r1jax.data import chain, examples
from r1jax.errors import InputError
from r1jax.rewards import accuracy, format

CHAINS = {"source": "worked", "task": "op_chain", "size": 400}


def record(example):
  return {**vars(example.problem), "meta": dict(example.problem.meta)}


@pytest.mark.parametrize("task", examples.WRITERS)
def test_every_completion_is_right_and_thoughts_have_the_format(task):
  found = examples.load_examples("worked", task=task, size=50, think_share=0.5)
  thinks = ["<think>" in example.completion for example in found]
  assert 10 < sum(thinks) < 40
  for example, think in zip(found, thinks, strict=True):
    assert accuracy.score(example.completion, record(example)) == 1.0
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
    ({**CHAINS, "think_share": 1.5}, "think_share=1.5; needed: 0 to 1"),
  ],
)
def test_bad_settings(settings, said):
  with pytest.raises(InputError, match=re.escape(said)):
    examples.load_examples(**settings)
