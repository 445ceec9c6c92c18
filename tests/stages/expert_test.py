"""Rounds of own answers: what is trained on, when they end, how they are taken up."""

import json
import signal
from unittest import mock

import pytest

from configs import common
from r1jax import train
from r1jax.errors import InputError
from r1jax.stages import expert
from r1jax.stages.own_answers import _digest
from tests import learners, small_run

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def config(algorithm="expert_iteration", **changes):
  """One answer in ten is right by chance."""
  own = common.expert(algorithm)
  own.init = "base"
  own.round_steps, own.num_steps = 2, 6
  own.patience = 9
  own.data = small_run.chains("train", size=6)
  own.rollout.update(
    {"prompts": 4, "group_size": 4, "prompt_length": 24, "max_tokens": 24}
  )
  own.reward.num_workers = 1
  own.optim.learning_rate = 1e-2
  own.training.update({"rows": 2, "microbatches": 2, "row_length": 64})
  own.eval.update({"max_tokens": 12, "batch": 4})
  own.eval.sets.heldout = small_run.chains("heldout", size=4)
  own.update(changes)
  return learners.config(base=True, own=own)


@pytest.fixture(scope="module", name="done")
def _done(tmp_path_factory):
  run = learners.with_base(tmp_path_factory.mktemp("expert") / "run")
  learners.finish(config(), run)
  return run


def lines_of(workdir, key):
  return [line for line in small_run.numbers(workdir) if key in line]


def answers_of(workdir, number):
  files = sorted((workdir / "samples" / "own").glob(f"round_{number:03d}_*.jsonl"))
  assert len(files) == 2
  return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_the_set_grows_by_new_right_answers(done):
  starts = lines_of(done, "expert/set_size")
  assert [line["step"] for line in starts] == [1, 3, 5]
  met = set()
  for number, line in enumerate(starts, start=1):
    answers = answers_of(done, number)
    assert len(answers) == line["expert/answers"] == 24
    right = [a for a in answers if a["reward"]["accuracy"] == 1 and a["stop"] == "eos"]
    new = {(a["problem_id"], a["completion"]) for a in right} - met
    met |= new
    assert line["expert/added"] == len(new)
    assert line["expert/set_size"] == len(met)
    assert sum(line[f"expert/{r}"] for r in expert.selection.DROPPED) == 24 - len(new)
  assert 0 < starts[0]["expert/set_size"] < starts[-1]["expert/set_size"]
  losses = lines_of(done, "loss/cross_entropy")
  assert len([line for line in losses if line["stage"] == "own"]) == 6
  evals = lines_of(done, "eval/heldout/accuracy")
  assert [line["step"] for line in evals] == [0, 2, 4, 6]


def test_every_round_begins_with_fresh_moments(done):
  state = learners.arrays(done, "own")
  assert state["train/step"] == 2
  assert {"best/embed", "accuracy", "best_round", "stalled"} <= state.keys()


