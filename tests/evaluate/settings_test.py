"""Which problems are answered, and how what is left open is settled."""

import json

import pytest

from configs import evaluate as config_file
from r1jax.data.tokenizer import train_sentencepiece
from r1jax.errors import InputError
from r1jax.evaluate import settings
from tests import learners

RUNS = {"eval": {"sets": {"heldout": {"source": "reasoning_gym", "task": "op_chain"}}}}


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "t.model"
  return train_sentencepiece(["abc 012?+=", "<think></think>"], path=path)


def config(**changes):
  c = config_file.get_config()
  c.update_from_flattened_dict(changes)
  return c.to_dict()


def named(*flags, trained=RUNS, c=None):
  return settings.named_sets(flags, config() if c is None else c, trained)


def test_a_run_is_asked_its_own_sets_unless_others_are_named():
  own = RUNS["eval"]["sets"]
  assert named() == own
  assert named("heldout,size=5") == {"heldout": own["heldout"] | {"size": 5}}
  of_file = config_file.get_config("r1").to_dict()
  assert list(named(c=of_file)) == ["aime24", "gpqa", "math500"]
  assert list(named("heldout", "aime24", c=of_file)) == ["heldout", "aime24"]
  assert named("aime24", c=of_file)["aime24"]["samples"] == 64


def test_flags_become_settings():
  found = named(
    "math500,samples=4",
    "svamp=jsonl,path=a=b.jsonl,prompt_field=Body",
    'reasoning_gym,task=chain_sum,task_args.min_terms=2,task_args.op="+",limit=null',
  )
  assert found == {
    "math500": {"source": "math500", "samples": 4},
    "svamp": {"source": "jsonl", "path": "a=b.jsonl", "prompt_field": "Body"},
    "reasoning_gym": {
      "source": "reasoning_gym",
      "task": "chain_sum",
      "task_args": {"min_terms": 2, "op": "+"},
      "limit": None,
    },
  }


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (
      ["helout"],
      r"no source 'helout' \(did you mean 'heldout'\?\); sets of its own: h",
    ),
    (["math500", "math500"], "'math500' is there already; --set=NAME=math500 gives"),
    (["a=jsonl,path"], "'path' is no key=value"),
    (["a/b=jsonl,path=x"], "'a/b' is no name for a set"),
    (["=jsonl,path=x"], "'' is no name for a set"),
  ],
)
def test_flags_that_cannot_be(flags, said):
  with pytest.raises(InputError, match=said):
    named(*flags)


def test_some_problems_are_needed():
  with pytest.raises(InputError, match=r"no problems to answer: --set=SOURCE"):
    named(trained={})


def test_sets_that_cannot_be(tmp_path):
  path = learners.jsonl(tmp_path / "a.jsonl", [{"question": "1?", "answer": "1"}])
  for changes, said in (
    ({"splt": "test"}, r"the set 'a': 'splt' is not known \(did you mean 'split'\?\)"),
    ({"samples": 0}, "the set 'a': samples=0: must be 1 or more"),
    ({"path": "absent"}, "the set 'a': .*absent"),
    ({"source": ""}, "the set 'a': source='' is not known"),
    ({"dir": "b"}, "the set 'a': dir is set, but the source 'jsonl' does not use it"),
  ):
    with pytest.raises(InputError, match=said):
      settings.load("a", {"source": "jsonl", "path": path} | changes, 4)
  one = settings.load("a", {"source": "jsonl", "path": path, "samples": None}, 4)
  assert (one.samples, len(one.problems)) == (4, 1)
  assert (
    settings.load("a", {"source": "jsonl", "path": path, "samples": 2}, 4).samples == 2
  )


def problems(folder, *questions, samples=2):
  path = learners.jsonl(
    folder / "q.jsonl", [{"question": text, "answer": "1"} for text in questions]
  )
  return settings.load("own", {"source": "jsonl", "path": path}, samples)


def resolved(one, tokenizer, *, trained=None, max_length=40, **changes):
  return settings.resolved(
    config(**changes), trained or {}, [one], tokenizer=tokenizer, max_length=max_length
  )


def test_without_a_checkpoint_it_is_asked_as_the_model_can_be(
  tmp_path, tokenizer, monkeypatch
):
  one = problems(tmp_path, "1+1?", "10+20+12?")
  found, prompts = resolved(one, tokenizer)
  assert found["template"] == {"template": "plain", "suffix": "", "system": ""}
  longest = max(map(len, prompts["own"]))
  assert found["rollout"]["prompt_length"] == longest
  assert found["eval"]["max_tokens"] == 40 - longest
  assert found["eval"]["stop_strings"] == ()
  assert found["reward"]["format"] == {"kind": "think", "strict": True}
  assert found["reward"]["language"] == "en"
  found, _ = resolved(one, tokenizer, max_length=100_000)
  assert found["eval"]["max_tokens"] == 32_768
  monkeypatch.setattr(tokenizer, "chat_template", "{{messages[0].content}}<think>\n")
  found, _ = resolved(one, tokenizer)
  assert found["template"]["template"] == "chat"
  assert found["reward"]["format"]["kind"] == "think_prefix"


def test_a_checkpoint_is_asked_as_it_was_in_training(tmp_path, tokenizer):
  one = problems(tmp_path, "1+1?")
  trained = {
    "template": {"template": "plain", "suffix": "=", "system": ""},
    "eval": {"max_tokens": 7, "stop_strings": ["+"], "temperature": 0.0},
    "reward": {"format": {"kind": "boxed", "strict": False}, "language": "de"},
  }
  found, prompts = resolved(one, tokenizer, trained=trained)
  assert tokenizer.decode(prompts["own"][0]) == "1+1?="
  assert found["eval"]["max_tokens"] == 7 and found["eval"]["stop_strings"] == ("+",)
  assert found["eval"]["temperature"] == 0.6
  assert found["reward"]["format"] == {"kind": "boxed", "strict": False}
  assert found["reward"]["language"] == "de"
  changes = {"template.suffix": "?", "eval.max_tokens": 3, "reward.language": "fr"}
  found, prompts = resolved(one, tokenizer, trained=trained, **changes)
  assert tokenizer.decode(prompts["own"][0]) == "1+1??"
  assert (found["eval"]["max_tokens"], found["reward"]["language"]) == (3, "fr")


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"eval.temperature": -0.1}, "config.eval.temperature=-0.1: must be 0 or more"),
    ({"eval.top_p": 0.0}, "config.eval.top_p=0.0: must be above 0 and at most 1"),
    ({"eval.temperature": 0.0}, "same answer 2 times; set config.eval.samples=1"),
    ({"rollout.prompt_length": 2}, "raise config.rollout.prompt_length to"),
    ({"template.template": "palin"}, "template='palin' is not known"),
  ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, tokenizer, changes, said):
  with pytest.raises(InputError, match=said):
    resolved(problems(tmp_path, "1+1?"), tokenizer, **changes)


def test_a_prompt_may_be_too_long_for_the_model(tmp_path, tokenizer):
  with pytest.raises(InputError, match="leaves no room for an answer in the model's 4"):
    resolved(problems(tmp_path, "1+1+1+1?"), tokenizer, max_length=4)


def test_what_a_stage_was_trained_with(small_run):
  """One of supervised training is asked as the first that was evaluated."""
  zero = settings.trained_with(small_run, "zero")
  assert zero["eval"]["max_tokens"] == 12
  assert settings.trained_with(small_run, "base") == zero
  whole = json.loads((small_run / "config.json").read_text())["config"]
  assert zero["template"] == whole["template"]
