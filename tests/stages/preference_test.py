"""Preference learning end to end: what is learnt, kept and taken up again."""

import numpy as np
import pytest

from configs import common
from r1jax.errors import InputError
from tests import learners

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

PAIRS = [
  {"prompt": f"{a} a+{b}", "chosen": f"a={a + b}", "rejected": f"b={a}{b} b="}
  for a in range(4)
  for b in range(1, 4)
]


def config(folder, **loss):
  pref = common.preference()
  pref.num_steps = 4
  pref.data.path = learners.jsonl(folder / "pairs.jsonl", PAIRS)
  pref.loss.update(loss)
  pref.optim.learning_rate = 1e-2
  pref.training.update({"rows": 2, "microbatches": 2, "row_length": 40})
  return learners.config(pref=pref)


@pytest.fixture(scope="module", name="done")
def _done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("preference")
  lines = learners.finish(config(folder), folder / "run")
  return folder, lines


def test_the_chosen_answer_becomes_more_likely(done):
  """At first the policy is the reference: no margin, and a loss of log 2."""
  _, lines = done
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  np.testing.assert_allclose(lines[0]["loss/preference"], np.log(2), atol=1e-6)
  np.testing.assert_allclose(lines[0]["preference/margin"], 0, atol=1e-5)
  assert lines[-1]["loss/preference"] < lines[0]["loss/preference"] - 0.05
  assert lines[-1]["preference/accuracy"] > 0.8
  assert lines[-1]["preference/margin"] > 0.1
  for line in lines:
    assert line["optim/grad_norm"] > 0 and line["preference/pairs"] >= 4


def test_a_resumed_run_is_the_same(done, tmp_path):
  """The reference's log-probs are read, though the weights are no longer its own."""
  folder, _ = done
  copy = learners.stopped(folder / "run", tmp_path / "copy", "pref", 2)
  learners.finish(config(folder), copy)
  learners.assert_same(copy, folder / "run", "pref")
  assert np.abs(learners.arrays(copy, "pref")["ref"]).max() > 1


@pytest.mark.parametrize(
  ("loss", "message"),
  [
    ({"kind": "simpo"}, r"config\.pref\.loss\.gamma is missing, which .*'simpo' uses"),
    ({"gamma": 1.0}, r"config\.pref\.loss\.gamma=1\.0 is set, but .*'dpo' does not"),
    ({"kind": "dop"}, r"config\.pref\.loss\.kind='dop'.*did you mean 'dpo'"),
    ({"beta": 0.0}, r"config\.pref\.loss\.beta=0\.0: must be above 0"),
  ],
)
def test_settings_that_do_not_fit_are_named(done, tmp_path, loss, message):
  folder, _ = done
  with pytest.raises(InputError, match=message):
    learners.finish(config(folder, **loss), tmp_path)


def test_rows_too_short_for_a_pair(done, tmp_path):
  folder, _ = done
  c = config(folder)
  c.pref.training.row_length = 16
  with pytest.raises(
    InputError, match=r"12 of 12 pairs do not fit.*raise config\.pref"
  ):
    learners.finish(c, tmp_path)


def test_messages_need_a_chat_template(done, tmp_path):
  folder, _ = done
  c = config(folder)
  messages = [{"role": "user", "content": "1 a+1"}]
  records = [{"messages": messages, "chosen": "a=2", "rejected": "a=3"}]
  c.pref.data.path = learners.jsonl(tmp_path / "pairs.jsonl", records)
  with pytest.raises(InputError, match=r"has 'messages'.*set it to 'chat'"):
    learners.finish(c, tmp_path / "run")


@pytest.mark.slow
def test_an_adapter_learns_against_the_weights_that_it_lies_on(tmp_path):
  c = config(tmp_path, kind="rpo", nll_coef=1.0)
  c.pref.lora.rank = 2
  lines = learners.finish(c, tmp_path / "run")
  np.testing.assert_allclose(lines[0]["preference/margin"], 0, atol=1e-5)
  assert lines[0]["loss/preference"] > np.log(2) + 0.1
  assert lines[-1]["preference/margin"] > lines[1]["preference/margin"] > 0
