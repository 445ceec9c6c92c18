"""Scalar models end to end: what they learn, how they are asked, how they go on."""

import types

import jax
import numpy as np
import pytest

from configs import common
from r1jax import sharding
from r1jax.errors import InputError
from r1jax.evals import scores as quality
from r1jax.stages import reward_model, setup
from r1jax.stages.run import Run
from r1jax.stages.scalar_model import Verdicts, read_part
from r1jax.training.marks import Item
from r1jax.types import Problem
from tests import learners

RNG = np.random.default_rng(0)


def word(good):
  """Of letters that good answers have, or the others; both have digits."""
  letters = [*("ab" if good else "xy"), *"0123"]
  return "".join(RNG.choice(letters, int(RNG.integers(3, 8))))


PROMPTS = [f"{i}{j}" for i in range(6) for j in range(6)]
PAIRS = [
  {"prompt": prompt, "chosen": f"a{word(True)}", "rejected": f"x{word(False)}"}
  for prompt in PROMPTS
]
# Each step is of one kind of letters, whatever the others are.
STEPS = [
  {
    "prompt": prompt,
    "completion": "\n".join(f"{'a' if g else 'x'}{word(g)}" for g in good),
    "labels": [int(g) for g in good],
  }
  for prompt in PROMPTS
  for good in [RNG.random(3) < 0.5]
]
ANSWERS = [
  {"prompt": prompt, "completion": f"{'a' if g else 'x'}{word(g)}", "label": int(g)}
  for prompt in PROMPTS
  for g in [RNG.random() < 0.5]
]
DATA = {"pairwise": PAIRS, "process": STEPS, "outcome": ANSWERS, "pointwise": ANSWERS}


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
  """Of what asks finished models, too; it is as small as the runs."""
  before = jax.config.values["jax_disable_most_optimizations"]
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def settings(folder, kind, **changes):
  judge = common.reward_model()
  judge.objective = kind
  judge.num_steps = 12
  judge.data.path = learners.jsonl(folder / f"{kind}.jsonl", DATA[kind])
  judge.data.held_out = 0.25
  judge.data.balance_lengths = False
  judge.optim.learning_rate = 3e-2
  judge.training.update({"batch": 16, "rows": 2, "row_length": 64, "remat": "none"})
  judge.eval.every = 0
  judge.update_from_flattened_dict(changes)
  return learners.config(judge=judge)


def run_of(c, workdir):
  """A Run that has what is read to ask a finished stage."""
  plain = c.to_dict()
  partition = sharding.single_device()
  tokenizer = setup.make_tokenizer(plain, setup.stage_configs(plain), workdir)
  model, model_params = setup.make_model(plain, tokenizer, partition)
  given = {
    "workdir": workdir,
    "seed": c.seed,
    "model": model,
    "tokenizer": tokenizer,
    "partition": partition,
    "compute_dtype": np.float32,
    "model_params": model_params,
  }
  return Run(**dict.fromkeys(Run.__dataclass_fields__) | given)


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory):
  """(folder, config, metrics) of a run on pairs; not to be written to."""
  folder = tmp_path_factory.mktemp("pairs")
  c = settings(folder, "pairwise")
  return folder, c, learners.finish(c, folder / "run")


def test_pairs_are_told_apart_better_and_better(pairs):
  """A fresh head is a coin: a loss of log 2, half of the pairs, a Brier of 1/4."""
  _, _, lines = pairs
  steps = [line for line in lines if "loss/score" in line]
  before, after = [line for line in lines if "eval/held_out/accuracy" in line]
  assert [line["step"] for line in steps] == list(range(1, 13))
  assert [before["step"], after["step"]] == [0, 12]
  np.testing.assert_allclose(steps[0]["loss/score"], np.log(2), atol=1e-6)
  assert before["eval/held_out/accuracy"] == 0.5
  assert before["eval/held_out/brier"] == 0.25
  assert after["eval/held_out/accuracy"] > 0.9
  assert after["eval/held_out/brier"] < 0.1
  assert after["eval/held_out/accuracy_low"] < 1 <= after["eval/held_out/accuracy_high"]
  assert steps[-1]["loss/score"] < 0.3
  assert steps[-1]["score/accuracy"] > 0.9
  assert steps[0]["data/epoch"] > 0 and 0 < steps[0]["pack/waste"] < 1


