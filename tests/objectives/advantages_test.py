"""Estimators against worked numbers and against what they must not depend on."""

import numpy as np
import pytest
from absl.testing import parameterized

from r1jax.errors import InputError
from r1jax.objectives import advantages
from r1jax.objectives.advantages import grpo


class WorkedNumbersTest(parameterized.TestCase):
  @parameterized.parameters(
    ([1, 0, 0, 0], "population", [1.732051, -0.577350, -0.577350, -0.577350]),
    ([1, 0, 0, 0], "sample", [1.5, -0.5, -0.5, -0.5]),
    ([1, 1, 0, 0], "population", [1, 1, -1, -1]),
    ([1, 1, 0, 0], "sample", [0.866025, 0.866025, -0.866025, -0.866025]),
    ([2, 1, 1, 0], "population", [1.414214, 0, 0, -1.414214]),
    ([2, 1, 1, 0], "sample", [1.224745, 0, 0, -1.224745]),
    ([1, 0, 0, 0], "none", [0.75, -0.25, -0.25, -0.25]),
  )
  def test_small_groups(self, rewards, std, want):
    for dtype in (np.float64, np.float32):
      got = grpo(np.asarray([rewards], dtype), std=std)
      np.testing.assert_allclose(got[0], want, atol=1e-6)

  @parameterized.parameters(
    (1, 3.872983, -0.258199), (4, 1.732051, -0.577350), (8, 1, -1)
  )
  def test_binary_rewards_of_sixteen(self, num_right, positive, negative):
    reward = np.repeat([1.0, 0.0], [num_right, 16 - num_right])
    got = grpo(reward[None])[0]
    np.testing.assert_allclose(got[:num_right], positive, atol=1e-6)
    np.testing.assert_allclose(got[num_right:], negative, atol=1e-6)
    rate = num_right / 16
    np.testing.assert_allclose(positive, np.sqrt((1 - rate) / rate), atol=1e-6)


@pytest.mark.parametrize("std", ["population", "sample", "none"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 1e-8, -2.7, 1e6])
@pytest.mark.parametrize("group_size", [1, 3, 7, 16])
def test_equal_rewards_give_exactly_zero(std, reward, group_size):
  """R14: a group without variance; the float32 mean of 0.1 x 7 is not 0.1."""
  reward_QG = np.full((2, group_size), reward, np.float32)
  nothing = np.zeros((2, group_size))
  np.testing.assert_array_equal(grpo(reward_QG, std=std), nothing)
  for name in ("rloo", "batch_std", "reinforce_pp_baseline"):
    np.testing.assert_array_equal(advantages.GROUP[name](reward_QG), nothing)


def test_a_group_alone_decides_its_advantages():
  reward_QG = np.random.default_rng(0).normal(size=(5, 8))
  reward_QG[2] = 1.0
  together = grpo(reward_QG)
  for q in range(5):
    np.testing.assert_array_equal(together[q], grpo(reward_QG[q : q + 1])[0])


@pytest.mark.parametrize("std", ["population", "sample"])
def test_scale_and_shift_change_nothing(std):
  reward_QG = np.random.default_rng(1).integers(0, 2, (40, 8)).astype(np.float64)
  want = grpo(reward_QG, std=std)
  for scale, shift in ((2.0, -1.0), (0.01, 5.0), (100.0, 0.0)):
    got = grpo(scale * reward_QG + shift, std=std)
    np.testing.assert_allclose(got, want, atol=1e-9)
  np.testing.assert_allclose(want.sum(1), 0.0, atol=1e-9)


def test_order_of_answers_is_carried_along():
  reward_QG = np.random.default_rng(2).normal(size=(1, 6))
  order = np.array([3, 1, 5, 0, 4, 2])
  np.testing.assert_allclose(grpo(reward_QG[:, order]), grpo(reward_QG)[:, order])


def test_eps_shrinks():
  reward_QG = np.array([[1.0, 0.0, 0.0, 0.0]])
  got = grpo(reward_QG, eps=0.5)[0, 0]
  np.testing.assert_allclose(got, 0.75 / (np.sqrt(3) / 4 + 0.5))


def test_unknown_std_names_the_key():
  with pytest.raises(InputError, match=r"advantage\.std='sampel'.*'sample'"):
    grpo(np.zeros((1, 2)), std="sampel")


