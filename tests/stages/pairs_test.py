"""Judged answers as data: what is asked, what is kept, what a stop leaves as it is."""

import contextlib
import dataclasses
import io
import json
import shutil
import signal
import threading
import types
from unittest import mock

import numpy as np
import pytest
from rich.console import Console

from configs import common
from r1jax import metrics, train
from r1jax.data import judged
from r1jax.data.problems import ProblemSet
from r1jax.data.tokenizer import train_sentencepiece
from r1jax.errors import InputError
from r1jax.rewards import endpoint, judge
from r1jax.stages import judgements, made, model_judge, pairs, setup
from r1jax.stages.run import Run, Stopped
from r1jax.types import Problem
from r1jax.watchdog import PhaseClock, Watchdog
from tests import learners, small_run
from tests.rewards import endpoint_test

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(name="run")
def _run(tmp_path):
  """What the stage reads of a Run; the rest of it is None."""
  watchdog = Watchdog(None, limit_s=None)
  given = {
    "workdir": tmp_path / "run",
    "stages": ("made",),
    "seed": 0,
    "tokenizer": train_sentencepiece(["abcg <>/think"], path=tmp_path / "t.model"),
    "model_params": lambda: None,
    "writer": metrics.Writer(tmp_path / "run", tensorboard=False),
    "clock": PhaseClock(watchdog),
    "watchdog": watchdog,
    "console": Console(file=io.StringIO()),
    "stop_asked": lambda: False,
  }
  return Run(**dict.fromkeys(field.name for field in dataclasses.fields(Run)) | given)


def config(labels="pairwise", **changes):
  c = common.pairs(labels)
  c.rollout.update({"prompts": 2, "group_size": 2})
  c.update_from_flattened_dict(changes)
  return c.to_dict()


def line(problem, sample, text, *, points=0.0, stop="eos"):
  """An answer as `OwnAnswers` has it."""
  return {
    "problem_id": f"p/{problem}",
    "sample": sample,
    "completion": text,
    "length": len(text),
    "stop": stop,
    "score": points,
    "reward": {"total": points},
    "weights": 1,
    "tokens": [1],
  }


def lines_of(*groups):
  """One group a problem: texts, or (text, points) or whole lines' changes."""
  return [
    line(problem, sample, **({"text": one} if isinstance(one, str) else one))
    for problem, group in enumerate(groups)
    for sample, one in enumerate(group)
  ]


@contextlib.contextmanager
def nothing():
  yield types.SimpleNamespace(warm=lambda problems: None, seen=dict)


def make(run, c, lines, ask, monkeypatch, *, name="made"):
  """Runs the stage on answers that are there; the lines of its product."""
  if ask is not None and not hasattr(ask, "counts"):
    ask.counts = {}  # of one that is scripted
  count = len(lines) // c["rollout"]["group_size"]
  problems = [
    Problem(f"p/{i}", f"q{i}", "", "exact", meta={"category": f"of {i}"})
    for i in range(count)
  ]
  own = types.SimpleNamespace(
    drawn=lambda number, step, weights, prompts: (
      lines,
      dict.fromkeys(("timeouts", "crashes", "errors"), 0),
      {},
    )
  )
  monkeypatch.setattr(pairs, "OwnAnswers", lambda *given, **how: own)
  prepared = pairs.Prepared(
    problems=ProblemSet(problems, {}, "texts/train"),
    prompts={},
    sampler=types.SimpleNamespace(weights=lambda params: None),
    completer=None,
    pool=nothing(),
    ask=None if ask is None else lambda: ask,
  )
  run.product(name).parent.mkdir(parents=True, exist_ok=True)
  pairs.make_pairs(run, name, c, prepared)
  return read(run.product(name))


def read(path):
  return [json.loads(one) for one in path.read_text().splitlines()]


def seen(run):
  """The one line of metrics."""
  (found,) = metrics.read(run.workdir)
  assert (found["stage"], found["step"]) == ("made", 1)
  return found


def dropped(run):
  """{filter: problems} of the examples."""
  found = {}
  for one in read(run.product("made").with_name("dropped.jsonl")):
    found.setdefault(one["filter"], []).append(one["problem_id"])
  return found


