"""Which problems are asked, and that it is a function of seed, rollout and rates."""

import numpy as np
import pytest

from configs import common
from r1jax.data.stream import Stream
from r1jax.errors import InputError
from r1jax.stages import asking

ITEMS = [f"problem {n}" for n in range(30)]


def by_rate(seed=0, name="zero", **changes):
  how = {"decay": 0.5, "floor": 0.01} | changes
  return asking.ByPassRate(ITEMS, seed=seed, name=name, **how)


def drawn(curriculum, rollout=1, count=8):
  return curriculum.places(count, num_asked=0, rollout=rollout).tolist()


def test_in_order_every_problem_comes_once_an_epoch():
  order = asking.InOrder(Stream(ITEMS, batch=10, seed=0, key="config.a"))
  places = [order.places(10, num_asked=10 * n, rollout=n + 1) for n in range(3)]
  asked = [order.problem(int(place)) for place in np.concatenate(places)]
  assert sorted(asked) == sorted(ITEMS)
  assert order.held() is None


def test_draws_are_a_function_of_seed_stage_and_rollout():
  """R21."""
  assert drawn(by_rate()) == drawn(by_rate())
  others = [by_rate(seed=1), by_rate(name="one")]
  several = {tuple(drawn(by_rate())), tuple(drawn(by_rate(), rollout=2))}
  assert len(several | {tuple(drawn(other)) for other in others}) == 4
  assert all(len(set(drawn(by_rate(), rollout=n))) == 8 for n in range(20))


def test_half_solved_problems_are_asked_most():
  """Rates 0, 1/2 and 1: weights 0.01, 0.25 and 0.01 of ten problems each."""
  curriculum = by_rate()
  share = np.repeat([[0, 0], [0, 1], [1, 1]], 10, axis=0)
  curriculum.judged(np.arange(30), share)
  first = [drawn(curriculum, rollout=n, count=1)[0] for n in range(600)]
  counts = np.bincount(np.asarray(first) // 10, minlength=3)
  assert counts[1] / 600 == pytest.approx(0.25 / 0.27, abs=0.04)
  assert (counts[[0, 2]] > 0).all()


def test_a_checkpoint_carries_the_rates():
  curriculum, again = by_rate(), by_rate()
  for problem, correct in ((3, [1, 1]), (3, [0, 0]), (5, [1, 0])):
    curriculum.judged(np.asarray([problem]), np.asarray([correct]))
  held = curriculum.held()
  assert held.dtype == np.float32 and held[3] == held[5] == 0.5
  assert np.isnan(held).sum() == 28
  again.take_up(held)
  assert drawn(again, rollout=7) == drawn(curriculum, rollout=7)
  assert curriculum.problem(5) == "problem 5"


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"filter.max_rounds": 0}, r"config\.filter\.max_rounds=0: must be 1 or more"),
    ({"curriculum.decay": 1.0}, r"config\.curriculum\.decay=1.0: must be"),
    ({"curriculum.floor": 0.0}, r"config\.curriculum\.floor=0.0: must be above 0"),
    ({"curriculum.floor": 0.3}, r"config\.curriculum\.floor=0.3: .*0.25"),
  ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
  c = common.grpo()
  c.update_from_flattened_dict(changes)
  with pytest.raises(InputError, match=said):
    asking.check(c.to_dict())
