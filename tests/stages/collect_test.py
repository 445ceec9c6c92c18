"""Which groups a step trains on, and what they cost; nothing is drawn by a model."""

import contextlib
import types

import jax
import numpy as np
import pytest

from configs import common
from r1jax import limits
from r1jax.errors import InputError
from r1jax.sampling import loop_state
from r1jax.stages import asking, collect, rollouts
from r1jax.types import Problem, Rollout

PROMPTS, SAMPLES, TOKENS = 3, 4, 5
ITEMS = [Problem(f"p{n}", "", "", "exact") for n in range(40)]
IDS = {problem.id: [n] for n, problem in enumerate(ITEMS)}


class Sampler:
  """Answers of ids that name problem and sample; every group is complete."""

  def __init__(self):
    self.keys = []

  def __call__(
    self, weights, prompts, problems, key, *, begun=None, wanted=None, on_complete
  ):
    rollout = self.dispatch(weights, prompts, problems, key)
    for q in range(len(prompts)):
      on_complete(q, self.completions(rollouts.cut(rollout, [q])))
    return rollout

  def dispatch(self, weights, prompts, problems, key, *, begun=None, wanted=None):
    self.keys.append(jax.random.key_data(key).tolist())
    rows = len(prompts) * SAMPLES
    tokens = np.zeros((rows, TOKENS), np.int32)
    tokens[:, 0] = np.repeat([ids[0] for ids in prompts], SAMPLES)
    tokens[:, 1] = np.tile(np.arange(SAMPLES), len(prompts))
    return Rollout(
      tokens_BT=tokens,
      logp_BT=np.zeros((rows, TOKENS), np.float32),
      length_B=np.full(rows, 2, np.int32),
      stopped_B=np.ones(rows, bool),
      done_B=np.ones(rows, bool),
      key_BX=np.zeros((rows, 2), np.uint32),
      counts=dict.fromkeys(loop_state.COUNTS, np.int32(7)),
      weights_checksum=np.uint32(weights),
      num_prompts=len(prompts),
    )

  def fetch(self, out, num_prompts):
    return rollouts.cut(out, range(num_prompts))

  def completions(self, rollout):
    lengths = zip(rollout.tokens_BT, rollout.length_B, strict=True)
    return [row[:n].tolist() for row, n in lengths]

  def texts(self, completions):
    return [" ".join(map(str, ids)) for ids in completions]


class Pool:
  """Of problem n the first n % 5 samples are right: of five two tell nothing."""

  names = ("accuracy",)

  def seen(self):
    return {}

  def score_some(self, texts, problems):
    pairs = [tuple(map(int, text.split())) for text in texts]
    parts = [{"accuracy": float(sample < n % 5)} for n, sample in pairs]
    return parts, {}, []


class InTurn(asking.InOrder):
  """Problems as they are numbered."""

  def __init__(self):
    pass

  def problem(self, place):
    return ITEMS[place % len(ITEMS)]


@pytest.fixture(autouse=True)
def _work(monkeypatch):
  made = limits.Work(10, 1.0)
  monkeypatch.setattr(limits, "rollout_work", lambda *args, **kwargs: made)


def settings(**changes):
  c = common.grpo()
  c.num_steps = 4
  c.rollout.prompts, c.rollout.group_size, c.rollout.max_tokens = (
    PROMPTS,
    SAMPLES,
    TOKENS,
  )
  c.filter.kind = "mixed"
  c.update_from_flattened_dict(changes)
  return c.to_dict()


def collector(source=None, **changes):
  run = types.SimpleNamespace(
    seed=0, machine=None, model=None, clock=lambda name: contextlib.nullcontext()
  )
  given = run, "zero", Sampler(), Pool(), source or InTurn(), IDS, settings(**changes)
  return collect.Collector(*given)


def step(one, number):
  return one(number, lambda: number, lambda: None)


def numbers(collected):
  return [int(problem.id[1:]) for problem in collected.problems]


def test_without_a_filter_all_is_taken_as_it_comes():
  one = collector(**{"filter.kind": "none"})
  for number in (1, 2):
    got = step(one, number)
    assert numbers(got) == list(range(3 * number - 3, 3 * number))
    assert got.num_trained == 3 and got.num_asked == 3 * number
    assert not any(key.startswith("filter/") for key in got.seen)
  assert one.held() == {}


def test_groups_without_a_signal_are_replaced():
  """Problems 0, 4 and 5 tell nothing: two rollouts are needed, and 9 of the third."""
  one = collector()
  got = step(one, 1)
  assert numbers(got) == [1, 2, 3, 0, 4, 5]
  assert got.num_trained == 3
  correct = got.parts_QG["accuracy"].sum(axis=1)
  np.testing.assert_array_equal(correct, [1, 2, 3, 0, 4, 0])
  assert got.texts[:SAMPLES] == ["1 0", "1 1", "1 2", "1 3"]
  assert got.rollout.tokens_BT[::SAMPLES, 0].tolist() == numbers(got)
  assert {k: v for k, v in got.seen.items() if "filter" in k} == {
    "filter/rounds": 2,
    "filter/asked": 6,
    "filter/dropped": 3,
    "filter/missing": 0,
    "filter/drawn_tokens": 6 * SAMPLES * 2,
  }
  assert got.work == limits.Work(20, 2.0)
  assert got.rollout.counts["steps"] == 14 and got.num_asked == 6
  # 6, 7 and 8 are all there is to ask for.
  again = step(one, 2)
  assert numbers(again) == [6, 7, 8] and again.seen["filter/rounds"] == 1


