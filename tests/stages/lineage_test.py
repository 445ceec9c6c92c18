"""What counts as another config."""

import types

import pytest

from r1jax.stages import lineage
from r1jax.stages.lineage import differences


def settings(num_steps=10, schedule="constant", **more):
  optim = {"schedule": schedule, "eps": 1e-8}
  return {"num_steps": num_steps, "optim": optim, "stop": [1], **more}


def test_settings_that_differ_are_named_by_their_path():
  before = settings(stop=[1, 2], old={"a": 1}) | {"optim": {"eps": 1e-8}}
  assert differences(before, settings(new=0)) == [
    "new was None and is now 0",
    "old.a was 1 and is now None",
    "optim.schedule was None and is now 'constant'",
    "stop was [1, 2] and is now [1]",
  ]
  assert differences(settings(), settings()) == []


@pytest.mark.parametrize(
  ("before", "now", "same"),
  [
    (settings(10), settings(11), True),
    (settings(11), settings(10), False),
    # A rate that falls towards the last step was another from the first one on.
    (settings(10, "cosine"), settings(11, "cosine"), False),
  ],
)
def test_a_run_may_go_on_for_longer(before, now, same):
  assert (differences(before, now) == []) == same


def test_a_stage_may_be_done_before_its_most_steps(tmp_path, monkeypatch):
  """Where its data decide how many there are."""
  checkpoint = {"step": None, "skip_damaged": False}
  run = types.SimpleNamespace(
    on_change="error",
    is_main=True,
    checkpoint=checkpoint,
    folder=lambda stage: tmp_path,
  )
  five = types.SimpleNamespace(steps=lambda: [5])
  monkeypatch.setattr(lineage, "Checkpoints", lambda folder: five)

  def is_done(num_steps):
    return lineage.is_done(run, "cold", {"kind": "sft", "num_steps": num_steps})

  assert (is_done(5), is_done(9)) == (True, False)
  lineage.note_end(run, "cold", 5)
  assert is_done(9)
  # More epochs than `num_steps` allows: with more steps it goes on.
  lineage.note_end(run, "cold", 7)
  assert (is_done(5), is_done(9)) == (True, False)
