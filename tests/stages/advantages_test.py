"""From judged answers to advantages: what settings ask for, by hand."""

import numpy as np
import pytest

from configs import common
from r1jax.errors import InputError
from r1jax.objectives import recipes
from r1jax.stages import advantages
from r1jax.stages.model_part import Steps
from r1jax.types import Problem

PARTS = {
  "accuracy": np.asarray([[1, 0, 0, 0], [1, 1, 1, 0]], np.float32),
  "format": np.asarray([[1, 1, 0, 0], [1, 1, 1, 1]], np.float32),
}
LENGTH = np.asarray([[4, 8, 9, 10], [3, 6, 3, 10]])
STOPPED = LENGTH < 10


def settings(recipe=None, **changes):
  c = common.grpo()
  if recipe:
    c.update(common.recipe(recipe))
  c.rollout.max_tokens = 10
  c.update_from_flattened_dict(changes)
  return c.to_dict()


def rewards(**changes):
  problems = [Problem(f"{q}", "", "", "") for q in range(2)]
  return advantages.rewards(settings(**changes), PARTS, problems, LENGTH, STOPPED)


def estimated(config, reward_QG, trained_QG=None, **given):
  if trained_QG is None:
    trained_QG = np.ones_like(reward_QG)
  lengths = given.pop("lengths", [1] * reward_QG.size)
  return advantages.advantages(config, reward_QG, trained_QG, lengths, **given)


def test_without_shaping_the_reward_is_that_of_its_parts():
  made = rewards()
  np.testing.assert_array_equal(made.total_QG, PARTS["accuracy"] + PARTS["format"])
  assert made.taken_QG is made.total_QG and made.parts_QG.keys() == PARTS.keys()
  assert made.trained_QG.all() and made.cut_QG.sum() == 2


@pytest.mark.parametrize(
  ("changes", "want"),
  [
    # 4 tokens before 10: 8 is 2 into them.
    ({"overlong_buffer": 4}, [[0, -0.5, -0.75, -1], [0, 0, 0, -1]]),
    ({"overlong_buffer": 4, "outcome_gate": True}, np.zeros((2, 4))),
    ({"shortest_bonus": 0.5}, [[0.5, 0, 0, 0], [0.5, 0, 0.5, 0]]),
    (
      {"shortest_bonus": 0.5, "overlong_buffer": 4},
      [[0.5, -0.5, -0.75, -1], [0.5, 0, 0.5, -1]],
    ),
  ],
)
def test_points_for_lengths_are_a_part_of_their_own(changes, want):
  """R14: with the outcome gate none for a wrong answer."""
  made = rewards(**{f"shaping.{key}": value for key, value in changes.items()})
  np.testing.assert_allclose(made.parts_QG["shaping"], want, atol=1e-7)
  plain = PARTS["accuracy"] + PARTS["format"]
  np.testing.assert_allclose(made.total_QG, plain + want, atol=1e-7)


def test_weights_and_points_go_by_category():
  """A general group has no accuracy, and no points for being right or wrong."""
  nan_G = np.full(4, np.nan, np.float32)
  parts = {
    "accuracy": np.stack([PARTS["accuracy"][0], nan_G]),
    "format": PARTS["format"],
    "helpfulness": np.stack([nan_G, np.asarray([2, 1, 0, -1], np.float32)]),
  }
  problems = [
    Problem(name, "", "", "", meta={"category": name}) for name in ("maths", "talk")
  ]
  changes = {
    "shaping.cosine_correct": (2.0, 1.0),
    "shaping.cosine_wrong": (-10.0, -1.0),
    "shaping.overlong_buffer": 4,
  }
  config = settings(**changes)
  config["reward"]["categories"] = {
    "talk": {"weights": {"helpfulness": 1.0, "format": 1.0}}
  }
  made = advantages.rewards(config, parts, problems, LENGTH, STOPPED)
  points = made.parts_QG["shaping"]
  np.testing.assert_allclose(points[1], [0, 0, 0, -1])
  np.testing.assert_allclose(made.total_QG[1], [3, 2, 1, -1], rtol=1e-6)
  plain = PARTS["accuracy"][0] + PARTS["format"][0]
  np.testing.assert_allclose(made.total_QG[0] - points[0], plain, rtol=1e-6)
  config["shaping"]["outcome_gate"] = True
  gated = advantages.rewards(config, parts, problems, LENGTH, STOPPED)
  assert not gated.parts_QG["shaping"][1].any()


def test_nothing_can_agree_with_one_greedy_answer():
  config = settings("remax")
  config["reward"]["weights"] = {"majority": 1.0}
  with pytest.raises(InputError, match=r"'remax' with a weight for 'majority'"):
    advantages.check(config)


def test_points_along_a_cosine():
  changes = {"cosine_correct": (2.0, 1.0), "cosine_wrong": (-10.0, 0.0)}
  changes["cosine_exceeded"] = -10.0
  made = rewards(**{f"shaping.{key}": value for key, value in changes.items()})
  points = made.parts_QG["shaping"]
  assert points[1, 0] == points[1, 2] > points[1, 1] > 1  # right: the short are better
  assert points[0, 1] < points[0, 2] < 0  # wrong: the long are
  assert points[0, 3] == points[1, 3] == -10


