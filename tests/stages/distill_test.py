"""Distillation end to end: on examples, on own answers, on a mix of both."""

import numpy as np
import pytest

from configs import common
from r1jax.data.tokenizer import train_sentencepiece
from r1jax.errors import InputError
from r1jax.models.presets import PRESETS
from r1jax.weights import hf_config
from tests import learners, small_run

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

ROLLOUT = {"prompts": 2, "group_size": 2, "prompt_length": 24, "max_tokens": 12}


def config(**changes):
  """A teacher that knows the answers' form, and a student that knows nothing."""
  own = common.distill()
  own.num_steps = 6
  own.teacher.stage = "base"
  own.examples = learners.answers(size=32)
  own.optim.learning_rate = 2e-2
  own.rollout.update(ROLLOUT)
  own.training.update({"rows": 2, "microbatches": 2, "row_length": 40})
  own.update(changes)
  return learners.config(base=True, own=own)


MIXED = {"on_policy": 0.5, "loss": {"divergence": "generalised", "beta": 0.5}}


@pytest.fixture(scope="module", name="done")
def _done(tmp_path_factory):
  """A mix of examples and own answers."""
  run = learners.with_base(tmp_path_factory.mktemp("distill") / "run")
  learners.finish(config(**MIXED), run)
  return run


def steps_of(workdir):
  return [line for line in small_run.numbers(workdir) if "loss/distill" in line]


def test_the_divergence_falls_on_both_kinds_of_step(done):
  lines = steps_of(done)
  assert [line["step"] for line in lines] == [*range(1, 7)]
  kinds = [line["distill/on_policy"] for line in lines]
  assert {*kinds} == {0, 1}
  for kind in (0, 1):
    own = [line["loss/distill"] for line in lines if line["distill/on_policy"] == kind]
    assert own[-1] < own[0]
  for line in lines:
    assert line["optim/grad_norm"] > 0
    assert ("rollout/length_mean" in line) == line["distill/on_policy"]
  samples = (done / "samples" / "own").iterdir()
  assert len([*samples]) == sum(kinds)


@pytest.mark.slow
def test_a_resumed_run_is_the_same(done, tmp_path):
  copy = learners.stopped(done, tmp_path / "copy", "own", 3)
  learners.finish(config(**MIXED), copy)
  learners.assert_same(copy, done, "own")


@pytest.mark.slow
def test_policy_gradient_of_own_answers(tmp_path):
  """From the teacher's own weights there is nothing to learn."""
  changes = {"init": "base", "on_policy": 1.0, "num_steps": 1}
  c = config(**changes, loss={"divergence": "policy_gradient"})
  c.own.examples = {}
  c.own.data = small_run.chains("train", size=4)
  learners.finish(c, learners.with_base(tmp_path / "run"))
  (line,) = steps_of(tmp_path / "run")
  np.testing.assert_allclose(line["loss/distill"], 0, atol=1e-6)
  assert line["optim/grad_norm"] < 1e-5


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"teacher": {"stage": ""}}, r"config\.own\.teacher\.path='' and stage='': give"),
    ({"teacher": {"stage": "own"}}, r"teacher\.stage='own': must be '' or a stage"),
    ({"on_policy": 2.0}, r"config\.own\.on_policy=2\.0: must be 0 to 1"),
    ({"data": {"source": "jsonl"}}, r"config\.own\.data is set, but with"),
    ({"loss": {"divergence": "foward"}}, r"'foward'.*did you mean 'forward'"),
    ({"loss": {"beta": 0.5}}, r"config\.own\.loss\.beta=0\.5 with .*'forward'"),
    ({"loss": {"temperature": 0.0}}, r"loss\.temperature=0\.0: must be above 0"),
    (
      {"loss": {"divergence": "policy_gradient"}},
      r"'policy_gradient' is of tokens that the student drew.*on_policy to 1",
    ),
  ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    learners.finish(config(**changes), tmp_path)


def test_a_teacher_with_another_tokenizer(tmp_path):
  model = tmp_path / "model"
  train_sentencepiece(["ab"], path=model / "tokenizer.model")
  shape = hf_config.config_to_hf(PRESETS["tiny"])
  learners.jsonl(model / "config.json", [shape])
  c = config(teacher={"stage": "", "path": str(model)})
  with pytest.raises(InputError, match=r"has another tokenizer than the student \(\d+"):
    learners.finish(c, tmp_path / "run")
