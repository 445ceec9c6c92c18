"""Keys by purpose: every random draw is a function of named things, never of history.

A key is derived from (run seed, purpose, step), and inside a rollout from (problem id,
sample, position) on top. Nothing is split in a chain, so step 4000 after a resume draws
what step 4000 of an unbroken run draws.
"""

import zlib

import jax


def root(seed: int) -> jax.Array:
  """The one key of a run."""
  return jax.random.key(seed)


def number_of(name: str) -> int:
  """A stable 31-bit number for a purpose or a problem id."""
  return zlib.crc32(name.encode()) & 0x7FFFFFFF


def at(key: jax.Array, purpose: str, step: int | jax.Array = 0) -> jax.Array:
  """The key of `purpose` ("rollout", "shuffle", "init", ...) at `step`."""
  return jax.random.fold_in(jax.random.fold_in(key, number_of(purpose)), step)


def host_seed(seed: int, purpose: str, step: int = 0) -> int:
  """A seed for numpy or Grain with the same naming rule, in [0, 2**31)."""
  return number_of(f"{seed}/{purpose}/{step}")
