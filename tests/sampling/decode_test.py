"""The rollout against a sampler that has no cache, no slots and no batch."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import prng, trees
from r1jax.models import parameters, transformer
from r1jax.sampling import decode, logits, loop_state, prefill
from tests import tiny

C = tiny.config()
PROMPTS, STOP, REFILL = tiny.PROMPTS, tiny.STOP, tiny.REFILL
SAMPLES, MAX_TOKENS = REFILL["samples"], REFILL["max_tokens"]
FULL = {**REFILL, "slots": None}
KEY = prng.at(prng.root(0), "rollout", 7)

SETTINGS = [
  {"temperature": 1.0},
  {"temperature": 0.0},
  {"temperature": 1.3, "top_p": 0.9},
  {"temperature": 0.7, "top_k": 8, "min_p": 0.02},
]
LIMITS = [70, 70, 40, 33, 32, 31, 70, 1, 2, 70, 64, 65]


def controls_of(settings, limits):
  """One entry of `settings` and of `limits` a row."""
  each = [
    logits.controls(1, max_tokens=limit, **s)
    for s, limit in zip(settings, limits, strict=True)
  ]
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *each)


def run(prompts, *, controls=None, key=KEY, c=C, **settings):
  rows = len(prompts.length_Q) * settings["samples"]
  if controls is None:
    controls = logits.controls(rows, max_tokens=settings["max_tokens"])
  rollout = tiny.generator(c, **settings)(tiny.params(c), prompts, controls, key)
  return jax.tree.map(np.asarray, rollout)


def rows_of(rollout):
  """(tokens, log-probs) of each row, without what lies behind its end."""
  return [
    (rollout.tokens_BT[b, :n].tolist(), rollout.logp_BT[b, :n])
    for b, n in enumerate(rollout.length_B)
  ]


def assert_same(got, want):
  for (tokens, logp), (want_tokens, want_logp) in zip(got, want, strict=True):
    assert tokens == want_tokens
    np.testing.assert_allclose(logp, want_logp, atol=2e-5)


@functools.cache
def next_logits(c, length):
  """Tokens of one sequence, right-padded -> float32 logits after token `last`."""

  @jax.jit
  def after(params, tokens_L, last):
    hidden_BLD, _, _ = transformer.forward(
      c, params, tokens_L[None], jnp.arange(length)[None]
    )
    return transformer.unembed(params, hidden_BLD[0, last])

  return after


@jax.jit
def uniform_at(key, problem, sample, place):
  for number in (problem, sample, place):
    key = jax.random.fold_in(key, number)
  return jax.random.uniform(key)


def sample_plainly(prompt, problem, sample, settings, limit):
  """One completion: a full forward for every token, float64 from the logits on."""
  length = len(max(PROMPTS, key=len)) + MAX_TOKENS
  tokens, logp = list(prompt), []
  while len(logp) < limit:
    padded = np.zeros(length, np.int32)
    padded[: len(tokens)] = tokens
    row_V = next_logits(C, length)(tiny.params(C), padded, len(tokens) - 1)
    prob_V = tiny.plain_distribution(row_V, **settings)
    uniform = float(uniform_at(KEY, problem, sample, len(logp)))
    token = int(np.searchsorted(np.cumsum(prob_V), uniform, side="right"))
    tokens.append(token)
    logp.append(np.log(prob_V[token]))
    if token in STOP:
      return tokens[len(prompt) :], logp, True
  return tokens[len(prompt) :], logp, False


@pytest.mark.parametrize("slots", [5, None], ids=["refill", "a_slot_a_row"])
def test_token_for_token_like_a_plain_sampler(slots):
  """R3, R13, R21: every window, refilled slots, limits of 1 to 70 tokens, prompts of
  length 1, greedy and truncated rows side by side; tokens, log-probs and counts."""
  settings = [s for s in SETTINGS for _ in range(SAMPLES)]
  prompts = tiny.prompts(PROMPTS)
  got = run(
    prompts, controls=controls_of(settings, LIMITS), **{**REFILL, "slots": slots}
  )
  want = [
    sample_plainly(
      PROMPTS[b // SAMPLES], 100 + b // SAMPLES, b % SAMPLES, settings[b], LIMITS[b]
    )
    for b in range(12)
  ]
  assert_same(rows_of(got), [(tokens, logp) for tokens, logp, _ in want])
  assert got.stopped_B.tolist() == [stopped for *_, stopped in want]
  # The case is rich enough: it stops early, runs out, and passes each window.
  lengths = got.length_B
  assert got.stopped_B.any() and not got.stopped_B.all()
  assert (lengths > 64).any() and (lengths < 32).any()
  for b, length in enumerate(lengths):
    assert not got.logp_BT[b, length:].any()

  counts = {name: int(value) for name, value in got.counts.items()}
  assert counts["prefill_tokens"] == sum(len(p) - 1 for p in PROMPTS)
  assert counts["decode_tokens"] == lengths.sum()
  assert counts["slot_steps"] == counts["steps"] * (slots or 12)
  assert counts["idle_slot_steps"] == counts["slot_steps"] - lengths.sum()
  assert counts["steps"] == steps_of_a_queue(lengths, slots or 12)


def steps_of_a_queue(lengths, slots):
  """Steps when each slot takes the next row as soon as it is free."""
  free_at = [0] * slots
  for length in lengths:
    slot = free_at.index(min(free_at))
    free_at[slot] += int(length)
  return max(free_at)


def test_refill_needs_fewer_steps_than_waves():
  """R13: 12 rows in 5 slots; waves of 5 would each wait for their longest row."""
  got = run(tiny.prompts(PROMPTS), **REFILL)
  waves = [got.length_B[start : start + 5].max() for start in (0, 5, 10)]
  assert got.counts["steps"] < sum(waves)
  assert got.counts["idle_slot_steps"] < 5 * sum(waves) - got.length_B.sum()


def test_slots_and_queue_order_change_nothing():
  """R21: prompts permuted, other batch mates, other slots: the same tokens."""
  want = rows_of(run(tiny.prompts(PROMPTS), **REFILL))
  assert_same(rows_of(run(tiny.prompts(PROMPTS), **FULL)), want)
  order = [2, 0, 3, 1]
  shuffled = tiny.prompts([PROMPTS[q] for q in order], ids=[100 + q for q in order])
  got = rows_of(run(shuffled, **REFILL))
  for place, q in enumerate(order):
    assert_same(
      got[place * SAMPLES : (place + 1) * SAMPLES],
      want[q * SAMPLES : (q + 1) * SAMPLES],
    )
  mates = tiny.prompts([PROMPTS[1], [9] * 6, [8] * 6, [1]], ids=[101, 5, 6, 7])
  assert_same(rows_of(run(mates, **REFILL))[:SAMPLES], want[SAMPLES : 2 * SAMPLES])


def test_a_subset_alone_draws_the_same():
  """R21: one prompt with its first two samples, under a shorter limit."""
  alone = {"samples": 2, "max_tokens": 20, "stop_ids": STOP}
  want = rows_of(run(tiny.prompts(PROMPTS), **REFILL))[3:5]
  got = rows_of(run(tiny.prompts(PROMPTS[1:2], ids=[101]), **alone))
  assert_same(got, [(tokens[:20], logp[:20]) for tokens, logp in want])


def test_draws_differ_by_step_problem_and_sample():
  """R21: no two of (seed, step, problem, sample) share their draws."""
  same = tiny.prompts([PROMPTS[0]] * 4)  # one text, four problems
  hot = logits.controls(12, temperature=5.0, max_tokens=MAX_TOKENS)
  keys = [KEY, prng.at(prng.root(0), "rollout", 8), prng.at(prng.root(1), "rollout", 7)]
  runs = [rows_of(run(same, controls=hot, key=key, **REFILL)) for key in keys]
  long = [tuple(t[:8]) for rows in runs for t, _ in rows if len(t) > 8]
  assert len(set(long)) == len(long) > 12
  assert_same(rows_of(run(same, controls=hot, **REFILL)), runs[0])


def test_padding_may_be_the_stop_token():
  """R3: pad id == eos id."""
  want = rows_of(run(tiny.prompts(PROMPTS), **REFILL))
  for pad in STOP:
    assert_same(rows_of(run(tiny.prompts(PROMPTS, pad=pad), **REFILL)), want)


def test_first_token_may_stop():
  """R3: a completion of nothing but the stop token has length 1 and a log-prob."""
  short = {"samples": 2, "max_tokens": 5, "slots": 3}
  first = run(tiny.prompts(PROMPTS), **short, stop_ids=()).tokens_BT[:, 0]
  got = run(tiny.prompts(PROMPTS), **short, stop_ids=tuple(set(first.tolist())))
  assert got.length_B.tolist() == [1] * 8 and got.stopped_B.all()
  assert (got.logp_BT[:, 0] < 0).all() and not got.logp_BT[:, 1:].any()
  assert got.counts["steps"] == 3 and got.counts["idle_slot_steps"] == 1


def test_nothing_stops_without_stop_ids():
  """R3: no EOS: every row runs into its limit and says so."""
  endless = {"samples": 1, "max_tokens": 5, "stop_ids": (), "slots": 64}
  got = run(tiny.prompts(PROMPTS), **endless)
  assert got.length_B.tolist() == [5] * 4 and not got.stopped_B.any()
  assert got.counts["slot_steps"] == 20 and got.counts["idle_slot_steps"] == 0


def test_stopping_on_the_last_allowed_token_is_stopping():
  want = rows_of(run(tiny.prompts(PROMPTS), **REFILL))
  limits = [len(tokens) for tokens, _ in want]
  cut = [max(limit - 1, 1) for limit in limits]
  tight = run(tiny.prompts(PROMPTS), controls=controls_of([{}] * 12, limits), **REFILL)
  assert_same(rows_of(tight), want)
  short = run(tiny.prompts(PROMPTS), controls=controls_of([{}] * 12, cut), **REFILL)
  for b, (tokens, _) in enumerate(want):
    stops = tokens[-1] in STOP
    assert tight.stopped_B[b] == stops
    assert short.stopped_B[b] == (stops and len(tokens) == 1)
    assert short.length_B[b] == cut[b]


def test_changing_controls_and_keys_compiles_nothing():
  """R20: one program for every temperature, truncation, limit, step and weight."""
  run(tiny.prompts(PROMPTS), **REFILL)
  compiled = tiny.generator(C, **REFILL)
  before = compiled._cache_size()
  hot = logits.controls(
    12, temperature=1.5, top_k=4, top_p=0.5, min_p=0.1, max_tokens=3
  )
  run(tiny.prompts(PROMPTS, ids=[1, 2, 3, 4]), controls=hot, **REFILL)
  compiled(tiny.params(C, 1), tiny.prompts(PROMPTS), hot, prng.root(5))
  assert compiled._cache_size() == before


def test_the_rollout_says_which_weights_drew():
  """R2: the checksum is that of the weights given, and changes with one of them."""
  got = run(tiny.prompts(PROMPTS), **REFILL)
  checksum = jax.jit(trees.checksum)
  assert got.weights_checksum == checksum(tiny.params(C))
  params = tiny.params(C)
  nudged = {**params, "final_norm": params["final_norm"].at[0].add(1e-6)}
  hot = logits.controls(12, max_tokens=MAX_TOKENS)
  other = tiny.generator(C, **REFILL)(nudged, tiny.prompts(PROMPTS), hot, KEY)
  assert other.weights_checksum == checksum(nudged) != got.weights_checksum


@pytest.mark.parametrize(
  ("max_tokens", "want"),
  [(1, (1,)), (32, (32,)), (33, (32, 33)), (64, (32, 64)), (65, (32, 64, 65))],
)
def test_windows_double_up_to_the_limit(max_tokens, want):
  assert loop_state.windows_of(max_tokens) == want


def test_a_free_head_and_full_heads_decode_too():
  c = dataclasses.replace(C, tied_head=False, kv_heads=4, depth=1)
  settings = {"samples": 1, "max_tokens": 4, "stop_ids": (), "slots": 2}
  greedy = logits.controls(2, temperature=0.0, max_tokens=4)
  got = run(tiny.prompts(PROMPTS[:2]), controls=greedy, c=c, **settings)
  for prompt, (tokens, logp) in zip(PROMPTS, rows_of(got), strict=False):
    line = list(prompt)
    for token in tokens:
      padded = np.asarray(line + [0] * (10 - len(line)))
      row_V = next_logits(c, 10)(tiny.params(c), padded, len(line) - 1)
      assert token == int(np.argmax(row_V))
      line.append(token)
    assert not logp.any()


@pytest.mark.parametrize("limit", [1, 13])
def test_in_pieces_it_is_the_same_rollout(limit):
  """Across refills, attention windows and rows that end."""
  prompts, controls = tiny.prompts(PROMPTS), logits.controls(12, max_tokens=MAX_TOKENS)
  whole = run(prompts, **REFILL)
  plan = loop_state.Plan(**{k: REFILL[k] for k in ("samples", "max_tokens", "slots")})
  start = jax.jit(functools.partial(prefill.start, C, plan=plan))
  advance = jax.jit(functools.partial(decode.advance, C, plan=plan), donate_argnums=1)
  controls = tiny.stopping(controls, STOP)
  state, _ = start(tiny.params(C), prompts, controls, KEY)
  num_calls = 0
  while (np.asarray(state.row_S) != loop_state.IDLE).any():
    state = advance(tiny.params(C), state, controls, limit=limit)
    num_calls += 1
  assert num_calls == -(-int(whole.counts["steps"]) // limit)
  for name in ("tokens_BT", "length_B", "stopped_B"):
    np.testing.assert_array_equal(getattr(state, name), getattr(whole, name))
  np.testing.assert_allclose(state.logp_BT, whole.logp_BT, atol=2e-5)


def test_a_loop_copies_no_cache_and_makes_its_rotary_tables_once():
  """As XLA's CPU backend compiles it; the state is donated."""
  c = dataclasses.replace(C, depth=3)
  plan = loop_state.Plan(samples=SAMPLES, max_tokens=MAX_TOKENS)
  params = parameters.unstacked(tiny.params(c))
  asked = tiny.prompts(PROMPTS)
  controls = logits.controls(len(PROMPTS) * SAMPLES, max_tokens=MAX_TOKENS)
  state = jax.eval_shape(
    lambda: prefill.start(c, params, asked, controls, KEY, plan)[0]
  )
  program = jax.jit(
    lambda params, state: decode.advance(c, params, state, controls, plan, limit=16),
    donate_argnums=1,
  )
  text = program.lower(params, state).compile().as_text()
  windows = state.cache.windows
  assert len(windows) > 1
  shapes = {
    leaf.shape for leaf in jax.tree.leaves((state.cache.keys, state.cache.values))
  }
  for shape in shapes:
    assert not re.search(rf"f32\[{','.join(map(str, shape))}\]\S* copy\(", text)
  assert len(re.findall(r" sine\(", text)) == len(windows)
