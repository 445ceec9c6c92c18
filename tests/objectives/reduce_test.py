"""Reductions of packed rows, and the three ways to treat truncated answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives import reduce
from r1jax.objectives.advantages import grpo


def packed(lengths_per_row, columns):
  """Masks, lengths and sequence numbers; each sequence follows two prompt tokens."""
  rows = len(lengths_per_row)
  mask, length, owner = (np.zeros((rows, columns), np.int32) for _ in range(3))
  number = 0
  for row, lengths in enumerate(lengths_per_row):
    start = 0
    for size in lengths:
      number += 1
      start += 2
      mask[row, start : start + size] = 1
      length[row, start : start + size] = size
      owner[row, start : start + size] = number
      start += size
  return jnp.asarray(mask), jnp.asarray(length), owner


def reduced(cost, mask, length, reduction, length_constant=None):
  weight, count = reduce.token_weights(
    mask, length, reduction=reduction, length_constant=length_constant
  )
  return float(reduce.weighted_sum(cost, weight) / count)


@pytest.mark.parametrize(
  ("reduction", "want"),
  [("sequence_mean", 0.0), ("token_mean", -0.6), ("constant", -0.3)],
)
def test_two_answers_of_two_and_eight_tokens(reduction, want):
  """Costs +1 and -1: what each reduction makes of a short and a long answer."""
  for layout in ([[2, 8]], [[2], [8]], [[8], [2]]):
    mask, length, owner = packed(layout, 16)
    cost = jnp.where(jnp.asarray(length) == 2, 1.0, -1.0)
    got = reduced(cost, mask, length, reduction, length_constant=10)
    assert got == pytest.approx(want, abs=1e-6)
    assert owner.max() == 2


@pytest.mark.parametrize("reduction", sorted(reduce.REDUCTIONS))
def test_packing_changes_nothing(reduction):
  """R5: the same sequences in other rows give the same loss."""
  lengths = [1, 7, 3, 5, 2, 6]
  costs = [np.random.default_rng(n).normal(size=n) for n in lengths]
  results = []
  for layout in ([[n] for n in lengths], [[1, 7], [3, 5], [2, 6]], [lengths]):
    mask, length, owner = packed(layout, 40)
    cost = np.full(mask.shape, np.nan, np.float32)
    for number, values in enumerate(costs, start=1):
      cost[owner == number] = values
    results.append(reduced(jnp.asarray(cost), mask, length, reduction, 10))
  np.testing.assert_allclose(results, results[0], rtol=1e-5)


def test_counts_are_whole_numbers():
  """R5: 1/|o| added |o| times is not 1 in float32; the counts must add up exactly."""
  rows = [[3, 7, 11, 13]] * 100
  mask, length, _ = packed(rows, 64)
  assert float(reduce.num_sequences(mask, length)) == 400.0
  one = [reduce.num_sequences(mask[b : b + 1], length[b : b + 1]) for b in range(100)]
  assert float(sum(one)) == 400.0


def test_a_sequence_without_trained_tokens_is_not_counted():
  mask, length, _ = packed([[4, 4]], 16)
  mask = mask.at[0, :6].set(0)
  _, count = reduce.token_weights(mask, length, reduction="sequence_mean")
  assert float(count) == 1.0
  nothing = jnp.zeros_like(mask)
  for reduction in reduce.REDUCTIONS:
    weight, count = reduce.token_weights(
      nothing, length, reduction=reduction, length_constant=10
    )
    assert float(count) == 0.0
    assert float(reduce.weighted_sum(jnp.full((1, 16), np.nan), weight)) == 0.0


def test_bad_settings_name_their_key():
  mask = jnp.ones((1, 2))
  with pytest.raises(InputError, match=r"reduction='token'.*'token_mean'"):
    reduce.token_weights(mask, mask, reduction="token")
  for value in (None, 0, -1):
    with pytest.raises(InputError, match="length_constant"):
      reduce.token_weights(mask, mask, reduction="constant", length_constant=value)


class TestTruncated:
  """R15: each choice changes the loss as stated."""

  reward_QG = np.array([[1.0, 0.0, 1.0, 0.0]])
  truncated_QG = np.array([[0, 1, 1, 0]])

  def loss(self, **settings):
    """One token an answer; cost of a token is minus its advantage."""
    reward_QG, trained_QG = reduce.apply_truncated(
      self.reward_QG, self.truncated_QG, **settings
    )
    adv_QG = grpo(reward_QG, std="none")
    weight, count = reduce.token_weights(
      jnp.asarray(trained_QG), jnp.ones((1, 4)), reduction="token_mean"
    )
    token = jnp.array([[1.0, 10.0, 100.0, 1000.0]])
    return float(reduce.weighted_sum(-jnp.asarray(adv_QG) * token, weight) / count)

  def test_keep(self):
    assert self.loss() == pytest.approx(-0.5 * (1 - 10 + 100 - 1000) / 4)

  def test_mask_drops_tokens_and_keeps_the_baseline(self):
    assert self.loss(truncated="mask") == pytest.approx(-0.5 * (1 - 1000) / 2)

  def test_penalise_lowers_the_reward_first(self):
    adv = np.array([1.0, -0.4, 0.6, 0.0]) - 0.3
    want = -(adv @ [1, 10, 100, 1000]) / 4
    assert self.loss(truncated="penalise", penalty=0.4) == pytest.approx(want)

  def test_inputs_are_left_alone(self):
    reduce.apply_truncated(
      self.reward_QG, self.truncated_QG, truncated="penalise", penalty=1.0
    )
    np.testing.assert_array_equal(self.reward_QG, [[1, 0, 1, 0]])

  def test_bad_settings_name_their_key(self):
    with pytest.raises(InputError, match=r"truncated\.kind='drop'"):
      self.loss(truncated="drop")
    with pytest.raises(InputError, match=r"truncated\.penalty=0\.0"):
      self.loss(truncated="penalise")
