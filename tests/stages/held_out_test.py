"""The stage that evaluates another: its line, its lineage, what is refused."""

import pytest

from configs import common
from r1jax.errors import InputError
from r1jax.stages import setup
from r1jax.stages.run import SETTINGS
from tests import learners, small_run

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def config(**changes):
  own = common.evaluation()
  own.init = "base"
  own.rollout.prompt_length = 20
  own.reward.num_workers = 1
  own.eval.update({"max_tokens": 12, "batch": 4})
  own.eval.sets.heldout = small_run.chains("heldout", size=6)
  c = learners.config(base=True, own=own)
  c.update_from_flattened_dict(changes)
  return c


def test_it_leaves_a_line_and_is_done_once(tmp_path):
  run = learners.with_base(tmp_path / "run")
  lines = learners.finish(config(), run)
  (own,) = [line for line in lines if line["stage"] == "own"]
  assert own["step"] == 1 and own["eval/heldout/n"] == 6
  assert own["eval/heldout/accuracy_low"] <= own["eval/heldout/accuracy"]
  made = run / "data" / "own"
  assert {path.name for path in made.iterdir()} >= {"made.jsonl", SETTINGS}
  written = (made / "made.jsonl").stat().st_mtime_ns
  assert learners.finish(config(), run) == lines
  assert (made / "made.jsonl").stat().st_mtime_ns == written
  with pytest.raises(InputError, match=r"eval\.temperature was 0\.0 and is now 1\.0"):
    learners.finish(config(**{"own.eval.temperature": 1.0}), run)


def test_it_makes_no_weights_to_begin_with():
  c = config()
  c.after = common.sft()
  c.after.init = "own"
  c.stages = ("base", "own", "after")
  with pytest.raises(InputError, match=r"config\.after\.init='own' is of the kind"):
    setup.stage_configs(c.to_dict())


def test_sets_are_needed(tmp_path):
  c = config()
  del c.own.eval.sets["heldout"]
  with pytest.raises(InputError, match=r"config\.own\.eval\.sets is empty"):
    learners.finish(c, tmp_path / "run")