def test_more_than_enough_stands_behind():
  one = collector(**{"rollout.prompts": 2})
  got = step(one, 1)  # 0 and 1, then 2 and 3
  assert numbers(got) == [1, 2, 3, 0]
  assert got.num_trained == 2 and got.seen["filter/dropped"] == 1


def test_the_bound_holds_and_others_fill_the_batch(monkeypatch):
  """R14: 0, 4 and 5 are not trained on."""
  said = []

  def warn(level, text, times, *args):
    said.append(text % args)

  monkeypatch.setattr(collect.logging, "log_first_n", warn)
  one = collector(**{"rollout.prompts": 4, "filter.max_rounds": 1})
  one._asked = collect.Asked(np.int32(34), np.int32(1))  # 34, 35, 36 and 37
  got = step(one, 2)
  assert numbers(got) == [36, 37, 34, 35]
  assert got.num_trained == 2
  assert got.seen["filter/rounds"] == 1 and got.seen["filter/missing"] == 2
  assert len(said) == 1 and "step 2 trains on 2 groups instead of 4" in said[0]
  assert "config.filter.max_rounds" in said[0]


@pytest.mark.parametrize(
  "changes", [{}, {"rollout.oversample": 1}, {"rollout.lag": 1}], ids=str
)
@pytest.mark.parametrize("curriculum", [False, True])
def test_a_checkpoint_makes_the_next_step_the_same(changes, curriculum):
  """R10: what has been asked, what is on its way, and the rates."""

  def made():
    source = None
    if curriculum:
      source = asking.ByPassRate(ITEMS, seed=0, name="zero", decay=0.5, floor=0.01)
    return collector(source, **changes)

  whole = made()
  before = [step(whole, number) for number in (1, 2)]
  held = jax.tree.map(np.array, whole.held())
  assert jax.tree.structure(held) == jax.tree.structure(made().held())
  after = made()
  after.take_up(held, 3)
  for number in (3, 4):
    want, got = step(whole, number), step(after, number)
    assert numbers(got) == numbers(want) and got.seen == want.seen
    assert got.num_asked == want.num_asked
  assert whole._sampler.keys[-len(after._sampler.keys) :] == after._sampler.keys
  assert len(set(map(tuple, whole._sampler.keys))) == len(whole._sampler.keys)
  assert all(one.num_trained == PROMPTS for one in before)


def begun(length, *, done=()):
  """A rollout of 4 prompts of which those in `done` are complete."""
  rows = 4 * SAMPLES
  done_B = np.repeat([q in done for q in range(4)], SAMPLES)
  return Rollout(
    tokens_BT=np.ones((rows, TOKENS), np.int32),
    logp_BT=np.ones((rows, TOKENS), np.float32),
    length_B=np.full(rows, length, np.int32),
    stopped_B=done_B,
    done_B=done_B,
    key_BX=np.ones((rows, 2), np.uint32),
    counts=dict.fromkeys(loop_state.COUNTS, np.int32(0)),
    weights_checksum=np.uint32(0),
    num_prompts=4,
  )


def test_groups_that_are_too_old_begin_anew():
  """With max_age=1 a group goes on once; then it is drawn with a key of its own."""
  one = collector(**{"rollout.oversample": 1, "rollout.max_age": 1})
  asked, number = one._ask()
  assert (number, asked.since_Q.tolist()) == (1, [1, 1, 1, 1])
  one._left, restarted = one._leftover(asked, begun(2, done=(0, 1, 2)), number)
  assert restarted == 0 and one._left.place_Q.tolist() == [3, -1, -1, -1]
  assert one._left.rows.length_B[:SAMPLES].tolist() == [2] * SAMPLES
  asked, number = one._ask()
  assert asked.place_Q.tolist() == [3, 4, 5, 6]
  assert asked.since_Q.tolist() == [1, 2, 2, 2]
  left, restarted = one._leftover(asked, begun(4, done=(1, 2)), number)
  assert restarted == 1 and left.place_Q.tolist() == [3, 6, -1, -1]
  assert left.since_Q.tolist() == [-1, 2, -1, -1]
  for leaf in (left.rows.length_B, left.rows.has_key_B, left.rows.tokens_BT[:, 0]):
    assert not leaf[:SAMPLES].any() and leaf[SAMPLES : 2 * SAMPLES].all()


def test_where_nothing_is_held_the_step_says_what_was_asked():
  one = collector(**{"filter.kind": "none"})
  one.take_up({}, 3)
  assert numbers(step(one, 3)) == [6, 7, 8]


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"filter.kind": "mix"}, r"config\.filter\.kind='mix'.*'mixed'"),
    ({"rollout.lag": 2}, r"config\.rollout\.oversample=0 and lag=2"),
    ({"rollout.max_age": 2}, r"config\.rollout\.max_age=2: .*oversample=0"),
    ({"rollout.lag": 1}, r"config\.loss\.correction='none': .*lag=1"),
    (
      {"rollout.lag": 1, "loss.correction": "mask", "moe.replay": True},
      r"config\.moe\.replay does not go with",
    ),
  ],
)
def test_settings_that_do_not_go_together_are_refused(changes, said):
  with pytest.raises(InputError, match=said):
    collect.check(settings(**changes))
