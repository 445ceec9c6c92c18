"""Drafted tokens: what is drawn stays the same, token for token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import prng
from r1jax.errors import InputError
from r1jax.sampling import drafts, logits, loop_state
from tests import tiny

KEY = prng.at(prng.root(0), "rollout", 7)
ROWS = len(tiny.PROMPTS) * tiny.REFILL["samples"]
# Cold rows repeat themselves, and there the lookup is right.
TEMPERATURES = np.asarray([0.0, 0.3, 0.3, 1.0] * 3, np.float32)


def rollout(c, **changes):
  controls = logits.controls(ROWS, max_tokens=tiny.REFILL["max_tokens"])
  controls = controls.replace(temperature=TEMPERATURES)
  generate = tiny.generator(c, **{**tiny.REFILL, **changes})
  out = generate(tiny.params(c), tiny.prompts(tiny.PROMPTS), controls, KEY)
  return jax.tree.map(np.asarray, out)


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("llama", {"draft": "ngram", "draft_tokens": 4}),
    pytest.param(
      *("llama", {"draft": "ngram", "draft_tokens": 1, "slots": None}),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      *("deepseek_v3", {"draft": "ngram", "draft_tokens": 3}), marks=pytest.mark.slow
    ),
    ("deepseek_v3", {"draft": "mtp", "draft_tokens": 1}),
  ],
)
def test_the_same_tokens_in_fewer_steps(name, changes):
  """Refilled slots of different lengths, stop ids and limits amid drafts, windows."""
  c = tiny.FAMILY[name]
  want = rollout(c, slots=changes.get("slots", 5))
  got = rollout(c, **changes)
  np.testing.assert_array_equal(got.length_B, want.length_B)
  np.testing.assert_array_equal(got.stopped_B, want.stopped_B)
  np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT)
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=5e-5)
  accepted, drafted = (
    int(got.counts[f"{what}_tokens"]) for what in ("accepted", "drafted")
  )
  assert got.counts["decode_tokens"] == want.counts["decode_tokens"]
  live = int(got.counts["slot_steps"] - got.counts["idle_slot_steps"])
  assert drafted == live * changes["draft_tokens"]
  assert accepted == got.length_B.sum() - live > 0
  assert got.counts["steps"] < want.counts["steps"]


@pytest.mark.slow
def test_experts_are_recorded_of_accepted_tokens():
  c = tiny.FAMILY["qwen3_moe"]
  want = rollout(c, record_experts=True)
  got = rollout(c, record_experts=True, draft="ngram", draft_tokens=2)
  np.testing.assert_array_equal(
    np.sort(got.experts_BTZK, -1), np.sort(want.experts_BTZK, -1)
  )


@pytest.mark.parametrize(
  ("own", "siblings", "want"),
  [
    # The last three tokens stand in the prompt, followed by 6, 7.
    ([3, 4, 5], [], [6, 7]),
    # A longer match beats a later one; of two alike the later one counts.
    ([9, 4, 5], [[8, 9, 4, 5, 1, 2], [9, 5, 3]], [1, 2]),
    ([9, 5], [[9, 5, 1, 2], [9, 5, 3, 4]], [3, 4]),
    # Nothing drawn yet: the prompt's own end is looked up.
    ([], [[7, 1, 2]], [1, 2]),
  ],
)
def test_what_followed_the_longest_match_last(own, siblings, want):
  prompt, room = [2, 3, 4, 5, 6, 7], 8
  rows = [own, *siblings, *[[]] * (2 - len(siblings))]
  tokens_BT = np.zeros((3, room), np.int32)
  for row, ids in zip(tokens_BT, rows, strict=True):
    row[: len(ids)] = ids
  given = [prompt], [len(prompt)], tokens_BT, [len(ids) for ids in rows], [0]
  got = drafts.from_ngrams(*map(jnp.asarray, given), 2)
  assert got.tolist() == [want]


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"draft": "ngrams", "draft_tokens": 2}, "ngram"),
    ({"draft": "ngram"}, "draft_tokens=0: set both"),
    ({"draft_tokens": 2}, "set both"),
    ({"draft": "mtp", "draft_tokens": 2}, "set 1"),
    ({"draft": "ngram", "draft_tokens": 2, "penalises": True}, "repetition penalty"),
  ],
)
def test_settings_that_do_not_go_together(settings, said):
  with pytest.raises(InputError, match=said):
    loop_state.Plan(samples=1, max_tokens=4, **settings)
