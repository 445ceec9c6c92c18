"""A decoder that judges: what is asked of its sampler, and which reply is whose."""

import json

import numpy as np
import pytest

from r1jax import sharding
from r1jax.data.tokenizer import train_sentencepiece
from r1jax.errors import InputError
from r1jax.models.presets import PRESETS
from r1jax.rewards import judge
from r1jax.stages.model_judge import ModelJudge, of_section
from r1jax.stages.run import Run


class Sampler:
  """Draws the verdict that the last letter of the answer to grade stands for."""

  num_prompts = 2

  def __init__(self, tokenizer):
    self.tokenizer = tokenizer
    self.asked = []

  def __call__(self, weights, prompts, problems, key):
    self.asked.append([problem.id for problem in problems])
    rollout = []
    for problem in problems:
      given = json.loads(problem.prompt.partition("<user>")[2].partition("</user>")[0])
      verdict = {"r": "correct", "w": "incorrect"}.get(given["answer"][-1], "perhaps")
      rollout.append(json.dumps({"analysis": "", "verdict": verdict}))
    return rollout

  def completions(self, rollout):
    return rollout

  def texts(self, completions):
    return completions


@pytest.fixture(name="tokenizer")
def _tokenizer(tmp_path):
  tokenizer = train_sentencepiece(["abc"], path=tmp_path / "t.model")
  tokenizer.chat_template = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
  )
  return tokenizer


def test_replies_go_to_their_prompts_whatever_the_batch(tokenizer):
  items = [("q", "a", answer) for answer in ("br", "bw", "b?", "a " * 3000 + "r", "cr")]
  sampler = Sampler(tokenizer)
  ask = ModelJudge(tokenizer, sampler, None, prompt_length=2500, seed=0)
  # the fourth does not fit, and is no verdict
  assert judge.grades(ask, items) == [1.0, 0.0, None, None, 1.0]
  assert list(map(len, sampler.asked)) == [2, 2]
  assert ask.counts == {"calls": 4, "failed": 1}


def test_draws_of_a_question_differ_and_do_not_depend_on_its_place(tokenizer):
  sampler = Sampler(tokenizer)
  ask = ModelJudge(tokenizer, sampler, None, prompt_length=2500, seed=0)
  judge.grades(ask, [("q", "a", "r"), ("q", "a", "r"), ("q", "a", "w")])
  judge.grades(ask, [("q", "a", "w"), ("q", "a", "r")])
  (first, second), (other,), again = sampler.asked
  assert first != second
  assert again == [other, first]


def section(**changes):
  sizes = {"prompts": 2, "prompt_length": 64, "max_tokens": 8}
  return {"path": "", "stage": "first", "temperature": 0.0, **sizes, **changes}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"path": "a.gguf"}, r"config\.judge\.model\.path='a\.gguf' and stage='first'"),
    ({"stage": ""}, r"path='' and stage='': give one of the two"),
    ({"path": "a", "stage": ""}, r"config\.judge\.model\.path: 'a' does not exist"),
    ({"prompts": 0}, r"config\.judge\.model\.prompts=0: must be 1 or more"),
    ({"max_tokens": 99_999}, r"prompt_length \+ max_tokens = 100063 are more than"),
  ],
)
def test_settings_that_do_not_fit_are_named(tokenizer, changes, message):
  own = {"tokenizer": tokenizer, "model": PRESETS["tiny"], "models": {}, "seed": 0}
  own |= {"partition": sharding.single_device(), "compute_dtype": np.float32}
  run = Run(**dict.fromkeys(Run.__dataclass_fields__) | own)
  with pytest.raises(InputError, match=message):
    of_section(run, section(**changes))
  assert callable(of_section(run, section()))
  tokenizer.chat_template = None
  with pytest.raises(InputError, match="has no chat template; name another one"):
    of_section(run, section())
