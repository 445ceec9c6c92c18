"""Strings that end an answer, found in its tokens by one table lookup a step.

    table_YV = stops.table(["</answer>", "\\n\\n"], token_bytes)
    state_S = stops.first(controls_S)
    state_S = stops.advance(table_YV, state_S, token_S)  # after each draw
    matched_S = state_S == stops.MATCHED

The table is the automaton of Aho and Corasick (1975) over bytes, walked in advance
through the bytes of each token. Its state is the longest end of the text so far that a
string begins with, so strings may span tokens, overlap, and begin or end inside one.
The row ends at the token that completes a string; what text lies behind it is for the
caller to cut.

Letters: S rows, Y states, V vocabulary.
"""

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import InputError
from r1jax.sampling.logits import Controls

OFF, MATCHED, START = range(3)  # the first two are never left
NUM_STATES = 64


def table(
  strings: Sequence[str],
  token_bytes: Sequence[bytes],
  *,
  num_states: int = NUM_STATES,
) -> np.ndarray:
  """The state after a token, for each state and token, [Y, V] of the smallest integers.

  Args:
    token_bytes: what each id adds to the text (`Tokenizer.token_bytes`), one for each
      logit; control tokens and padding add nothing and leave the state as it is.
    num_states: rows of the table, whatever the strings, so that others compile nothing.

  Raises:
    InputError: an empty string, or strings that need more states.
  """
  if not all(strings):
    raise InputError(f"stop_strings={list(strings)} has an empty string")
  dtype = np.min_scalar_type(num_states - 1)
  next_Yb = _automaton([string.encode() for string in strings])
  if len(next_Yb) > num_states:
    raise InputError(
      f"stop_strings={list(strings)} need {len(next_Yb)} states, about one a byte, of "
      f"which there are {num_states}; give fewer or shorter ones"
    )
  # Longest tokens first: those that have a byte at some place are the first ones.
  next_Yb = next_Yb.astype(dtype)
  order_V = sorted(range(len(token_bytes)), key=lambda token: -len(token_bytes[token]))
  lengths_V = np.asarray([len(token_bytes[token]) for token in order_V])
  state_Y1 = np.arange(len(next_Yb), dtype=dtype)[:, None]
  state_YV = np.repeat(state_Y1, len(token_bytes), axis=1)
  for place in range(max(lengths_V, default=0)):
    count = np.searchsorted(-lengths_V, -place)
    byte_V = [token_bytes[token][place] for token in order_V[:count]]
    state_YV[:, :count] = next_Yb[state_YV[:, :count], byte_V]
  # States that do not occur lead to OFF.
  table_YV = np.full((num_states, len(token_bytes)), OFF, dtype)
  table_YV[: len(state_YV), order_V] = state_YV
  return table_YV


def first(controls_S: Controls) -> jax.Array:
  """The state of rows that have drawn nothing, int32 [S]."""
  return jnp.where(controls_S.stop_strings, START, OFF).astype(jnp.int32)


def advance(table_YV: jax.Array, state_S: jax.Array, token_S: jax.Array) -> jax.Array:
  """The state after a token, int32 [S]; MATCHED once a string is complete."""
  return table_YV[state_S, token_S].astype(jnp.int32)


def _automaton(strings: Sequence[bytes]) -> np.ndarray:
  """The state after a byte, for each state and byte, [Y, 256]."""
  children: list[dict[int, int]] = [{} for _ in range(START + 1)]
  ends = set()
  for string in strings:
    state = START
    for byte in string:
      if byte not in children[state]:
        children[state][byte] = len(children)
        children.append({})
      state = children[state][byte]
    ends.add(state)
  next_Yb = np.full((len(children), 256), START)
  next_Yb[OFF], next_Yb[MATCHED] = OFF, MATCHED
  # Breadth first: a state goes where the longest proper end of its text, which is
  # shorter and so is known, goes, but for the bytes that continue a string.
  shorter = {START: START}
  queue = collections.deque([START])
  while queue:
    state = queue.popleft()
    next_Yb[state] = next_Yb[shorter[state]]
    for byte, child in children[state].items():
      shorter[child] = next_Yb[state, byte]
      next_Yb[state, byte] = child
      if shorter[child] in ends:
        ends.add(child)
      queue.append(child)
  ends_Yb = np.isin(next_Yb, [*ends])
  return np.where(ends_Yb, MATCHED, next_Yb)
