"""What counts as drawn, where runs are compared, and which runs are."""

import dataclasses
import json

import pytest

from configs import comparison
from r1jax import metrics
from r1jax.compare import curves
from r1jax.compare.curves import Point
from r1jax.errors import InputError
from tests import compared_runs


@pytest.fixture(name="runs")
def _runs(tmp_path):
  """Seeds 0, 1 and 2, of which each has 2 points more than the one before."""
  return [
    compared_runs.make(tmp_path / f"seed{seed}", seed=seed, offset=0.02 * seed)
    for seed in range(3)
  ]


def settings(**changes):
  return {
    "kind": "grpo",
    "rollout": {"prompts": 4, "group_size": 8},
    "advantage": {"estimator": "grpo"},
    "training": {"minibatches": 2, "epochs": 3},
    **changes,
  }


@pytest.mark.parametrize(
  ("line", "changes", "want"),
  [
    ({}, {}, 32),
    # Three rounds, of whose groups some were dropped.
    ({"filter/asked": 12, "filter/dropped": 7}, {}, 96),
    ({}, {"advantage": {"estimator": "remax"}}, 36),
    ({"expert/answers": 50}, {"kind": "expert"}, 50),
    ({}, {"kind": "expert"}, 0),
  ],
)
def test_all_answers_that_were_drawn_count(line, changes, want):
  assert curves.drawn(line, settings(**changes)) == want


def test_curve_adds_up_steps_before_each_evaluation():
  lines = [
    {"eval/x/accuracy": 0.1, "time/eval_s": 9.0},
    {"time/step_s": 2.0, "rollout/length_mean": 10.0},
    {"time/step_s": 3.0, "rollout/length_mean": 20.0},
    {"eval/x/accuracy": 0.5, "eval/y/accuracy": 0.9, "time/eval_s": 9.0},
    {"time/step_s": 4.0, "rollout/length_mean": 30.0},
  ]
  assert curves.curve(lines, settings(), "x") == [
    Point(0, 0, 0, 0, 0.1),
    Point(64, 320 + 640, 12, 5.0, 0.5),
  ]


def test_a_step_that_evaluates_does_so_for_nothing():
  lines = [
    {"time/step_s": 2.0, "rollout/length_mean": 10.0, "expert/answers": 50},
    {"time/step_s": 7.0, "time/eval_s": 6.0, "eval/x/accuracy": 0.5},
  ]
  points = curves.curve(lines, settings(kind="expert"), "x")
  assert points == [Point(50, 500, 2, 3.0, 0.5)]


def test_straight_lines_between_evaluations():
  points = [
    Point(0, 0, 0, 0, 0.2),
    Point(40, 400, 4, 8, 0.6),
    Point(60, 500, 8, 9, 0.5),
  ]
  assert curves.at(points, 40) == points[1]
  half_way = dataclasses.astuple(curves.at(points, 10))
  assert half_way == pytest.approx((10, 100, 1, 2, 0.3))
  assert curves.at(points, 60) == points[2]


