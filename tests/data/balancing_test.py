"""Counts and shares of categories, what they leave and what they lack."""

import collections

import pytest

from configs import common
from r1jax.data import balancing
from r1jax.errors import InputError


def test_r1_samples():
  """Method notes, section 1: about 600K of reasoning, 200K of the rest."""
  samples = common.R1_SAMPLES
  assert sum(samples.values()) == 804_745
  assert sum(samples.values()) - samples["general"] == 626_933
  there = {**samples, "math": 400_000, "logic": 395}
  take, missing = balancing.wanted(there, samples)
  assert take == {**samples, "logic": 395}
  assert missing == {**dict.fromkeys(samples, 0), "logic": 10_000}


def test_shares_make_the_set_as_large_as_the_scarcest_allows():
  shares = {"math": 0.5, "code": 0.25, "general": 0.25}
  take, missing = balancing.wanted({"math": 40, "code": 10, "general": 30}, shares)
  assert take == {"math": 20, "code": 10, "general": 10}
  # With all 30 of general, 120 would be a set.
  assert missing == {"math": 20, "code": 20, "general": 0}
  whole = {"math": 2, "code": 1, "general": 1}
  assert balancing.wanted(whole, shares) == (whole, dict.fromkeys(shares, 0))


def test_nothing_is_asked_of_a_share_of_zero():
  there = {"math": 3, "code": 5}
  take, missing = balancing.wanted(there, {"math": 1.0, "code": 0.0})
  assert (take, missing) == ({"math": 3, "code": 0}, {"math": 0, "code": 0})
  assert balancing.wanted(there, {"math": 9, "code": 0})[0] == {"math": 3, "code": 0}


@pytest.mark.parametrize(
  ("there", "shares", "message"),
  [
    ({}, {"math": 0.5}, r"config\.shares=.* add up to 1"),
    ({}, {"math": 0.5, "code": 1}, r"give whole numbers.*or fractions"),
    ({}, {"math": -1}, "give whole numbers"),
    ({"code": 1}, {"math": 3}, r"says nothing of code"),
    ({"math": 1}, {"math": 0.5, "code": 0.5}, r"there is no example of 'code'"),
  ],
)
def test_shares_that_do_not_fit(there, shares, message):
  with pytest.raises(InputError, match=message):
    balancing.wanted(there, shares)


def test_the_draw_is_of_the_seed_and_the_category_alone():
  categories = ["a", "b"] * 20
  places = balancing.drawn(categories, {"a": 5, "b": 20}, seed=1)
  counts = collections.Counter(categories[place] for place in places)
  assert counts == {"a": 5, "b": 20}
  assert balancing.drawn(categories, {"a": 5}, seed=1) == {
    p for p in places if p % 2 == 0
  }
  assert balancing.drawn(categories, {"a": 5}, seed=2) != {
    p for p in places if p % 2 == 0
  }