class Judging(endpoint_test.Handler):
  """Counts the letters g of both answers; "a?" makes it forget the form."""

  def answer(self, act, body):
    given = json.loads(body["messages"][-1]["content"])
    steps = given["A"].count("g") - given["B"].count("g")
    points = float(np.clip(steps, -2, 2))
    names = {value: name for name, value in judge.PREFERENCE.items()}
    said = json.dumps({"analysis": "", "verdict": names[points]})
    if "?" in given["A"]:
      said = "A"
    reply = {"choices": [{"message": {"content": said}}]}
    self.send(200, json.dumps(reply))


@pytest.fixture(name="server")
def _server(monkeypatch):
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  monkeypatch.setenv("JUDGE_KEY", endpoint_test.SECRET)
  monkeypatch.setattr(endpoint_test, "Handler", Judging)
  with endpoint_test.Server() as server:
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    yield server
    server.shutdown()
    serving.join()


COMPARED = lines_of(
  ("<think>ggg</think>a", "<think></think>gg"),  # the thought is not judged
  ("a", "g"),
  ({"text": "gg", "stop": "length"}, "a"),
  ("gg", "gg"),
  ("gg", "a?"),
  ("ccgggg", "cc"),
  ("gg", "aaa"),
)


def test_a_server_compares_answers(run, server, monkeypatch):
  """Both orders of each, four times; of lengths one side is cut to the other."""
  ask = endpoint.of_section(endpoint_test.section(server, temperature=0.7))
  found = make(run, config(), COMPARED, ask, monkeypatch)
  about = {"gap": 2.0, "problem_id": "p/0", "category": "of 0", "prompt": "q0"}
  assert [one["problem_id"] for one in found] == ["p/0", "p/6"]
  assert found[0] == about | {
    "chosen": "<think></think>gg",
    "rejected": "<think>ggg</think>a",
  }
  assert dropped(run) == {
    "truncated": ["p/2"],
    "duplicates": ["p/3"],
    "no_pair": ["p/2", "p/3"],
    "no_verdict": ["p/4"],
    "small_gap": ["p/1"],
    "balance_lengths": ["p/5"],
  }
  counts = seen(run)
  assert (counts["pairs/answers"], counts["pairs/kept"]) == (14, 2)
  assert counts["pairs/dropped_no_pair"] == 2
  assert counts["pairs/longer_chosen"] == 0.5
  assert counts["pairs/gap"] == 2.0
  assert counts["judge/first_shown_gap"] == 0.0
  assert counts["judge/calls"] == len(server.seen) == 5 * 4
  asked = [json.loads(body["messages"][-1]["content"]) for *_, body in server.seen]
  of_last = [one for one in asked if one["request"] == "q6"]
  assert sorted(one["A"] for one in of_last) == ["aaa", "aaa", "gg", "gg"]


def test_what_was_judged_is_not_asked_again(run, server, monkeypatch):
  """Whatever was lost: the product, one part of the judgements, half of one."""
  section = endpoint_test.section(server, temperature=0.7)
  make(run, config(), COMPARED, endpoint.of_section(section), monkeypatch)
  product = run.product("made").read_bytes()
  calls = len(server.seen)
  parts = sorted((run.workdir / "samples" / "made").iterdir())
  assert [part.name for part in parts] == [f"judged_{i:06d}.jsonl" for i in range(4)]
  kept = {part: part.read_bytes() for part in parts}
  for lost, more in ((None, 0), (parts[0], 8), (parts[2], 8)):
    run.product("made").unlink()
    if lost is not None:
      lost.write_bytes(kept[lost][:-3])
    make(run, config(), COMPARED, endpoint.of_section(section), monkeypatch)
    assert len(server.seen) == calls + more
    calls += more
    assert run.product("made").read_bytes() == product
    assert {part: part.read_bytes() for part in parts} == kept
    seen(run)  # one line, as before


