"""From a rollout to mini-batches: every answer once, in shapes that never change."""

import jax
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.training.minibatches import deal, minibatches

LONGEST = 10
SIZES = {"parts": 2, "rows": 2, "row_length": 24, "longest": LONGEST, "shards": 1}
# Tokens of each prompt, and of each of the two answers to it.
PROMPTS = (3, 1, 4, 2)
LENGTHS = (7, 1, 9, 2, 5, 6, 8, 1)
# Answer 6 is to prompt 3, 1 to 0, 3 to 1 and 5 to 2.
ORDER = (6, 1, 3, 0, 5, 4, 2, 7)
PARTS = ((6, 7, 1, 0), (3, 2, 5, 4))


def rollout(prompts=PROMPTS, lengths=LENGTHS, *, order=ORDER, untrained=(), **settings):
  """Mini-batches of answers whose tokens, log-probs and advantages say their number."""
  rows = range(len(lengths))
  return minibatches(
    order=np.asarray(order),
    prompts=[prompt_tokens(number, size) for number, size in enumerate(prompts)],
    prompt_of=np.repeat(np.arange(len(prompts)), len(lengths) // len(prompts)),
    completions=[100 * row + np.arange(lengths[row]) for row in rows],
    tokens={
      "logp_behaviour_BL": [-(row + np.arange(lengths[row]) / 16) for row in rows],
      "advantage_BL": [row + 1 + np.arange(lengths[row]) / 16 for row in rows],
    },
    trained=np.asarray([row not in untrained for row in rows], np.float32),
    **{**SIZES, "reduction": "sequence_mean", "length_constant": None, **settings},
  )


def prompt_tokens(number, size):
  return 10_000 + 100 * number + np.arange(size)


def answers(batch):
  """{answer: its and its prompt's columns of every leaf} in `count` microbatches."""
  found = {}
  leaves = {
    **{k: v for k, v in vars(batch.experience.rows).items() if v is not None},
    "advantage_BL": batch.experience.advantage_BL,
    "logp_BL": batch.experience.logp_behaviour_BL,
  }
  for place in np.ndindex(batch.count, SIZES["rows"]):
    segments, parents = (
      leaves[f"{name}_BL"][place] for name in ("segments", "parents")
    )
    for segment in range(1, segments.max() + 1):
      (parent,) = set(parents[segments == segment])
      here = (segments == segment) | (segments == parent)
      own = {name: leaf[place][here] for name, leaf in leaves.items()}
      if own["tokens_BL"][-1] < 10_000:
        answer = int(own["tokens_BL"][-1] // 100)
        assert answer not in found
        found[answer] = own
  return found


def test_every_answer_lies_behind_its_prompt_in_the_part_of_its_turn():
  first, second = map(answers, rollout(untrained=(3,)))
  assert (set(first), set(second)) == tuple(map(set, PARTS))
  for row, own in {**first, **second}.items():
    prompt, completion = PROMPTS[row // 2], LENGTHS[row]
    tokens = [10_000 + 100 * (row // 2) + at for at in range(prompt)]
    tokens += [100 * row + at for at in range(completion)]
    assert own["tokens_BL"].tolist() == tokens
    assert own["positions_BL"].tolist() == list(range(prompt + completion))
    trained = completion if row != 3 else 0
    kept_out = prompt + completion - trained
    assert own["mask_BL"].tolist() == [0] * kept_out + [1] * trained
    assert set(own["length_BL"][prompt - 1 :]) == {trained}
    advantage = [row + 1 + at / 16 for at in range(completion)]
    assert own["advantage_BL"].tolist() == [0] * prompt + advantage
    logp = [-(row + at / 16) for at in range(completion)]
    assert own["logp_BL"].tolist() == [0] * prompt + logp


def test_what_is_laid_on_tokens_is_taken_from_them():
  """Of any answer in its own mini-batch; fields that are not named are None."""
  values = [1000.0 * row + np.arange(n) for row, n in enumerate(LENGTHS)]
  found = {}
  for batch in rollout():
    laid_MBL = batch.laid(values)
    rows = batch.experience.rows
    assert laid_MBL.shape == rows.tokens_BL.shape and laid_MBL.dtype == np.float32
    assert not laid_MBL[(rows.mask_BL == 0)].any()
    found |= batch.taken(laid_MBL)
    assert batch.experience.logp_old_BL is None
  assert sorted(found) == list(range(len(LENGTHS)))
  for row, want in enumerate(values):
    np.testing.assert_array_equal(found[row], want)


def test_a_prompt_lies_once_where_its_answers_fit_one_row():
  for batch, part in zip(rollout(), PARTS, strict=True):
    numbers = {row // 2 for row in part}
    tokens = sum(PROMPTS[number] - 1 for number in numbers)
    tokens += sum(LENGTHS[row] + 1 for row in part)
    assert (batch.experience.rows.segments_BL > 0).sum() == tokens


def test_experts_of_a_prompt_are_laid_once():
  """Those of each token stand at it, of padding -1."""
  whole = [
    np.concatenate(
      [prompt_tokens(row // 2, PROMPTS[row // 2]), 100 * row + np.arange(n)]
    )
    for row, n in enumerate(LENGTHS)
  ]
  experts = [np.broadcast_to(ids[:, None, None], (len(ids), 2, 3)) for ids in whole]
  for batch in rollout(experts=experts):
    rows = batch.experience.rows
    assert rows.experts_BLZK.shape == (*rows.tokens_BL.shape, 2, 3)
    want = np.where(rows.segments_BL > 0, rows.tokens_BL, -1)[..., None, None]
    assert (rows.experts_BLZK == want).all()


@pytest.mark.parametrize(
  ("prompt_of", "parts", "want"),
  [
    ([0, 0, 1, 1, 2, 2], 3, [[3, 2], [0, 1], [4, 5]]),
    # Two parts of three prompts: the second one's answers go to both.
    ([0, 0, 1, 1, 2, 2], 2, [[3, 2, 0], [1, 4, 5]]),
    ([0, 1, 2, 3, 4, 5], 2, [[3, 0, 4], [1, 5, 2]]),
  ],
)
def test_prompts_are_dealt_in_random_order_with_their_answers(prompt_of, parts, want):
  order = np.asarray([3, 0, 4, 1, 5, 2])
  assert deal(order, np.asarray(prompt_of), parts).tolist() == want


@pytest.mark.parametrize(
  ("settings", "want"),
  [
    # Answers 6 7 1 0 and 3 2 5 4 have 8 + 1 + 1 + 7 and 2 + 9 + 6 + 5 tokens.
    ({"reduction": "sequence_mean"}, (4, 3)),
    ({"reduction": "token_mean"}, (17, 20)),
    ({"reduction": "constant", "length_constant": 9.0}, (36, 27)),
  ],
)
def test_denominators_by_hand(settings, want):
  """R5, R15: of a whole mini-batch; an answer that is masked counts in none."""
  assert tuple(b.denominator for b in rollout(untrained=(3,), **settings)) == want


def test_a_part_in_which_all_is_masked():
  nothing, other = rollout(untrained=PARTS[0])
  assert nothing.denominator == 0 and not nothing.experience.rows.mask_BL.any()
  assert nothing.count > 0 and other.denominator == 4


@pytest.mark.parametrize("row_length", [10, 24, 35])
def test_any_lengths_fit_one_shape(row_length):
  """R12: also answers that are all as long as they may be."""
  rng = np.random.default_rng(0)
  draws = []
  for samples in (1, 2, 3, 6, 12, 24):
    num_prompts = 24 // samples
    draws.append(([1] * num_prompts, [LONGEST - 1] * 24))
    draws.append(([LONGEST - 1] * num_prompts, [1] * 24))
    for high in (2, 5, 5, 9, 9):
      prompts = rng.integers(1, high + 1, num_prompts)
      draws.append(
        (prompts, rng.integers(1, LONGEST + 1 - np.repeat(prompts, samples)))
      )
  shapes, counts = set(), set()
  for prompts, lengths in draws:
    for batch in rollout(prompts, lengths, order=np.arange(24), row_length=row_length):
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