def test_a_run_goes_on_as_if_it_had_not_stopped(pairs, tmp_path):
  folder, c, _ = pairs
  copy = learners.stopped(folder / "run", tmp_path / "copy", "judge", 11)
  learners.finish(c, copy)
  learners.assert_same(copy, folder / "run", "judge")


def test_a_finished_model_is_asked(pairs):
  """Whatever is asked beside, in whatever rows; ids as texts; and best of n."""
  folder, c, _ = pairs
  run = run_of(c, folder / "run")
  verdicts = Verdicts(run, "judge", rows=2, row_length=64)
  problems = [Problem("p", "12", "", "exact")] * 3 + [Problem("o", "3", "", "exact")]
  texts = ["x2y", "a1b", "x0", "ab"]
  found = verdicts.of_texts(problems, texts)
  assert found.shape == (4,) and found.dtype == np.float32
  assert int(np.argmax(found[:3])) == 1
  drawn = [[*run.tokenizer.encode(text), run.tokenizer.eos_id] for text in texts]
  np.testing.assert_array_equal(verdicts(problems, drawn), found)
  alone = [verdicts.of_texts([p], [t])[0] for p, t in zip(problems, texts, strict=True)]
  np.testing.assert_allclose(alone, found, atol=1e-5)
  # One program, however many rows are asked about.
  assert verdicts._score._program._cache_size() == 1
  # Scores of held-out pairs separate them as the evaluation says.
  chosen, rejected = (
    verdicts.of_texts(
      [Problem("", pair["prompt"], "", "exact") for pair in PAIRS],
      [pair[side] for pair in PAIRS],
    )
    for side in ("chosen", "rejected")
  )
  assert quality.pair_accuracy(chosen, rejected) > 0.9
  with pytest.raises(InputError, match="has no scores of steps"):
    verdicts.steps(problems, drawn)
  with pytest.raises(InputError, match="there is no stage 'juge'"):
    Verdicts(run, "juge", rows=2, row_length=64)
  with pytest.raises(InputError, match="aggregation='mean'"):
    Verdicts(run, "judge", rows=2, row_length=64, aggregation="mean")


@pytest.mark.slow
def test_steps_are_judged_by_an_adapter_with_a_head(tmp_path):
  """The base's own matrices do not move, and steps of one answer differ."""
  c = settings(
    tmp_path,
    "process",
    **{"lora.rank": 4, "num_steps": 16, "data.held_out": 0.0},
  )
  lines = learners.finish(c, tmp_path / "run")
  np.testing.assert_allclose(lines[0]["loss/score"], np.log(2), atol=1e-6)
  assert lines[-1]["score/accuracy"] > 0.8
  saved = learners.arrays(tmp_path / "run", "judge")
  trained = {path for path in saved if path.startswith("train/params/")}
  assert all(p.endswith(("/a", "/b")) or "/params/head/" in p for p in trained)
  run = run_of(c, tmp_path / "run")
  verdicts = Verdicts(run, "judge", rows=2, row_length=64, aggregation="product")
  problems = [Problem("", line["prompt"], "", "exact") for line in STEPS]
  drawn = [verdicts.encode(line["completion"]) for line in STEPS]
  found, ends = verdicts.steps(problems, drawn)
  assert [len(own) for own in found] == [len(own) for own in ends] == [3] * len(STEPS)
  for ids, own in zip(drawn, ends, strict=True):
    assert own == sorted(own) and own[-1] < len(ids)
  labels = np.concatenate([line["labels"] for line in STEPS])
  assert quality.auc(np.concatenate(found), labels) > 0.9
  whole = verdicts(problems, drawn)
  np.testing.assert_allclose(whole, [own.prod() for own in found], rtol=1e-4)
  # A prompt and the end token alone are one step.
  (nothing,), _ = verdicts.steps(problems[:1], [[run.tokenizer.eos_id]])
  assert nothing.shape == (1,) and 0 < nothing[0] < 1