def test_parts_are_of_the_answers_that_are_asked(run, monkeypatch):
  """Others, drawn anew, are judged anew."""
  asked = []

  def ask(prompts):
    asked.extend(prompts)
    said = json.dumps({"analysis": "", "verdict": "A>>B"})
    return [said for _ in prompts]

  c = config(**{"choose.balance_lengths": False, "choose.min_gap": 0.0})
  with pytest.raises(InputError, match=r"nothing is left of 2 answers.*small gap 1"):
    make(run, c, lines_of(("a", "b")), ask, monkeypatch)  # it likes a place alone
  assert len(asked) == 4
  with pytest.raises(InputError, match="nothing is left"):
    make(run, c, lines_of(("a", "c")), ask, monkeypatch)
  assert len(asked) == 8


def test_a_stop_keeps_what_was_judged(run, monkeypatch):
  lines = lines_of(*[("gg", "a")] * 3)
  stops = iter([False, True])
  asked = []

  def ask(prompts):
    asked.append(len(prompts))
    found = []
    for _, user in prompts:
      is_first = "g" in json.loads(user["content"])["A"]
      verdict = "A>>B" if is_first else "B>>A"
      found.append(json.dumps({"analysis": "", "verdict": verdict}))
    return found

  c = config(**{"choose.balance_lengths": False})
  stopping = dataclasses.replace(run, stop_asked=lambda: next(stops))
  with pytest.raises(Stopped, match="1 of 2 parts of its judgements are kept"):
    make(stopping, c, lines, ask, monkeypatch)
  assert not run.product("made").exists()
  found = make(run, c, lines, ask, monkeypatch)
  assert [one["chosen"] for one in found] == ["gg"] * 3
  assert asked == [8, 4]


def test_answers_are_safe_where_all_say_so(run, monkeypatch):
  """The whole answer is judged, and verdicts that differ are none."""
  given = []

  def ask(prompts):
    replies = []
    for _, user in prompts:
      text = json.loads(user["content"])["answer"]
      given.append(text)
      bad = "bbb" in text or ("b" in text and given.count(text) > 1)
      verdict = "unsafe" if bad else "safe"
      replies.append(json.dumps({"analysis": "", "verdict": verdict}))
    return replies

  c = config("pointwise", **{"judge.judgements": 2, "choose.per_problem": 2})
  lines = lines_of(("<think>bbb</think>a", "a"), ("b", " "))
  found = make(run, c, lines, ask, monkeypatch)
  assert [(one["completion"], one["label"]) for one in found] == [
    ("<think>bbb</think>a", 0),
    ("a", 1),
  ]
  assert dropped(run) == {"no_answer": ["p/1"], "no_agreement": ["p/1"]}
  assert seen(run)["pairs/label_mean"] == 0.5
  loaded, _ = judged.load_judged(objective="pointwise", path=run.product("made"))
  assert [one.labels for one in loaded] == [(0.0,), (1.0,)]


POINTS = lines_of(
  [
    {"text": text, "points": points}
    for text, points in (("aaaa", 1.0), ("aa", 1.0), ("bb", 0.0), ("b", 0.5))
  ],
  [{"text": text, "points": 0.0} for text in ("a", "b", "c", "g")],
)


@pytest.mark.parametrize(
  ("kind", "changes", "want", "gap"),
  [
    ("best_worst", {}, ("aaaa", "bb"), 1.0),
    ("right_wrong", {"choose.threshold": 1.0}, None, None),
    ("shortest_longest", {"choose.threshold": 1.0}, ("aa", "aaaa"), 2.0),
  ],
)
def test_points_decide(run, monkeypatch, kind, changes, want, gap):
  """Without a judge nobody is asked, and nothing is kept in parts."""
  settings = {"judge.kind": "reward", "judge.reads": "all", "choose.kind": kind}
  settings |= POINTS_OF
  settings |= {"choose.min_gap": 0.0, "choose.balance_lengths": False}
  c = config(**settings, **changes, **{"rollout.group_size": 4})
  pairs.check(c)
  (found,) = make(run, c, POINTS, None, monkeypatch)
  if want is None:
    assert found["chosen"][0] == "a" and found["rejected"][0] == "b"
  else:
    assert (found["chosen"], found["rejected"], found["gap"]) == (*want, gap)
  assert not (run.workdir / "samples").exists()
  reason = "no_pair" if changes else "small_gap"
  assert dropped(run)[reason][0] == "p/1"


