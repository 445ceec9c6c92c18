"""Keys are functions of names, never of history."""

import itertools

import jax
import numpy as np

from r1jax import prng


def data(key):
  return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_keys_differ_by_seed_purpose_and_step():
  """R21, R10: each (seed, purpose, step) has one key, and it is always the same."""
  names = list(itertools.product((0, 1), ("rollout", "shuffle", "init"), (0, 1, 4000)))
  keys = [
    data(prng.at(prng.root(seed), purpose, step)) for seed, purpose, step in names
  ]
  assert len(set(keys)) == len(names)
  assert data(prng.at(prng.root(1), "init", 4000)) == keys[-1]


def test_traced_and_plain_steps_agree():
  at = jax.jit(lambda step: prng.at(prng.root(3), "rollout", step))
  assert data(at(12)) == data(prng.at(prng.root(3), "rollout", 12))


def test_numbers_are_stable_over_processes():
  """R10: they key samples of resumed runs, so Python's salted hash would not do."""
  assert prng.number_of("rollout") == 1956693391
  assert prng.number_of("") == 0
  names = [f"problem/{i}" for i in range(1000)]
  numbers = {prng.number_of(name) for name in names}
  assert len(numbers) == 1000
  assert all(0 <= number < 2**31 for number in numbers)


def test_host_seeds_differ_by_name():
  seeds = {
    prng.host_seed(*name)
    for name in itertools.product((0, 1, 11), ("order", "rewards"), (0, 1, 11))
  }
  assert len(seeds) == 18 and all(0 <= seed < 2**31 for seed in seeds)