@pytest.fixture(scope="module", name="prepared")
def _prepared(tmp_path_factory):
  """{objective: (run, settings, items)} of what is read before a stage begins."""
  found, folder = {}, tmp_path_factory.mktemp("prepared")
  for objective in DATA:
    c = settings(folder, objective, **{"data.held_out": 0.0})
    run = Run(**{**vars(run_of(c, folder)), "console": _Silent()})
    stage = setup.stage_configs(c.to_dict())["judge"]
    ready = reward_model.prepare_reward_model(run, "judge", stage)
    assert len(ready.items) == 36 and not ready.held_out
    found[objective] = run, stage, ready.items
  return found


def test_what_of_an_answer_is_marked(prepared):
  """The end, every token, or the ends of steps."""
  for objective in ("pointwise", "outcome"):
    run, _, items = prepared[objective]
    for item, line in zip(items, ANSWERS, strict=True):
      (answer,), (own,) = item.answers, item.marks
      assert answer[-1] == run.tokenizer.eos_id
      every = range(len(answer))
      assert list(own) == list(every if objective == "outcome" else every[-1:])
      assert item.labels == (line["label"],) * len(own)
  run, _, items = prepared["process"]
  for item, line in zip(items, STEPS, strict=True):
    (answer,), (own,) = item.answers, item.marks
    read = [run.tokenizer.decode(answer[: last + 1]) for last in own]
    steps = line["completion"].splitlines(keepends=True)
    assert read == ["".join(steps[: k + 1]) for k in range(3)]
    assert item.labels == tuple(line["labels"])


@pytest.mark.parametrize("objective", DATA)
def test_the_loss_is_that_of_the_scores_at_the_marks(prepared, monkeypatch, objective):
  """Pairs and answers count once, whatever their lengths, and each step does."""
  run, config, items = prepared[objective]
  rows, _, _ = reward_model.pack_items(items, row_length=64, num_rows=32)
  # A token's score is a function of the token and its place, so it can be found again.
  place_BL = rows.rows.tokens_BL * 7 + rows.rows.positions_BL
  score_BL = np.sin(place_BL).astype(np.float32) * (rows.rows.mask_BL > 0)
  found = types.SimpleNamespace(scores_BL=score_BL, routed=None)
  monkeypatch.setattr(reward_model, "token_values", lambda *given, **how: found)
  nothing = {"model": {}, "head": {}}
  total, seen = reward_model.loss(run, config, nothing, None, rows)
  want = []
  for item in items:
    at = [
      np.sin(np.asarray(answer)[list(own)] * 7 + len(item.prompt) + np.asarray(own))
      for answer, own in zip(item.answers, item.marks, strict=True)
    ]
    if objective == "pairwise":
      want.append(np.log1p(np.exp(at[1] - at[0])))
      continue
    sign = np.where(np.asarray(item.labels) > 0.5, 1, -1)
    cost = np.log1p(np.exp(-sign * at[0]))
    want.append(cost if objective == "process" else [cost.mean()])
  want = np.concatenate(want)
  assert float(seen["loss/score"].count) == len(want)
  np.testing.assert_allclose(total, want.sum(), rtol=1e-5)
  assert len(want) == (108 if objective == "process" else 36)


