"""Controls that look at what a row has drawn, in the loop, against plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import prng
from r1jax.models import transformer
from r1jax.sampling import decode, logits, loop_state, stops
from tests import tiny

C = tiny.config()
KEY = prng.at(prng.root(0), "rollout", 7)
SAMPLES, MAX_TOKENS, ROWS = 3, 24, 12
LONGEST = max(map(len, tiny.PROMPTS)) + MAX_TOKENS
PLAN = loop_state.Plan(
  samples=SAMPLES, max_tokens=MAX_TOKENS, slots=5, plain_logp=True, penalises=True
)
# Ids spell letters; strings span tokens, and one holds the beginning of another.
LETTERS = [bytes([97 + token % 26]) for token in range(C.vocab)]
PENALTY = np.asarray([1.0, 1.3, 0.7, 2.0] * 3, np.float32)
AT_LEAST = np.asarray([0, 5, 9] * 4, np.int32)


@functools.cache
def generator():
  return jax.jit(functools.partial(decode.generate, C, plan=PLAN))


def controls_of(**changes):
  made = logits.controls(ROWS, max_tokens=MAX_TOKENS, stop_ids=tiny.STOP)
  return made.replace(**changes)


def run(controls, stops_YV):
  prompts = tiny.prompts(tiny.PROMPTS)
  out = generator()(tiny.params(C), prompts, controls, KEY, stops_YV=stops_YV)
  return jax.tree.map(np.asarray, out)


@jax.jit
def next_logits(tokens_L, last):
  hidden_BLD, _, _ = transformer.forward(
    C, tiny.params(C), tokens_L[None], jnp.arange(LONGEST)[None]
  )
  return transformer.unembed(tiny.params(C), hidden_BLD[0, last])


def plainly(row, penalty, at_least, strings):
  """(tokens, log-probs, log-probs of softmax(logits), stopped), float64."""
  prompt, sample = tiny.PROMPTS[row // SAMPLES], row % SAMPLES
  own, logp, plain = [], [], []
  key = KEY
  for number in (100 + row // SAMPLES, sample):
    key = jax.random.fold_in(key, number)
  while len(own) < MAX_TOKENS:
    text = [*prompt, *own]
    padded = np.zeros(LONGEST, np.int32)
    padded[: len(text)] = text
    raw_V = np.asarray(next_logits(padded, len(text) - 1), np.float64)
    row_V = raw_V.copy()
    for token in set(text):
      row_V[token] = (
        row_V[token] / penalty if row_V[token] > 0 else row_V[token] * penalty
      )
    if len(own) < at_least:
      row_V[list(tiny.STOP)] = -np.inf
    prob_V = tiny.plain_distribution(row_V)
    uniform = float(jax.random.uniform(jax.random.fold_in(key, len(own))))
    token = int(np.searchsorted(np.cumsum(prob_V), uniform, side="right"))
    own.append(token)
    logp.append(np.log(prob_V[token]))
    plain.append(np.log(tiny.plain_distribution(raw_V)[token]))
    said = b"".join(LETTERS[token] for token in own).decode()
    if token in tiny.STOP or any(said.endswith(string) for string in strings):
      return own, logp, plain, True
  return own, logp, plain, False


def test_penalty_least_length_and_stop_strings_are_those_of_a_plain_sampler():
  everything = controls_of(
    repetition_penalty=jnp.asarray(PENALTY), min_tokens=jnp.asarray(AT_LEAST)
  )
  free = run(everything, stops.table([], LETTERS))
  # Two strings that rows do say, of two tokens each, and their beginnings elsewhere.
  said = [
    b"".join(LETTERS[token] for token in tokens[:n]).decode()
    for tokens, n in zip(free.tokens_BT, free.length_B, strict=True)
  ]
  strings = [said[2][4:6], said[7][1:4]]
  off = np.arange(ROWS) == 4
  got = run(
    everything.replace(stop_strings=jnp.asarray(~off)), stops.table(strings, LETTERS)
  )
  ended_by_string = 0
  for row in range(ROWS):
    tokens, logp, plain, stopped = plainly(
      row, PENALTY[row], AT_LEAST[row], [] if off[row] else strings
    )
    n = got.length_B[row]
    assert got.tokens_BT[row, :n].tolist() == tokens, row
    np.testing.assert_allclose(got.logp_BT[row, :n], logp, atol=5e-5)
    np.testing.assert_allclose(got.plain_logp_BT[row, :n], plain, atol=5e-5)
    assert got.stopped_B[row] == stopped
    ended_by_string += stopped and tokens[-1] not in tiny.STOP
  assert ended_by_string >= 2
  assert generator()._cache_size() == 1