def test_batch_algebra_of_the_report():
  """DeepSeek-R1 supplement: the published counts agree with one another."""
  questions, group_size, rollout, refresh, steps = 32, 16, 8192, 400, 10_400
  per_step = grpo(np.zeros((questions, group_size))).size
  assert per_step == 512
  assert rollout // per_step == 16
  assert rollout // group_size == 512
  assert refresh * per_step // rollout == 25
  assert steps * per_step // rollout == 650
  assert steps * per_step == 5_324_800


class TestGroupEstimators:
  def test_leave_one_out(self):
    """G / (G - 1) of the centred rewards; a lone answer has no other."""
    third = -1 / 3
    got = advantages.rloo(np.asarray([[1.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(got, [[1, third, third, third]], atol=1e-12)
    reward_QG = np.random.default_rng(0).normal(size=(3, 5))
    others = (reward_QG.sum(1, keepdims=True) - reward_QG) / 4
    np.testing.assert_allclose(advantages.rloo(reward_QG), reward_QG - others)
    np.testing.assert_allclose(
      grpo(reward_QG, std="none"), advantages.rloo(reward_QG) * 4 / 5
    )
    assert advantages.rloo(np.asarray([[3.0]])) == 0

  def test_over_the_greedy_answer(self):
    got = advantages.remax(np.asarray([[1.0, 0.0], [0.5, 2.0]]), np.asarray([1.0, 0.5]))
    np.testing.assert_array_equal(got, [[0, -1], [0, 1.5]])

  def test_over_the_deviation_of_the_batch(self):
    """One of R = [1, 0, 1, 1, 1, 0, 0, 0] has deviation 1/2 over all of them."""
    reward_QG = np.asarray([[1.0, 0, 1, 1], [1, 0, 0, 0]])
    got = advantages.batch_std(reward_QG)
    want = [[0.5, -1.5, 0.5, 0.5], [1.5, -0.5, -0.5, -0.5]]
    np.testing.assert_allclose(got, want)
    eps = advantages.batch_std(reward_QG, eps=0.5)
    np.testing.assert_allclose(eps, np.asarray(want) / 2)

  def test_centred_then_whitened(self):
    reward_QG = np.asarray([[1.0, 0, 1, 1], [5, 5, 5, 5]])
    got = advantages.reinforce_pp_baseline(reward_QG)
    np.testing.assert_allclose(got.mean(), 0, atol=1e-12)
    np.testing.assert_allclose(got.std(), 1)
    np.testing.assert_array_equal(got[1], 0)
    one = advantages.reinforce_pp_baseline(reward_QG[:1])
    want = [[0.577350, -1.732051, 0.577350, 0.577350]]
    np.testing.assert_allclose(one, want, atol=1e-6)

  @pytest.mark.parametrize("name", sorted(advantages.GROUP))
  def test_order_and_shift(self, name):
    """Permuted with the answers; shifted rewards say the same. ReMax's baseline too."""
    rng = np.random.default_rng(1)
    reward_QG, greedy_Q = rng.normal(size=(3, 5)), rng.normal(size=3)
    order = rng.permutation(5)

    def run(reward_QG, greedy_Q):
      more = (greedy_Q,) if name == "remax" else ()
      return advantages.GROUP[name](reward_QG, *more)

    want = run(reward_QG, greedy_Q)
    np.testing.assert_allclose(run(reward_QG[:, order], greedy_Q), want[:, order])
    np.testing.assert_allclose(run(reward_QG[::-1], greedy_Q[::-1]), want[::-1])
    np.testing.assert_allclose(run(reward_QG + 7, greedy_Q + 7), want, atol=1e-12)
    if name not in ("rloo", "remax"):
      scaled = run(3 * reward_QG, greedy_Q) if name != "grpo" else grpo(3 * reward_QG)
      np.testing.assert_allclose(scaled, want)


class TestTokenEstimators:
  rewards = (np.asarray([0.0, 0.0, 1.0]),)
  values = (np.asarray([0.5, 0.6, 0.7]),)

  @pytest.mark.parametrize(
    ("gae_lambda", "want"), [(1.0, [0.5, 0.4, 0.3]), (0.95, [0.46575, 0.385, 0.3])]
  )
  def test_gae_worked_numbers(self, gae_lambda, want):
    (got,), (target,) = advantages.gae(
      self.rewards, self.values, gamma=1.0, gae_lambda=gae_lambda
    )
    np.testing.assert_allclose(got, want, atol=1e-12)
    np.testing.assert_allclose(target, np.asarray(want) + self.values[0])

  def test_gae_is_the_sum_of_discounted_errors(self):
    rng = np.random.default_rng(2)
    reward_T, value_T = rng.normal(size=(2, 6))
    gamma, lam = 0.9, 0.8
    (got,), _ = advantages.gae([reward_T], [value_T], gamma=gamma, gae_lambda=lam)
    delta_T = reward_T + gamma * np.append(value_T[1:], 0) - value_T
    want = [
      sum((gamma * lam) ** k * d for k, d in enumerate(delta_T[t:])) for t in range(6)
    ]
    np.testing.assert_allclose(got, want)

  def test_rewards_of_tokens(self):
    """-kl_coef * k1 on each; the answer's reward on the last."""
    got = advantages.token_rewards(
      np.asarray([1.0, 2.0]),
      [np.asarray([-1.0, -2.0]), np.asarray([-3.0])],
      [np.asarray([-1.5, -1.0]), np.asarray([-3.0])],
      kl_coef=0.1,
    )
    np.testing.assert_allclose(got[0], [-0.05, 1.1])
    np.testing.assert_allclose(got[1], [2.0])
    (sums,) = advantages.returns(got[:1], gamma=1.0)
    np.testing.assert_allclose(sums, [1.05, 1.1])
    (sums,) = advantages.returns(got[:1], gamma=0.5)
    np.testing.assert_allclose(sums, [0.5, 1.1])

  def test_reinforce_pp_whitens_over_all_tokens(self):
    """Answers of one token each, rewards [1, 0, 1, 1], no KL: the worked numbers."""
    rewards = [np.asarray([x]) for x in (1.0, 0.0, 1.0, 1.0)]
    got = np.concatenate(advantages.reinforce_pp(rewards, gamma=1.0))
    np.testing.assert_allclose(
      got, [0.577350, -1.732051, 0.577350, 0.577350], atol=1e-6
    )
    rng = np.random.default_rng(3)
    rewards = [rng.normal(size=n) for n in (4, 1, 3)]
    got = advantages.reinforce_pp(rewards, gamma=1.0)
    assert [len(own) for own in got] == [4, 1, 3]
    together = np.concatenate(got)
    np.testing.assert_allclose([together.mean(), together.std()], [0, 1], atol=1e-12)
    returns = np.concatenate(advantages.returns(rewards, gamma=1.0))
    np.testing.assert_allclose(np.corrcoef(together, returns)[0, 1], 1)
    shuffled = advantages.reinforce_pp(rewards[::-1], gamma=1.0)[::-1]
    for a, b in zip(shuffled, got, strict=True):
      np.testing.assert_allclose(a, b)

  def test_whitening_equal_numbers_gives_zero(self):
    got = advantages.whitened(
      [np.full(3, 0.1, np.float32), np.full(4, 0.1, np.float32)]
    )
    np.testing.assert_array_equal(np.concatenate(got), 0)

  def test_process_worked_numbers(self):
    """Steps pooled over the group; a token has those that end at it or later."""
    got = advantages.process(
      [np.asarray([0.9, 0.8, 0.1]), np.asarray([0.6, 0.7])],
      [np.asarray([1, 2, 4]), np.asarray([0, 3])],
      [6, 4],
    )
    first, second = [-0.215387, -1.220529, -1.866691], [0.215387, 0.287183]
    want = [first[0], first[0], first[1], first[2], first[2], 0]
    np.testing.assert_allclose(got[0], want, atol=1e-6)
    np.testing.assert_allclose(got[1], [second[0], *[second[1]] * 3], atol=1e-6)

  def test_process_with_one_step_each_is_the_outcome_form(self):
    reward = np.asarray([1.0, 0.0, 0.0, 0.0])
    for std in advantages.STD_KINDS:
      got = advantages.process(
        [np.asarray([x]) for x in reward], [np.asarray([2])] * 4, [3] * 4, std=std
      )
      want = grpo(reward[None], std=std)[0]
      np.testing.assert_allclose(got, np.broadcast_to(want[:, None], (4, 3)))


def test_the_table_holds_every_estimator():
  assert advantages.ESTIMATORS.keys() == {
    *("grpo", "rloo", "remax", "batch_std", "reinforce_pp_baseline"),
    *("reinforce_pp", "gae", "process"),
  }