def test_points_label_answers(run, monkeypatch):
  settings = {"judge.kind": "reward", "choose.threshold": 1.0, **POINTS_OF}
  c = config("pointwise", **settings, **{"choose.per_problem": 3})
  c["rollout"]["group_size"] = 4
  pairs.check(c)
  found = make(run, c, POINTS, None, monkeypatch)
  points = {one["completion"]: one["score"] for one in POINTS[:4]}
  assert len(found) == 6  # 3 of each
  for one in found[:3]:
    assert one["label"] == points[one["completion"]]
  assert sum(one["label"] for one in found[3:]) == 0


class Completer:
  """Goes on with what the prefix says, its number among the samples behind it."""

  num_prompts = 2

  def __init__(self):
    self.asked = []

  def __call__(self, weights, ids, problems, key):
    self.asked.append([problem.id for problem in problems])
    return [f"{i}" for _ in ids for i in range(4)]

  def completions(self, rollout):
    return rollout

  def texts(self, completions):
    return completions


class Pool:
  """Right is what ends in a 3, or in an a."""

  def score(self, texts, problems):
    assert len(texts) == len(problems)
    return [{"accuracy": float(text[-1] in "3a")} for text in texts], {}


def test_steps_are_labelled_by_completions(run):
  c = config("process", **{"steps.rollouts": 4, "steps.labels": "soft"})
  pairs.check(c)
  problems = [Problem(f"p/{i}", f"q{i}", "", "exact") for i in range(2)]
  completer = Completer()
  steps = judgements.Steps(
    run,
    "made",
    c,
    problems,
    {problem.id: [1] for problem in problems},
    completer=completer,
    weights=None,
    pool=Pool(),
  )
  asked = [
    {"prompt": "q0", "problem_id": "p/0", "completion": "a\nb\na", "points": 1.0},
    {"prompt": "q1", "problem_id": "p/1", "completion": "a\nb", "points": 0.0},
  ]
  found = steps(asked)
  assert [one["labels"] for one in found] == [[0.25, 0.25, 1.0], [0.25, 0.0]]
  assert [one["ends"] for one in found] == [[2, 4, 5], [2, 3]]
  assert list(map(len, completer.asked)) == [2, 1]
  names = [name for part in completer.asked for name in part]
  assert len(set(names)) == 3  # so that the draws differ
  assert steps.seen() == {"pairs/completions": 12}


POINTS_OF = {"reward.weights": {"accuracy": 1.0}}


@pytest.mark.parametrize(
  ("labels", "changes", "message"),
  [
    ("pairwise", {"labels": "pair"}, r"config\.labels='pair'.*'pairwise'"),
    ("pairwise", {"judge.kind": "sever"}, r"config\.judge\.kind='sever'.*'server'"),
    ("pairwise", {"judge.reads": "anser"}, r"config\.judge\.reads='anser'"),
    ("pairwise", {"judge.judgements": 0}, r"config\.judge\.judgements=0"),
    ("pairwise", {"choose.kind": "best"}, r"config\.choose\.kind='best' is not known"),
    ("pairwise", {"choose.per_problem": 0}, r"config\.choose\.per_problem=0"),
    ("pairwise", {"choose.kind": "best_worst"}, r"'best_worst' is of pairs by points"),
    ("pairwise", {"choose.threshold": 1.0}, r"threshold=1\.0 is set, but .* not use"),
    ("pairwise", {"choose.min_gap": -1.0}, r"config\.choose\.min_gap=-1\.0"),
    ("pairwise", {"rollout.group_size": 1}, r"group_size=1: .* asked 2 times or more"),
    ("pointwise", {"choose.min_gap": 1.0}, r"config\.choose\.min_gap=1\.0 is set"),
    ("pointwise", {"choose.balance_lengths": True}, r"balance_lengths=True with"),
    ("pairwise", {"judge.kind": "reward"}, r"config\.reward\.weights is empty"),
    (
      "pointwise",
      {"judge.kind": "reward", **POINTS_OF},
      r"config\.choose\.threshold is missing",
    ),
    ("process", {"judge.reads": "answer"}, r"config\.judge\.reads='answer' with"),
    ("process", {"judge.kind": "server"}, r"'process' with .*judge\.kind='server'"),
    ("process", {"reward.models.safe": {}}, r"'process' with weights for safe:"),
  ],
)
def test_settings_that_do_not_fit_are_named(labels, changes, message):
  c = config(labels)
  for path, value in changes.items():
    *sections, key = path.split(".")
    place = c
    for section in sections:
      place = place[section]
    place[key] = value
  with pytest.raises(InputError, match=message):
    pairs.check(c)