def test_truncation_lowers_what_is_taken_and_not_what_is_logged():
  made = rewards(**{"truncated.kind": "penalise", "truncated.penalty": 0.25})
  np.testing.assert_array_equal(made.total_QG - made.taken_QG, 0.25 * ~STOPPED)
  made = rewards(**{"truncated.kind": "mask"})
  np.testing.assert_array_equal(made.trained_QG, STOPPED)


REWARD = np.asarray([[1, 0, 0, 0]], np.float32)


@pytest.mark.parametrize(
  ("recipe", "want"),
  [
    ("grpo", [1.732051, -0.577350, -0.577350, -0.577350]),
    ("dr_grpo", [0.75, -0.25, -0.25, -0.25]),
    ("rloo", [1, -1 / 3, -1 / 3, -1 / 3]),
  ],
)
def test_an_answer_has_one_advantage_on_all_its_tokens(recipe, want):
  config = settings(recipe, **{"advantage.kl_coef": 0.0})
  made = estimated(config, REWARD, lengths=[1, 3, 2, 5])
  assert [len(own_T) for own_T in made.tokens] == [1, 3, 2, 5]
  for own_T, one in zip(made.tokens, want, strict=True):
    np.testing.assert_allclose(own_T, one, rtol=1e-6)
  np.testing.assert_allclose(made.mean_B, want, rtol=1e-6)
  assert made.returns is None and made.kl is None


def test_the_greedy_answer_is_the_baseline():
  made = estimated(settings("remax"), REWARD, greedy_Q=np.asarray([0.5]))
  np.testing.assert_allclose(made.mean_B, [0.5, -0.5, -0.5, -0.5])


LOGP = [np.asarray([-1.0, -2.0]), np.asarray([-0.5])]
REF = [np.asarray([-1.5, -1.0]), np.asarray([-1.0])]


def test_the_kl_in_the_reward_of_an_answer_is_its_sum():
  """0.1 times 0.5 - 1 and 0.5 nats off 1 and 0 points; RLOO of two is what is apart."""
  config = settings("rloo")
  given = {"logp": LOGP, "logp_ref": REF, "kl_coef": 0.1, "lengths": [2, 1]}
  reward = np.asarray([[1.0, 0.0]], np.float32)
  made = estimated(config, reward, np.ones((1, 2)), **given)
  np.testing.assert_allclose(made.mean_B, [1.1, -1.1], rtol=1e-6)
  assert made.kl == pytest.approx((0.5 - 1 + 0.5) / 3)


def test_reinforce_pp_carries_token_rewards_back_and_whitens():
  """Returns 1 - 0.1 (-0.5), 1 - 0.1 (-1) and 0 - 0.1 (0.5): 1.05, 1.1 and -0.05."""
  given = {"logp": LOGP, "logp_ref": REF, "kl_coef": 0.1, "lengths": [2, 1]}
  reward = np.asarray([[1.0, 0.0]], np.float32)
  made = estimated(settings("reinforce_pp"), reward, np.ones((1, 2)), **given)
  returns = np.asarray([1.05, 1.1, -0.05])
  want = (returns - returns.mean()) / returns.std()
  np.testing.assert_allclose(np.concatenate(made.tokens), want, rtol=1e-6)


def test_answers_that_are_not_trained_on_are_in_no_mean():
  config = settings("reinforce_pp")
  reward, lengths = np.asarray([[1.0, 0.0, 50.0]]), [1, 1, 2]
  with_it = estimated(config, reward, np.asarray([[1, 1, 0]]), lengths=lengths)
  without = estimated(config, reward[:, :2], np.ones((1, 2)), lengths=lengths[:2])
  np.testing.assert_array_equal(with_it.mean_B, [*without.mean_B, 0])
  nothing = estimated(config, reward, np.zeros((1, 3)), lengths=lengths)
  assert not nothing.mean_B.any()
  # Nor are groups that only fill the batch.
  config, filled = settings("lite_ppo"), np.repeat([[1.0], [0.0]], 4, axis=1)
  both = estimated(config, np.vstack([REWARD, REWARD]), np.repeat([[1], [0]], 4, 1))
  alone = estimated(config, REWARD, np.ones((1, 4)))
  np.testing.assert_array_equal(both.mean_B, [*alone.mean_B, 0, 0, 0, 0])
  more = estimated(
    config, np.vstack([REWARD, filled]), np.repeat([[1], [0], [0]], 4, 1)
  )
  np.testing.assert_allclose(more.mean_B[:4], alone.mean_B, rtol=1e-6)


