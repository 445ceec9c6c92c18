"""Stop strings in tokens, against a search of the text itself."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.sampling import logits, stops

ADVANCE = jax.jit(stops.advance)


def walk(table_YV, tokens, state=stops.START):
  """Which tokens come at or behind the one that completes a string."""
  matched = []
  for token in tokens:
    state = table_YV[state, token]
    matched.append(bool(state == stops.MATCHED))
  return matched


def searched(strings, token_bytes, tokens):
  texts = [b"".join(token_bytes[t] for t in tokens[:n]) for n in range(len(tokens) + 1)]
  return [any(s.encode() in text for s in strings) for text in texts[1:]]


@pytest.mark.parametrize("seed", range(8))
def test_against_a_search_of_the_text(seed):
  """Two letters, so that strings overlap, nest and begin again in the middle."""
  rng = random.Random(seed)

  def word(least, most):
    return "".join(rng.choices("ab", k=rng.randint(least, most)))

  token_bytes = [word(0, 5).encode() for _ in range(20)]
  for _ in range(20):
    strings = [word(1, 6) for _ in range(rng.randint(1, 4))]
    table = stops.table(strings, token_bytes)
    tokens = rng.choices(range(20), k=12)
    assert walk(table, tokens) == searched(strings, token_bytes, tokens), strings


@pytest.mark.parametrize(
  ("strings", "tokens", "matched"),
  [
    (["</a>"], ["x <", "/", "a", "> y"], [0, 0, 0, 1]),
    (["</a>"], ["x </a> y", "z"], [1, 1]),
    (["aab"], ["a", "aa", "b"], [0, 0, 1]),
    (["abcd", "bc"], ["ab", "c"], [0, 1]),
    (["\u00e9\u00e9"], ["\u00e9".encode(), b"\xc3", b"\xa9"], [0, 0, 1]),
    (["ab"], ["a", "", "b"], [0, 0, 1]),
    (["ab"], ["b", "a", "a"], [0, 0, 0]),
    ([], ["a"], [0]),
  ],
  ids=str,
)
def test_corners(strings, tokens, matched):
  token_bytes = [t if isinstance(t, bytes) else t.encode() for t in tokens]
  table = stops.table(strings, token_bytes)
  assert walk(table, range(len(tokens))) == [bool(m) for m in matched]


def test_rows_that_are_off_never_match():
  table = stops.table(["a"], [b"a", b"b"])
  on, off = (
    logits.controls(1, max_tokens=1, stop_strings=stop_strings)
    for stop_strings in (True, False)
  )
  both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), on, off)
  state_S = ADVANCE(table, stops.first(both), jnp.asarray([0, 0]))
  np.testing.assert_array_equal(state_S == stops.MATCHED, [True, False])
  again_S = ADVANCE(table, state_S, jnp.asarray([1, 0]))
  np.testing.assert_array_equal(again_S == stops.MATCHED, [True, False])


def test_other_strings_compile_nothing():
  """R20: the table has one shape and type, whatever the strings."""
  token_bytes = [bytes([byte]) for byte in range(256)]
  state_S, token_S = jnp.full(3, stops.START), jnp.asarray([97, 98, 99])
  ADVANCE(stops.table(["a"], token_bytes), state_S, token_S)
  before = ADVANCE._cache_size()
  state_S = ADVANCE(stops.table(["b", "cd" * 20], token_bytes), state_S, token_S)
  assert ADVANCE._cache_size() == before
  np.testing.assert_array_equal(state_S == stops.MATCHED, [False, True, False])


def test_the_table_is_small():
  token_bytes = [b"a"] * 7
  assert stops.table(["ab"], token_bytes).dtype == np.uint8
  assert stops.table(["ab"], token_bytes).shape == (stops.NUM_STATES, 7)
  assert stops.table(["ab"], token_bytes, num_states=300).dtype == np.uint16
  many = ["".join(map(chr, range(48, 48 + 70)))]
  assert walk(stops.table(many, [many[0].encode()], num_states=80), [0]) == [True]


def test_what_is_refused():
  with pytest.raises(InputError, match="empty string"):
    stops.table(["a", ""], [b"a"])
  with pytest.raises(InputError, match=r"need 103 states.*of which there are 64"):
    stops.table(["a" * 100], [b"a"])
