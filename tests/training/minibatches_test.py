"""From a rollout to mini-batches: every answer once, in shapes that never change."""

import jax
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.training.minibatches import minibatches

LONGEST = 10
SIZES = {"parts": 2, "rows": 2, "row_length": 24, "longest": LONGEST, "shards": 1}
LENGTHS = ((3, 7), (1, 1), (4, 2), (2, 8), (1, 9), (5, 5), (2, 1), (3, 3))
ORDER = (6, 1, 3, 0, 5, 4, 2, 7)


def rollout(lengths=LENGTHS, *, order=ORDER, untrained=(), **settings):
  """Mini-batches of answers whose tokens, log-probs and advantages say their number."""
  rows = range(len(lengths))
  return minibatches(
    order=np.asarray(order),
    prompts=[100 * row + np.arange(lengths[row][0]) for row in rows],
    completions=[100 * row + 50 + np.arange(lengths[row][1]) for row in rows],
    logp=[-(row + np.arange(lengths[row][1], dtype=np.float32) / 16) for row in rows],
    advantage=np.arange(len(lengths), dtype=np.float32) + 1,
    trained=np.asarray([row not in untrained for row in rows], np.float32),
    **{**SIZES, "reduction": "sequence_mean", "length_constant": None, **settings},
  )


def answers(batch):
  """{answer: its columns of every leaf} in the first `count` microbatches."""
  found = {}
  leaves = {
    **{k: v for k, v in vars(batch.experience.rows).items() if v is not None},
    "advantage_BL": batch.experience.advantage_BL,
    "logp_BL": batch.experience.logp_behaviour_BL,
  }
  for place in np.ndindex(batch.count, SIZES["rows"]):
    segments = leaves["segments_BL"][place]
    for segment in range(1, segments.max() + 1):
      own = {name: leaf[place][segments == segment] for name, leaf in leaves.items()}
      found[int(own["tokens_BL"][0] // 100)] = own
  return found


def test_every_answer_lies_whole_in_the_part_of_its_turn():
  first, second = map(answers, rollout(untrained=(3,)))
  assert (set(first), set(second)) == (set(ORDER[:4]), set(ORDER[4:]))
  for row, own in {**first, **second}.items():
    prompt, completion = LENGTHS[row]
    tokens = [100 * row + at for at in range(prompt)]
    tokens += [100 * row + 50 + at for at in range(completion)]
    assert own["tokens_BL"].tolist() == tokens
    assert own["positions_BL"].tolist() == list(range(prompt + completion))
    trained = completion if row != 3 else 0
    kept_out = prompt + completion - trained
    assert own["mask_BL"].tolist() == [0] * kept_out + [1] * trained
    assert set(own["length_BL"]) == {trained}
    assert own["advantage_BL"].tolist() == [0] * prompt + [row + 1] * completion
    logp = [-(row + at / 16) for at in range(completion)]
    assert own["logp_BL"].tolist() == [0] * prompt + logp


@pytest.mark.parametrize(
  ("settings", "want"),
  [
    # Answers 6 1 3 0 and 5 4 2 7 have 1 + 1 + 8 + 7 and 5 + 9 + 2 + 3 tokens.
    ({"reduction": "sequence_mean"}, (3, 4)),
    ({"reduction": "token_mean"}, (9, 19)),
    ({"reduction": "constant", "length_constant": 9.0}, (27, 36)),
  ],
)
def test_denominators_by_hand(settings, want):
  """R5, R15: of a whole mini-batch; an answer that is masked counts in none."""
  assert tuple(b.denominator for b in rollout(untrained=(3,), **settings)) == want


def test_a_part_in_which_all_is_masked():
  nothing, other = rollout(untrained=ORDER[:4])
  assert nothing.denominator == 0 and not nothing.experience.rows.mask_BL.any()
  assert nothing.count > 0 and other.denominator == 4


@pytest.mark.parametrize("row_length", [10, 24, 35])
def test_any_lengths_fit_one_shape(row_length):
  """R12: also answers that are all as long as they may be."""
  rng = np.random.default_rng(0)
  draws = [[(1, LONGEST - 1)] * 24, [(4, 1)] * 24]
  for high in (3, 6, 6, 10, 10, 10):
    total = rng.integers(2, high + 1, 24)
    draws.append([(1, int(n) - 1) for n in total])
  shapes, counts = set(), set()
  for lengths in draws:
    for batch in rollout(lengths, order=np.arange(24), row_length=row_length):
      shapes.add(tuple(leaf.shape for leaf in jax.tree.leaves(batch.experience)))
      counts.add(batch.count)
      segments = batch.experience.rows.segments_BL
      assert segments[: batch.count].any(axis=(1, 2)).all()
      assert not segments[batch.count :].any()
      assert len(answers(batch)) == 12
  ((shape, *_),) = shapes
  assert shape[1:] == (SIZES["rows"], row_length) and max(counts) == shape[0]
  assert row_length == LONGEST or len(counts) > 1


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"parts": 3}, "config.training.minibatches=3 does not divide the 8 answers"),
    ({"parts": 0}, "config.training.minibatches=0"),
    ({"row_length": 9}, r"config.training.row_length=9 is shorter .* = 10; raise it"),
    ({"rows": 3, "shards": 2}, "config.training.rows=3 does not split over 2 devices"),
    ({"rows": 0}, "config.training.rows=0"),
  ],
)
def test_sizes_that_do_not_fit_name_their_key(settings, message):
  with pytest.raises(InputError, match=message):
    rollout(**settings)
