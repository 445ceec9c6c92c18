"""Pairs in packed rows: whole, in one row each, and summed as if they lay alone."""

import jax
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.training import pairs
from r1jax.training.logprobs import token_logprobs
from tests import tiny

C = tiny.config()


def some(count=9, seed=0):
  rng = np.random.default_rng(seed)

  def text(most):
    return rng.integers(0, C.vocab, rng.integers(1, most)).tolist()

  return [text(6) for _ in range(count)], [(text(7), text(7)) for _ in range(count)]


def test_answers_are_scored_as_if_they_lay_alone():
  """R4: every pair is in one row; sums and lengths are those of a row for each."""
  prompts, answers = some()
  packed, waste = pairs.pack_pairs(prompts, answers, row_length=24)
  assert packed.is_pair_BP.sum() == len(prompts)
  assert packed.is_pair_BP.shape[0] < len(prompts)
  assert 0 <= waste < 0.5
  filled = (packed.rows.segments_BL > 0).mean()
  np.testing.assert_allclose(waste, 1 - filled)

  params = tiny.params(C)
  score = jax.jit(lambda rows: token_logprobs(C, params, rows, chunk=32).logp_BL)
  got = pairs.of_answers(score(packed.rows), packed)
  length = pairs.lengths(packed)
  sequences = [
    [*prompt, *own]
    for prompt, both in zip(prompts, answers, strict=True)
    for own in both
  ]
  logp_BL = np.asarray(score(tiny.plain_rows(sequences, 24)))
  want = {}
  for i, (prompt, both) in enumerate(zip(prompts, answers, strict=True)):
    for place, own in enumerate(both):
      row, start = 2 * i + place, len(prompt)
      want[i, place] = (logp_BL[row, start : start + len(own)].sum(), len(own))
  found = {}
  for b, p in np.argwhere(packed.is_pair_BP > 0):
    # A pair is known by its tokens.
    tokens = [
      packed.rows.tokens_BL[b, first : first + int(n)].tolist()
      for first, n in zip(packed.column_BP2[b, p], length[b, p], strict=True)
    ]
    (i,) = (i for i, both in enumerate(answers) if [*map(list, both)] == tokens)
    for place in range(2):
      found[i, place] = (got[b, p, place], length[b, p, place])
  assert found.keys() == want.keys()
  for key, (total, count) in want.items():
    np.testing.assert_allclose(found[key][0], total, rtol=1e-5)
    assert found[key][1] == count


def test_a_pair_that_fits_no_row_is_refused():
  prompts, answers = some()
  sizes = [
    len(p) + 1 + len(a) + len(b) for p, (a, b) in zip(prompts, answers, strict=True)
  ]
  longest = max(sizes)
  packed, _ = pairs.pack_pairs(prompts, answers, row_length=longest)
  assert packed.is_pair_BP.sum() == len(prompts)
  with pytest.raises(
    InputError, match=f"raise config.training.row_length to {longest}"
  ):
    pairs.pack_pairs(prompts, answers, row_length=longest - 1)