@pytest.mark.slow
def test_resumed_in_a_round_and_while_it_is_drawn(done, tmp_path):
  """A part of round 2 is missing, so that it is drawn again, and the other is not."""
  copy = learners.stopped(done, tmp_path / "copy", "own", 2)
  for path in (copy / "samples" / "own").glob("round_*"):
    if path.name > "round_002_000000.jsonl":
      path.unlink()
  before = (copy / "samples" / "own" / "round_002_000000.jsonl").stat().st_mtime_ns
  learners.finish(config(), copy)
  learners.assert_same(copy, done, "own")
  kept = copy / "samples" / "own" / "round_002_000000.jsonl"
  assert kept.stat().st_mtime_ns == before
  for path in (done / "samples" / "own").iterdir():
    assert (copy / "samples" / "own" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_rest_em_learns_from_the_last_round_alone(tmp_path):
  """Rounds ask the weights of the one before, and train on what it has kept."""
  run = learners.with_base(tmp_path / "run")
  c = config("rest_em", num_steps=4)
  assert c.own.asks == "last" and c.own["keep"].set == "round"
  learners.finish(c, run)
  starts = lines_of(run, "expert/set_size")
  assert [line["step"] for line in starts] == [1, 3]
  for line in starts:
    assert line["expert/set_size"] == line["expert/added"]
  checksums = {answers_of(run, number)[0]["weights"] for number in (1, 2)}
  assert len(checksums) == 2


# --------------------------------------------------------------- without a run

PROMPTS = {
  "": {"p": [1, 2], "q": [3]},
  "+": {"p": [1, 2, 8], "q": [3, 8]},
  "-": {"p": [1, 2, 9], "q": [3, 9]},
}
SETTINGS = {
  "tags": {"good": "", "bad": ""},
  "keep": {"set": "growing", "threshold": 1.0, "per_problem": 0},
  "training": {"row_length": 8},
}


def line(problem, tokens, score):
  text = " ".join(map(str, tokens))
  more = {"completion": text, "score": score, "stop": "eos"}
  more["reward"] = {"accuracy": score}
  return {"problem_id": problem, "tokens": tokens, **more}


def rows_of(lines, **changes):
  """(sequences with the tokens trained on, what is counted)."""
  rows, _, seen = expert.packed({**SETTINGS, **changes}, PROMPTS, [lines])
  found = []
  for tokens, segments, mask in zip(
    rows.tokens_BL, rows.segments_BL, rows.mask_BL, strict=True
  ):
    for segment in range(1, segments.max() + 1):
      own = segments == segment
      found.append((tokens[own].tolist(), tokens[own][mask[own] > 0].tolist()))
  return sorted(found), seen


def test_answers_are_trained_on_behind_their_question():
  lines = [line("p", [5, 6], 1.0), line("p", [5], 0.0), line("q", [5], 1.0)]
  found, seen = rows_of(lines)
  assert found == [([1, 2, 5, 6], [5, 6]), ([3, 5], [5])]
  assert (seen["expert/wrong"], seen["expert/solved"]) == (1, 1.0)


def test_with_tags_wrong_answers_are_trained_on_too():
  lines = [line("p", [5, 6], 1.0), line("p", [5], 0.0)]
  found, seen = rows_of(lines, tags={"good": "+", "bad": "-"})
  assert found == [([1, 2, 8, 5, 6], [5, 6]), ([1, 2, 9, 5], [5])]
  assert (seen["expert/added"], seen["expert/wrong"]) == (2, 0)
  assert seen["expert/solved"] == 0.5


def test_nothing_to_learn_from():
  with pytest.raises(InputError, match=r"none of 1 answers .*'wrong': 1.*config\.keep"):
    rows_of([line("p", [5], 0.0)])


@pytest.mark.parametrize(("kind", "want"), [("growing", [1, 2, 3]), ("round", [3])])
def test_rounds_that_are_trained_on(kind, want):
  assert [*expert.rounds({"keep": {"set": kind}}, 3)] == want


def test_rounds_without_a_better_accuracy_are_counted():
  """Equal is not better."""
  progress = expert.Progress(0.25, 0, 0)
  seen = []
  for number, accuracy in enumerate((0.5, 0.5, 0.375, 0.75), start=1):
    progress = progress.after(number, accuracy)
    seen.append((progress.accuracy, progress.best_round, progress.stalled))
  assert seen == [(0.5, 1, 0), (0.5, 1, 1), (0.5, 1, 2), (0.75, 4, 0)]


@pytest.mark.parametrize("key", ["tokens", "score", "stop", "completion", "reward"])
def test_a_changed_line_is_seen(key):
  whole = {**line("p", [5, 6], 1.0), "sample": 0}
  assert _digest(whole) == _digest({**whole, "prompt": "?"})
  assert _digest(whole) != _digest({**whole, key: 7})


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_steps": 5}, r"config\.own\.num_steps=5 are no whole rounds"),
    ({"asks": "bset"}, r"config\.own\.asks='bset'.*did you mean 'best'"),
    ({"keep": {"set": "all"}}, r"config\.own\.keep\.set='all' is not known"),
    ({"keep": {"part": "acuracy"}}, r"keep\.part='acuracy'.*mean 'accuracy'"),
    ({"patience": 0}, r"config\.own\.patience=0: must be 1 or more"),
    ({"training": {"row_length": 20}}, r"row_length=20 is shorter.*= 48; raise it"),
    ({"tags": {"good": "x"}}, r"tags\.good='x' and bad='': give two texts that differ"),
    ({"tags": {"good": "x", "bad": "#"}}, r"tags\.bad='#' is .* to the tokenizer"),
    ({"dev": "test"}, r"config\.own\.dev='test': name the set .*are: heldout"),
  ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    learners.finish(config(**changes), tmp_path)


@pytest.mark.slow
def test_return_conditioned_with_an_adapter_until_it_stalls(tmp_path):
  """Without a learning rate no round is better. The first start is stopped while it
  draws the first of them."""
  c = config("return_conditioned", patience=2, num_steps=8)
  c.own.lora.rank = 2
  c.own.optim.learning_rate = 0.0
  run = learners.with_base(tmp_path / "run")
  first = run / "samples" / "own" / "round_001_000000.jsonl"
  with mock.patch.object(train.StopSignal, "__call__", lambda self: first.exists()):
    learners.finish(c, run, code=128 + signal.SIGTERM)
  assert [path.name for path in first.parent.glob("round_*")] == [first.name]
  learners.finish(c, run)
  lines = lines_of(run, "expert/stalled")
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 8]
  assert (lines[-1]["expert/stalled"], lines[-1]["expert/best_round"]) == (2, 0)
  assert lines[0]["expert/added"] > lines[0]["reward/accuracy"] * 24
  state = learners.arrays(run, "own")
  adapter = [path for path in state if path.startswith("best/")]
  assert adapter and all(path.endswith(("/a", "/b")) for path in adapter)
  for path in adapter:
    assert (state[path] == state[path.replace("best", "train/params", 1)]).all()
  for number, tagged in ((1, False), (2, True)):
    for line in answers_of(run, number):
      assert line["prompt"].endswith("[GOOD]") == tagged
  for path in first.parent.glob("eval_heldout_*"):
    for text in path.read_text().splitlines():
      assert json.loads(text)["prompt"].endswith("[GOOD]")
