"""Stages that have a model of their own: a student beside its teacher."""

import pytest

from configs import common
from r1jax import export
from r1jax.errors import InputError
from tests import learners, small_run
from tests.stages import distill_test

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

STUDENT = {"depth": 2, "width": 8, "heads": 1, "kv_heads": 1, "head_dim": 8, "ffw": 8}


def config(stage="own", **model):
  """`distill_test`'s, whose student is smaller than its teacher."""
  c = distill_test.config(num_steps=3)
  c[stage].model = common.model()
  c[stage].model.shape.update(STUDENT)
  c[stage].model.update(model)
  return c


def test_a_smaller_student_learns_from_a_stage_and_keeps_its_shape(tmp_path):
  run = learners.with_base(tmp_path / "run")
  learners.finish(config(), run)
  lines = [line for line in small_run.numbers(run) if "loss/distill" in line]
  assert lines[-1]["loss/distill"] < lines[0]["loss/distill"]
  for stage, want in (("base", 16), ("own", 8)):
    source = export.of_checkpoint(str(run / "checkpoints" / stage), None)
    assert source.model.width == want
    assert source.load()["final_norm"].shape == (want,)


def tokenizer(c):
  c.own.tokenizer = {**c.tokenizer, "path": "", "vocab_size": None}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.own.update(init="base"), r"config\.own\.init='base' has another mod"),
    (lambda c: c.own.model.update(pth=""), r"config\.own\.model\.pth is not known"),
    (lambda c: c.own.model.update(preset="tny"), r"config\.own\.model\.preset='tny'"),
    (tokenizer, r"config\.own\.teacher\.stage='base' has another tokenizer than 'own'"),
  ],
)
def test_models_that_do_not_fit_are_named(tmp_path, change, message):
  c = config()
  change(c)
  with pytest.raises(InputError, match=message):
    learners.finish(c, tmp_path / "run")