def test_stages_are_compared_at_equal_answers(runs):
  found = curves.read(runs)
  assert (found.eval_set, found.num_problems, found.temperatures) == (
    *("heldout", compared_runs.PROBLEMS),
    [1.0],
  )
  assert found.budget == comparison.ANSWERS
  assert found.seeds == [0, 1, 2]
  assert list(found.stages) == [*comparison.RECIPES, "expert_iteration"]
  for name, stage in found.stages.items():
    want = 0.5 if name == "ppo" else 0.75
    assert stage.by_seed == pytest.approx([want, want + 0.02, want + 0.04])
    last = stage.accuracy[-1]
    assert last.mean == pytest.approx(want + 0.02)
    # 0.02 is the deviation over three seeds.
    assert last.high - last.mean == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert stage.accuracy[0].mean == pytest.approx(0.27)
    middle = stage.accuracy[curves.NUM_PARTS // 2].mean
    assert middle == pytest.approx((0.27 + want + 0.02) / 2)
    assert stage.tokens == pytest.approx(10 * comparison.ANSWERS)


def test_what_a_stage_took_until_there(runs):
  stages = curves.read(runs).stages
  # 32 steps of two updates; DAPO has two thirds of them until then, and then goes on.
  assert (stages["grpo"].updates, stages["grpo"].seconds) == (64, 64)
  assert stages["dapo"].updates == pytest.approx(64 * 2 / 3, rel=0.02)
  assert stages["dapo"].drawn == 1.5 * comparison.ANSWERS
  assert stages["rloo"].updates == 64
  expert = stages["expert_iteration"]
  assert (expert.updates, expert.seconds) == (480, 2 * 480)


def test_differences_are_of_one_seed(runs):
  """The seeds are 2 points apart, their differences equal."""
  stages = curves.read(runs).stages
  assert stages["grpo"].gain is None
  gain = stages["ppo"].gain
  assert (gain.mean, gain.low, gain.high) == pytest.approx((-0.25,) * 3)


def test_intervals_of_shares_stay_shares(tmp_path):
  runs = [
    compared_runs.make(tmp_path / str(seed), seed=seed, offset=0.2 * seed)
    for seed in range(2)
  ]
  last = curves.read(runs).stages["grpo"].accuracy[-1]
  assert (last.low, last.high) == (0.0, 1.0)


def test_answers_may_be_named(runs):
  stages = curves.read(runs, budget=comparison.ANSWERS // 2).stages
  assert stages["grpo"].accuracy[-1].mean == pytest.approx(0.52)
  with pytest.raises(InputError, match=r"--answers=20000: .* at most 16384, .*seed"):
    curves.read(runs, budget=20_000)


def test_the_stage_that_drew_least_says_how_many(runs):
  lines = metrics.read(runs[1])
  early = [line for line in lines if line["stage"] != "gspo" or line["step"] <= 8]
  compared_runs.write(runs[1], early)
  assert curves.read(runs).budget == 8 * 512


def refused(runs, match, **options):
  with pytest.raises(InputError, match=match):
    curves.read(runs, **options)


def test_runs_that_cannot_be_compared(runs, tmp_path):
  refused(runs[:1], "1 folders of runs are given; .*two or more.*--config.seed")
  refused([runs[0], runs[0]], r"seeds \[0, 0\]")
  refused([runs[0], tmp_path], r"config.json cannot be read .*--workdir")
  refused(runs, "--set='held' .*did you mean 'heldout'", eval_set="held")
  other = comparison.get_config()
  other.grpo.optim.learning_rate = 1e-3
  changed = compared_runs.make(tmp_path / "other", seed=7, config=other)
  refused([*runs, changed], r"differ in config.grpo.optim.learning_rate")


def test_a_stage_that_has_not_been_run(runs):
  lines = [line for line in metrics.read(runs[2]) if line["stage"] != "rloo"]
  compared_runs.write(runs[2], lines)
  refused(runs, "seed2 has no answers of stage 'rloo'.*run it to its end")


def test_what_does_not_change_results_may_differ(tmp_path):
  runs = []
  for seed in range(2):
    config = comparison.get_config()
    config.log.sample_every = seed
    runs.append(compared_runs.make(tmp_path / str(seed), seed=seed, config=config))
  assert curves.read(runs).seeds == [0, 1]


def test_a_set_is_named_where_there_are_several(tmp_path):
  runs = []
  for seed in range(2):
    config = comparison.get_config()
    config.unlock()
    config.grpo.eval.sets.other = config.grpo.eval.sets.heldout
    runs.append(compared_runs.make(tmp_path / str(seed), seed=seed, config=config))
  refused(runs, "evaluated on heldout, other; name one with --set")
  assert len(curves.read(runs, eval_set="heldout").stages) == 9


def test_numbers_are_json(runs):
  found = curves.read(runs)
  assert json.loads(json.dumps(dataclasses.asdict(found)))["budget"] == found.budget
