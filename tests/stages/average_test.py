"""The mean of what several stages have made."""

import numpy as np
import pytest

from configs import common
from r1jax import trees
from r1jax.errors import InputError
from r1jax.stages import average, setup
from tests import learners, small_run
from tests.stages.reward_model_test import run_of


def test_the_stages_are_its_inputs_and_must_make_weights_of_its_model():
  c = small_run.get_config()
  c.mean = common.average("base", "zero")
  c.stages = ("base", "zero", "mean")
  stages = setup.stage_configs(c.to_dict())
  assert setup.inputs(stages["mean"]) == {"stages.0": "base", "stages.1": "zero"}
  c.mean.stages = ("base", "later")
  with pytest.raises(InputError, match=r"config\.mean\.stages\.1='later'.*before it"):
    setup.stage_configs(c.to_dict())
  c.mean.stages = ("base", "zero")
  c.zero.model = common.model(preset="tiny")
  c.zero.init = ""
  with pytest.raises(InputError, match=r"config\.mean\.stages\.1='zero' has another"):
    setup.stage_configs(c.to_dict())


@pytest.mark.parametrize(
  ("stages", "weights", "said"),
  [
    (("a",), (), r"config\.stages=\('a',\): name two"),
    (("a", "b"), (1.0,), r"config\.weights=\(1.0,\): give each of 2 stages"),
    (("a", "b"), (1.0, 0.0), "above 0"),
  ],
)
def test_what_cannot_be_averaged_is_refused(stages, weights, said):
  config = {"stages": stages, "weights": weights}
  with pytest.raises(InputError, match=said):
    average.prepare_average(None, "mean", config)


def test_the_mean_of_equals_is_them():
  """Three times the same would be off by rounding, were they added up first."""
  one = {"a": np.random.default_rng(0).normal(size=1000).astype(np.float32)}
  mean = one
  for share in (1 / 2, 1 / 3):
    mean = average.moved(mean, one, np.float32(share))
  np.testing.assert_array_equal(mean["a"], one["a"])


def test_weights_are_those_of_a_mean():
  """(3 * 2 + 1 * 6) / 4 and (... + 4 * 1) / 8."""
  mean = average.moved({"a": np.float32(2)}, {"a": np.float32(6)}, np.float32(1 / 4))
  assert mean["a"] == 3
  assert average.moved(mean, {"a": np.float32(1)}, np.float32(4 / 8))["a"] == 2


def training(init, **changes):
  s = common.sft()
  s.init = init
  s.num_steps = 2
  s.examples = learners.answers(size=64)
  s.optim.learning_rate = 1e-2
  s.training.update({"rows": 4, "row_length": 32})
  s.update_from_flattened_dict(changes)
  return s


@pytest.mark.slow
def test_a_stage_begins_with_the_mean_of_an_adapter_and_a_whole_model(tmp_path):
  c = learners.config(
    base=True,
    whole=training("base"),
    adapted=training("base", **{"lora.rank": 2}),
    mean=common.average("whole", "adapted"),
    after=training("mean", **{"optim.learning_rate": 0.0}),
  )
  c.mean.weights = (3.0, 1.0)
  workdir = learners.with_base(tmp_path / "run")
  lines = learners.finish(c, workdir)
  assert [x["average/stages"] for x in lines if x["stage"] == "mean"] == [2]
  found = {name: learners.arrays(workdir, name) for name in ("mean", "after")}
  run = run_of(c, workdir)
  whole, adapted = (run.params_of(name) for name in ("whole", "adapted"))
  flat = [
    {k: np.asarray(x) for k, x in trees.flatten(tree).items()}
    for tree in (whole, adapted)
  ]
  for path, own in flat[0].items():
    want = 0.75 * own.astype(np.float64) + 0.25 * flat[1][path]
    for state in found.values():
      np.testing.assert_allclose(state[f"train/params/{path}"], want, atol=1e-6)
  assert any(np.abs(own - flat[1][path]).max() > 1e-4 for path, own in flat[0].items())
  # Killed before it was saved, it comes out the same; done, it is kept.
  copy = learners.stopped(workdir, tmp_path / "copy", "mean", 0)
  learners.stopped(copy, tmp_path / "again", "after", 0)
  again = tmp_path / "again"
  learners.finish(c, again)
  learners.assert_same(again, workdir, "mean")
  learners.assert_same(again, workdir, "after")
  before = (again / "checkpoints" / "mean" / "1").stat().st_mtime_ns
  learners.finish(c, again)
  assert (again / "checkpoints" / "mean" / "1").stat().st_mtime_ns == before
