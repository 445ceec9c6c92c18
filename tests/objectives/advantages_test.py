"""Group advantages against worked numbers and against what they must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from r1jax.errors import InputError
from r1jax.objectives.advantages import group_advantages


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
    for dtype, xp in ((np.float64, np), (np.float32, np), (np.float32, jnp)):
      got = group_advantages(xp.asarray([rewards], dtype), std=std)
      self.assertIsInstance(got, np.ndarray if xp is np else jax.Array)
      np.testing.assert_allclose(got[0], want, atol=1e-6)

  @parameterized.parameters(
    (1, 3.872983, -0.258199), (4, 1.732051, -0.577350), (8, 1, -1)
  )
  def test_binary_rewards_of_sixteen(self, num_right, positive, negative):
    reward = np.repeat([1.0, 0.0], [num_right, 16 - num_right])
    got = group_advantages(reward[None])[0]
    np.testing.assert_allclose(got[:num_right], positive, atol=1e-6)
    np.testing.assert_allclose(got[num_right:], negative, atol=1e-6)
    rate = num_right / 16
    np.testing.assert_allclose(positive, np.sqrt((1 - rate) / rate), atol=1e-6)


@pytest.mark.parametrize("std", ["population", "sample", "none"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 1e-8, -2.7, 1e6])
@pytest.mark.parametrize("group_size", [1, 3, 7, 16])
def test_equal_rewards_give_exactly_zero(std, reward, group_size):
  """R14: a group without variance; the float32 mean of 0.1 x 7 is not 0.1."""
  for xp in (np, jnp):
    got = group_advantages(xp.full((2, group_size), reward, xp.float32), std=std)
    assert np.array_equal(got, np.zeros((2, group_size)))


def test_a_group_alone_decides_its_advantages():
  reward_QG = np.random.default_rng(0).normal(size=(5, 8))
  reward_QG[2] = 1.0
  together = group_advantages(reward_QG)
  for q in range(5):
    np.testing.assert_array_equal(
      together[q], group_advantages(reward_QG[q : q + 1])[0]
    )


@pytest.mark.parametrize("std", ["population", "sample"])
def test_scale_and_shift_change_nothing(std):
  reward_QG = np.random.default_rng(1).integers(0, 2, (40, 8)).astype(np.float64)
  want = group_advantages(reward_QG, std=std)
  for scale, shift in ((2.0, -1.0), (0.01, 5.0), (100.0, 0.0)):
    got = group_advantages(scale * reward_QG + shift, std=std)
    np.testing.assert_allclose(got, want, atol=1e-9)
  np.testing.assert_allclose(want.sum(1), 0.0, atol=1e-9)


def test_order_of_answers_is_carried_along():
  reward_QG = np.random.default_rng(2).normal(size=(1, 6))
  order = np.array([3, 1, 5, 0, 4, 2])
  np.testing.assert_allclose(
    group_advantages(reward_QG[:, order]), group_advantages(reward_QG)[:, order]
  )


def test_eps_shrinks():
  reward_QG = np.array([[1.0, 0.0, 0.0, 0.0]])
  got = group_advantages(reward_QG, eps=0.5)[0, 0]
  np.testing.assert_allclose(got, 0.75 / (np.sqrt(3) / 4 + 0.5))


def test_under_jit():
  got = jax.jit(group_advantages)(jnp.array([[1.0, 0.0], [1.0, 1.0]]))
  np.testing.assert_allclose(got, [[1, -1], [0, 0]], atol=1e-6)


def test_unknown_std_names_the_key():
  with pytest.raises(InputError, match=r"advantage\.std='sampel'.*'sample'"):
    group_advantages(np.zeros((1, 2)), std="sampel")


def test_batch_algebra_of_the_report():
  """DeepSeek-R1 supplement: the published counts agree with one another."""
  questions, group_size, rollout, refresh, steps = 32, 16, 8192, 400, 10_400
  per_step = group_advantages(np.zeros((questions, group_size))).size
  assert per_step == 512
  assert rollout // per_step == 16
  assert rollout // group_size == 512
  assert refresh * per_step // rollout == 25
  assert steps * per_step // rollout == 650
  assert steps * per_step == 5_324_800