@pytest.mark.parametrize("labels", pairs.LABELS)
def test_the_settings_that_are_given_fit(labels):
  pairs.check(common.pairs(labels).to_dict())


def test_one_source_of_lines(run):
  data = {"path": "", "stage": "made", "min_gap": 1.0}
  made.check({"data": data})
  for path, stage in (("", ""), ("a.jsonl", "made")):
    with pytest.raises(InputError, match=r"config\.data\.path=.*give one of the two"):
      made.check({"data": {**data, "path": path, "stage": stage}})
  run.product("made").parent.mkdir(parents=True)
  learners.jsonl(
    run.product("made"), [{"prompt": "q", "chosen": "a", "rejected": "b", "gap": 0.1}]
  )
  (found,), _ = made.load(run, {"data": data}, "pairwise")
  assert found.answers == ("a", "b")  # its gap was large enough where it was made


# ----------------------------------------------------------------------- whole runs


def chained(**changes):
  """Base -> pairs by points -> a reward model and preference learning of them."""
  own = common.pairs()
  own.init = "base"
  own.data = small_run.chains("train", size=16)
  own.rollout.update(
    {"prompts": 8, "group_size": 8, "prompt_length": 24, "max_tokens": 24}
  )
  own.reward.weights = {"accuracy": 1.0}
  own.reward.num_workers = 1
  own.judge.update({"kind": "reward", "reads": "all"})
  own.choose.update({"kind": "right_wrong", "per_problem": 4, "threshold": 1.0})
  own.choose.update({"min_gap": 0.0, "balance_lengths": False})
  own.update_from_flattened_dict(changes)
  scorer = common.reward_model()
  scorer.init = "base"
  scorer.num_steps = 2
  scorer.data.update({"stage": "made", "held_out": 0.25, "balance_lengths": False})
  scorer.training.update({"batch": 4, "rows": 2, "row_length": 64, "remat": "none"})
  learned = common.preference()
  learned.init = "base"
  learned.num_steps = 2
  learned.data.stage = "made"
  learned.training.update({"rows": 1, "microbatches": 1, "row_length": 64})
  return learners.config(base=True, made=own, scorer=scorer, learned=learned)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("made.labels", "process", r"scorer\.data\.stage='made' makes 'process' labels"),
    ("scorer.data.stage", "base", r"scorer\.data\.stage='base' is of the kind 'sft'"),
    ("scorer.data.stage", "learned", r"scorer\.data\.stage='learned': must be '' or a"),
    ("learned.init", "made", r"config\.learned\.init='made' is of the kind 'pairs'"),
  ],
)
def test_stages_that_do_not_go_together_are_named(path, value, message):
  c = chained()
  c.update_from_flattened_dict({path: value})
  with pytest.raises(InputError, match=message):
    setup.stage_configs(c.to_dict())