def test_gae_and_the_returns_for_the_critic():
  """Of one answer to the point at its end; then at mean 0 and deviation 1."""
  values = [np.asarray([0.5, 0.6, 0.7])]
  given = {"lengths": [3], "values": values}
  one = np.ones((1, 1))
  plain = settings("ppo", **{"advantage.std": "none"})
  made = estimated(plain, one, one, **given)
  np.testing.assert_allclose(made.tokens[0], [0.5, 0.4, 0.3])
  np.testing.assert_allclose(made.returns[0], [1, 1, 1])
  short = settings("ppo", **{"advantage.std": "none", "advantage.gae_lambda": 0.95})
  np.testing.assert_allclose(
    estimated(short, one, one, **given).tokens[0], [0.46575, 0.385, 0.3]
  )
  white = estimated(settings("ppo"), one, one, **given)
  assert white.mean_B[0] == pytest.approx(0) and white.tokens[0].std() == pytest.approx(
    1
  )
  np.testing.assert_array_equal(white.returns[0], made.returns[0])


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_every_recipe_can_be_run(recipe):
  config = settings(recipe)
  if config["shaping"]["overlong_buffer"]:
    with pytest.raises(InputError, match=r"overlong_buffer=4096.*max_tokens=10"):
      advantages.check(config)
    config["shaping"]["overlong_buffer"] = 4
  advantages.check(config)


@pytest.mark.parametrize(
  ("recipe", "changes", "said"),
  [
    ("grpo", {"estimator": "gro"}, r"config\.advantage\.estimator='gro'.*'grpo'"),
    ("grpo", {"estimator": "proces"}, r"estimator='proces' is not known"),
    ("rloo", {"std": "sample"}, r"config\.advantage\.std='sample' does nothing with"),
    ("grpo", {"gamma": 0.5}, r"config\.advantage\.gamma=0.5 does nothing with"),
    ("grpo", {"std": "sampel"}, r"config\.advantage\.std='sampel'"),
    ("ppo", {"std": "sample"}, r"config\.advantage\.std='sample' is not known"),
    ("ppo", {"gae_lambda": 1.5}, r"config\.advantage\.gae_lambda=1.5: must be in"),
    ("grpo", {"kl_coef": -1.0}, r"config\.advantage\.kl_coef=-1.0: must be 0 or more"),
  ],
)
def test_settings_that_cannot_be_are_refused(recipe, changes, said):
  changes = {f"advantage.{key}": value for key, value in changes.items()}
  with pytest.raises(InputError, match=said):
    advantages.check(settings(recipe, **changes))


def test_half_a_cosine_is_refused():
  with pytest.raises(InputError, match=r"config\.shaping\.cosine_correct=\(1.0, 2.0\)"):
    advantages.check(settings(**{"shaping.cosine_correct": (1.0, 2.0)}))


PROCESS = {"advantage.estimator": "process", "advantage.steps": "steps"}


def test_steps_of_a_model_become_advantages():
  """DeepSeekMath's process supervision, by the method's worked numbers; the part of an
  answer is the least of its steps, and what else it has counts at its last step."""
  config = settings(**PROCESS)
  config["reward"]["weights"] = {"steps": 1.0}
  steps = Steps(
    [np.asarray([0.9, 0.8, 0.1]), np.asarray([0.6, 0.7])], [[1, 3, 5], [0, 3]]
  )
  parts = {name: np.zeros((1, 2), np.float32) for name in ("accuracy", "steps")}
  parts["steps"][0] = [0.1, 0.6]
  problems, length_QG = [Problem("p", "", "", "")], np.asarray([[7, 4]])

  def made(config):
    judged = advantages.rewards(config, parts, problems, length_QG, length_QG > 0)
    own = advantages.step_rewards(config, judged, problems, steps)
    return own, advantages.advantages(
      config, judged.taken_QG, np.ones((1, 2)), [7, 4], steps=own
    )

  own, found = made(config)
  np.testing.assert_allclose(own.rewards[0], [0.9, 0.8, 0.1], atol=1e-7)
  first, second = found.tokens
  want = np.repeat([-0.215387, -1.220529, -1.866691, 0.0], [2, 2, 2, 1])
  np.testing.assert_allclose(first, want, atol=2e-6)
  np.testing.assert_allclose(second, [0.215387, *[0.287183] * 3], atol=2e-6)
  config["reward"]["weights"] = {"steps": 2.0, "accuracy": 1.0}
  parts["accuracy"][0] = [0, 1]
  own, _ = made(config)
  np.testing.assert_allclose(own.rewards[0], [1.8, 1.6, 0.2], atol=1e-6)
  np.testing.assert_allclose(own.rewards[1], [1.2, 2.4], atol=1e-6)
  assert advantages.step_rewards(config, None, problems, None) is None


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"advantage.steps": ""}, r"config\.advantage\.steps='' with .*'process'"),
    ({"advantage.estimator": "grpo"}, r"steps='steps' with .*'grpo'"),
    ({"advantage.steps": "stps"}, r"config\.reward\.weights has no 'stps'"),
    ({"advantage.kl_coef": 0.1}, r"config\.advantage\.kl_coef=0\.1 and .*'process'"),
  ],
)
def test_steps_and_estimator_go_together(changes, said):
  config = settings(**PROCESS | changes)
  config["reward"]["weights"] = {"steps": 1.0}
  with pytest.raises(InputError, match=said):
    advantages.check(config)
