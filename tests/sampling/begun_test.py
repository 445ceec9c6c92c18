"""Rollouts that end early, and go on later as if they had not ended."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import prng
from r1jax.sampling import decode, logits, loop_state, prefill
from tests import tiny

C = tiny.config()
KEY = prng.at(prng.root(0), "rollout", 7)
SAMPLES, MAX_TOKENS, NUM_SLOTS = 3, 70, 5
ROWS = len(tiny.PROMPTS) * SAMPLES


def controls_of():
  made = logits.controls(ROWS, max_tokens=MAX_TOKENS, stop_ids=tiny.STOP)
  return made.replace(temperature=np.linspace(0, 1.4, ROWS).astype(np.float32))


@functools.cache
def programs(plan):
  """Jitted `start`, `start` of begun rows, and `advance`."""
  start = functools.partial(prefill.start, C, plan=plan)

  @jax.jit
  def start_begun(params, prompts, controls, key, begun):
    return start(params, prompts, controls, key, begun=begun)

  @functools.partial(jax.jit, static_argnames="bounds")
  def advance(params, state, controls, bounds):
    return decode.advance(C, params, state, controls, plan, **dict(bounds))

  return jax.jit(start), start_begun, advance


def run(plan, *, begun=None, key=KEY, **bounds):
  start, start_begun, advance = programs(plan)
  given = (tiny.params(C), tiny.prompts(tiny.PROMPTS), controls_of(), key)
  state, _ = start(*given) if begun is None else start_begun(*given, begun)
  state = advance(tiny.params(C), state, controls_of(), tuple(bounds.items()))
  return jax.tree.map(np.asarray, loop_state.rollout_of(state, jnp.uint32(0)))


def begun_of(out):
  return loop_state.Begun(
    tokens_BT=out.tokens_BT,
    logp_BT=out.logp_BT,
    plain_logp_BT=None,
    length_B=out.length_B,
    stopped_B=out.stopped_B,
    done_B=out.done_B,
    key_BX=out.key_BX,
    has_key_B=np.ones(ROWS, bool),
  )


@pytest.mark.parametrize(
  ("slots", "draft", "limit"),
  [
    (NUM_SLOTS, "", 75),
    pytest.param(NUM_SLOTS, "", 1, marks=pytest.mark.slow),
    pytest.param(None, "", 40, marks=pytest.mark.slow),
    pytest.param(NUM_SLOTS, "ngram", 60, marks=pytest.mark.slow),
  ],
)
def test_goes_on_as_if_it_had_not_ended(slots, draft, limit):
  """Under another key, which begun rows do not derive from; lengths past a window, and
  past what is fed at a time."""
  plan = loop_state.Plan(
    samples=SAMPLES,
    max_tokens=MAX_TOKENS,
    slots=slots,
    draft=draft,
    draft_tokens=2 if draft else 0,
  )
  want = run(plan)
  part = run(plan, limit=limit)
  assert not part.done_B.all()
  np.testing.assert_array_equal(part.done_B & (part.length_B == 0), False)
  got = run(plan, begun=begun_of(part), key=prng.root(9))
  assert got.done_B.all()
  for name in ("length_B", "stopped_B", "tokens_BT"):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=5e-5)
  # What was kept is not drawn again.
  kept = np.arange(MAX_TOKENS) < part.length_B[:, None]
  np.testing.assert_array_equal(got.logp_BT[kept], part.logp_BT[kept])
  drawn = int(part.counts["decode_tokens"] + got.counts["decode_tokens"])
  assert drawn == want.counts["decode_tokens"]


def test_ends_with_the_wanted_number_of_complete_groups():
  plan = loop_state.Plan(samples=SAMPLES, max_tokens=MAX_TOKENS, slots=NUM_SLOTS)
  steps = []
  for wanted in (1, 2, 4):
    out = run(plan, wanted=wanted)
    complete = out.done_B.reshape(-1, SAMPLES).all(axis=1).sum()
    assert complete >= wanted
    before = run(plan, limit=int(out.counts["steps"]) - 1)
    assert before.done_B.reshape(-1, SAMPLES).all(axis=1).sum() < wanted
    steps.append(int(out.counts["steps"]))
  assert steps == sorted(set(steps))