@pytest.mark.slow
def test_from_answers_to_a_reward_model_and_to_preferences(tmp_path):
  """A run that is stopped while it draws, and killed before its product is there, ends
  as one that was not."""
  whole = learners.with_base(tmp_path / "whole")
  learners.finish(chained(), whole)
  broken = learners.with_base(tmp_path / "broken")
  first = broken / "samples" / "made" / "round_001_000000.jsonl"
  with mock.patch.object(train.StopSignal, "__call__", lambda self: first.exists()):
    learners.finish(chained(), broken, code=128 + signal.SIGTERM)
  assert [path.name for path in first.parent.iterdir()] == [first.name]
  write = metrics.write_whole

  def kill(path, data):
    if path.name == "made.jsonl":
      raise KeyboardInterrupt
    write(path, data)

  with (
    mock.patch.object(metrics, "write_whole", kill),
    pytest.raises(KeyboardInterrupt),
  ):
    learners.finish(chained(), broken)
  assert not (broken / "data" / "made" / "made.jsonl").exists()
  lines = learners.finish(chained(), broken)
  for file in ("data/made/made.jsonl", "data/made/dropped.jsonl"):
    assert (broken / file).read_bytes() == (whole / file).read_bytes()
  for stage in ("scorer", "learned"):
    learners.assert_same(broken, whole, stage)
  (counts,) = [line for line in lines if line["stage"] == "made"]
  found = read(whole / "data" / "made" / "made.jsonl")
  assert counts["pairs/answers"] == 15 * 8  # two of 16 problems are the same
  assert counts["pairs/kept"] == len(found) > 4
  assert all(one["category"] == "op_chain" for one in found)
  # With nothing to do it says so, and changes nothing.
  before = (whole / "metrics.jsonl").read_bytes()
  learners.finish(chained(), whole)
  assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_steps_of_own_answers(tmp_path):
  """Each line of an answer is a step, and the model learns from their labels."""
  c = chained()
  c.made.labels = "process"
  c.made.choose = common.pairs("process").choose
  c.made.choose.per_problem = 2
  c.made.steps.rollouts = 2
  c.scorer.objective = "process"
  c.stages = ("base", "made", "scorer")
  run = learners.with_base(tmp_path / "run")
  learners.finish(c, run)
  found = read(run / "data" / "made" / "made.jsonl")
  assert 16 < len(found) <= 32
  assert all(len(one["labels"]) == len(one["ends"]) for one in found)
  product = (run / "data" / "made" / "made.jsonl").read_bytes()
  shutil.rmtree(run / "data" / "made")
  shutil.rmtree(run / "checkpoints" / "scorer")
  learners.finish(c, run)
  assert (run / "data" / "made" / "made.jsonl").read_bytes() == product


@pytest.mark.slow
def test_a_model_in_this_process_is_asked(tmp_path, monkeypatch):
  """It has learnt other things than to judge, so that nothing is left; what it said is
  kept all the same."""
  c = chained(**{"judge.kind": "model", "judge.model.stage": "base"})
  c.made.choose.update({"kind": "random", "per_problem": 1, "threshold": None})
  c.made.judge.judgements = 2
  sizes = {"prompts": 4, "prompt_length": 2000, "max_tokens": 8}
  c.made.judge.model.update(sizes)
  run = learners.with_base(tmp_path / "run")
  with pytest.raises(InputError, match=r"config\.made\.judge\.model\..*no chat templ"):
    learners.finish(c, run)
  make_tokenizer = setup.make_tokenizer

  def with_template(*given):
    tokenizer = make_tokenizer(*given)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return tokenizer

  judges, call = [], model_judge.ModelJudge.__call__

  def asks(judge, prompts):
    judges.append(judge)
    return call(judge, prompts)

  monkeypatch.setattr(setup, "make_tokenizer", with_template)
  monkeypatch.setattr(model_judge.ModelJudge, "__call__", asks)
  with pytest.raises(InputError, match=r"nothing is left of 120 .*no verdict 15\)"):
    learners.finish(c, run)
  parts = sorted((run / "samples" / "made").glob("judged_*"))
  assert len(parts) == len(judges) == 2
  assert judges[0] is judges[1] and judges[0].counts == {"calls": 30, "failed": 0}
  for part in parts:
    assert all(one["judgements"] is None for one in read(part))
  asked = mock.Mock(side_effect=AssertionError("asked again"))
  monkeypatch.setattr(model_judge.ModelJudge, "__call__", asked)
  with pytest.raises(InputError, match="nothing is left"):
    learners.finish(c, run)
