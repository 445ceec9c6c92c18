"""The coefficient of the KL follows its target, over a resume too."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from r1jax.errors import InputError
from r1jax.stages.reference import Coefficient, check


def settings(**changes):
  c = common.grpo()
  c.rollout.prompts, c.rollout.group_size = 5, 2
  c.loss.kl_coef = 0.1
  c.update_from_flattened_dict(changes)
  return c.to_dict()


ADAPTS = {"reference.kl_target": 0.2, "reference.kl_horizon": 100.0}


def test_without_a_target_it_stays_as_it_is():
  fixed = Coefficient(settings(**{"advantage.kl_coef": 0.02}))
  assert fixed.next() == {"loss": 0.1, "advantage": 0.02} == fixed.next()
  assert fixed.held() is None


def test_it_moves_by_the_bounded_error_of_the_step_before():
  """10 answers of 100: 0.3 is 50 % above, bounded by 20; 0.18 is 10 % below."""
  one = Coefficient(settings(**ADAPTS))
  want = 0.1
  assert one.next()["loss"] == pytest.approx(want)  # nothing was seen yet
  for total, count, error in ((0.3, 1, 0.2), (1.8, 10, -0.1), (0.0, 1, -0.2)):
    one.saw(jnp.float32(total), jnp.float32(count))
    want *= 1 + error * 10 / 100
    assert one.next()["loss"] == pytest.approx(want, rel=1e-6)


def test_the_reward_has_its_own():
  changes = {**ADAPTS, "loss.kl_coef": 0.0, "advantage.kl_coef": 0.5}
  one = Coefficient(settings(**changes))
  one.next()
  one.saw(np.float32(0.2), np.float32(1))
  assert one.next() == {"loss": 0.0, "advantage": 0.5}
  one.saw(np.float32(0.1), np.float32(1))
  assert one.next() == {"loss": 0.0, "advantage": pytest.approx(0.5 * 0.98)}


def test_a_checkpoint_carries_it():
  """R10: to the last bit."""
  one, again = Coefficient(settings(**ADAPTS)), Coefficient(settings(**ADAPTS))
  for observed in (0.3, 0.21, 0.17):
    one.next()
    one.saw(np.float32(observed), np.float32(1))
    again.take_up(one.held())
  assert again.next() == one.next() != {"loss": 0.1, "advantage": 0.0}


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"loss.kl_coef": -0.1}, r"config\.loss\.kl_coef=-0.1: must be 0 or more"),
    ({"reference.kl_target": -1.0}, r"config\.reference\.kl_target=-1.0 and"),
    ({**ADAPTS, "reference.kl_horizon": 0.0}, r"kl_horizon=0.0"),
    ({**ADAPTS, "loss.kl_coef": 0.0}, r"begin with one of them above 0"),
    ({**ADAPTS, "advantage.kl_coef": 0.1}, r"adapts one coefficient, and"),
  ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
  with pytest.raises(InputError, match=said):
    check(settings(**changes))