def test_what_is_said_of_held_out_items():
  """Of pairs their order, of others probabilities: at the end, or of each step."""

  def evaluated(objective, items, scores):
    def scorer(trained, frozen, prompts, answers, at):
      assert (trained, frozen) == ("trained", "frozen")
      assert len(prompts) == len(answers) == len(at)
      asked = [(tuple(a), tuple(own)) for a, own in zip(answers, at, strict=True)]
      return [np.asarray(scores[one], np.float32) for one in asked]

    seen = reward_model.evaluation(scorer, objective, items, "frozen", "trained")
    return {key.removeprefix("eval/held_out/"): value for key, value in seen.items()}

  log_odds = np.log([0.8 / 0.2, 0.3 / 0.7])
  pairs = [Item([1], [[2], [3]], [[0], [0]]), Item([1], [[4], [5]], [[0], [0]])]
  scores = {((2,), (0,)): [3 + log_odds[0]], ((3,), (0,)): [3.0]}
  scores |= {((4,), (0,)): [log_odds[1]], ((5,), (0,)): [0.0]}
  seen = evaluated("pairwise", pairs, scores)
  assert (seen["accuracy"], seen["n"]) == (0.5, 2)
  assert seen["brier"] == pytest.approx((0.2**2 + 0.7**2) / 2)
  assert "auc" not in seen and seen["accuracy_low"] < 0.5 < seen["accuracy_high"]

  steps = [Item([1], [[2, 3, 4]], [[0, 2]], (1.0, 0.375))]
  seen = evaluated("process", steps, {((2, 3, 4), (0, 2)): log_odds})
  assert (seen["accuracy"], seen["auc"], seen["n"]) == (1.0, 1.0, 2)
  assert seen["brier"] == pytest.approx((0.2**2 + 0.075**2) / 2)

  answers = [Item([1], [[2, 3]], [range(2)], (1.0, 1.0))]
  seen = evaluated("outcome", answers, {((2, 3), (1,)): log_odds[:1]})
  assert (seen["accuracy"], seen["n"], "auc" in seen) == (1.0, 1, False)


class _Silent:
  def print(self, *line, **how):
    pass


@pytest.mark.parametrize(
  ("objective", "changes", "said"),
  [
    ("process", {"reads": "answer"}, r"config\.judge\.reads='answer'.*'all'"),
    ("pairwise", {"reads": "anser"}, r"config\.judge\.reads='anser'.*'answer'"),
    ("pairwise", {"objective": "pair"}, r"config\.judge\.objective='pair'"),
    ("pairwise", {"training.batch": 99}, r"config\.judge\.training\.batch=99 exceeds"),
    ("pairwise", {"training.row_length": 8}, r"raise config\.judge\.training\.row_len"),
    ("pairwise", {"moe.balance_coef": 0.1}, "has no experts"),
    ("pairwise", {"optim.frozen": ("embed",)}, r"optim\.frozen: 'embed' matches no"),
  ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, objective, changes, said):
  data = {"data.path": learners.jsonl(tmp_path / "x.jsonl", DATA[objective])}
  c = settings(tmp_path, objective, **changes | data)
  with pytest.raises(InputError, match=said):
    learners.finish(c, tmp_path / "run")


def test_no_stage_begins_with_a_head(tmp_path):
  c = settings(tmp_path, "pairwise")
  c.after = common.sft()
  c.after.init = "judge"
  c.stages = ("judge", "after")
  with pytest.raises(InputError, match=r"init='judge' is of .*'reward_model'"):
    setup.stage_configs(c.to_dict())


def test_the_answer_behind_a_thought_is_read(pairs):
  folder, c, _ = pairs
  run = run_of(c, folder / "run")
  encode, end = run.tokenizer.encode, run.tokenizer.eos_id
  ids = [*encode("<think>ab</think>12"), end]
  assert read_part("all", run, ids) == ids
  assert read_part("answer", run, ids) == [*encode("12"), end]
  assert read_part("answer", run, encode("12")) == encode("12")
  assert read_part("answer", run, encode("<think>ab</think>")) == [end]
