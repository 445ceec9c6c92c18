"""Answers that are kept as examples, from the policy's draws to a student's steps."""

import collections
import dataclasses
import json
import shutil
import signal
import types
from unittest import mock

import numpy as np
import pytest

from configs import common
from r1jax.errors import InputError
from r1jax.rewards.endpoint import Endpoint
from r1jax.stages import rejection
from r1jax.types import Problem
from tests import learners, small_rejection, small_run
from tests.resume_test import STOPPED

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def settings(choice="right", **changes):
  s = common.rejection(choice)
  s.unlock()
  s.update(changes)
  return s.to_dict()


@pytest.mark.parametrize("choice", ["right", "majority", "best"])
def test_settings_of_each_choice_go_together(choice):
  part = {"choose": {"part": "helpful"}} if choice == "best" else {}
  s = settings(choice, reward={"models": {"helpful": {}}}, **part)
  rejection.check(s)
  assert "total" not in rejection.judging_all(s)["reward"]["weights"]


@pytest.mark.parametrize(
  ("choice", "changes", "message"),
  [
    ("right", {"choose": {"kind": "wrong"}}, r"config\.choose\.kind='wrong'"),
    ("right", {"choose": {"least": None}}, r"config\.choose\.least is missing"),
    ("majority", {"choose": {"part": "format"}}, r"part 'format' is not used: set it"),
    ("right", {"choose": {"part": "acuracy"}}, r"choose\.part='acuracy'.*'accuracy'"),
    ("best", {}, r"config\.choose\.part is missing, with kind='best'"),
    ("best", {"choose": {"part": "x"}}, r"config\.choose\.part='x' is not known"),
    ("right", {"keep": {"least": {"fromat": 1}}}, r"keep\.least='fromat'.*'format'"),
    ("right", {"keep": {"code_blocks": -1}}, r"config\.keep\.code_blocks=-1: must be"),
    ("right", {"keep": {"per_problem": -1}}, r"config\.keep\.per_problem=-1: must"),
    ("right", {"shares": {"math": 0.5}}, r"config\.shares=.*add up to 1"),
    ("right", {"formats": {"names": ["cues"]}}, r"formats\.names='cues'.*'cue'"),
    ("majority", {"formats": {"num_exemplars": 0}}, r"num_exemplars=0: must be 1"),
    ("right", {"also": {"a": {"source": "x"}}}, r"also\.a\.category is missing"),
    (
      "right",
      {"also": {"a": {"source": "x", "category": "", "count": 0, "pth": ""}}},
      r"a key of config\.also\.a='pth'.*'path'",
    ),
    (
      "right",
      {"rewrite": {"form": "{summary}{thought}", "endpoint": {"url": "http://x"}}},
      r"config\.rewrite\.form=.*must hold \{thought\} and, behind it, \{summary\}",
    ),
    (
      "best",
      {
        "rewrite": {"endpoint": {"url": "http://x"}},
        "choose": {"part": "accuracy"},
      },
      r"with config\.choose\.kind='best' nobody says",
    ),
  ],
)
def test_settings_that_do_not_fit_are_named(choice, changes, message):
  with pytest.raises(InputError, match=message):
    rejection.check(settings(choice, **changes))


def test_what_a_filter_reads_is_judged():
  s = settings(keep={"least": {"language": 0.9, "total": 1.0, "format": 1.0}})
  weights = rejection.judging_all(s)["reward"]["weights"]
  assert weights == {"accuracy": 1.0, "format": 1.0, "language": 0.0}


def test_problems_are_asked_behind_the_exemplars_of_a_file(tmp_path):
  lines = [{"question": q, "thought": "t", "answer": "a"} for q in ("one", "two")]
  path = learners.jsonl(tmp_path / "shots.jsonl", lines)
  tokenizer = types.SimpleNamespace(encode=lambda text, begin: list(text))
  run = types.SimpleNamespace(tokenizer=tokenizer)
  found = [Problem("p", "three", "3", "exact")]

  def asked(**formats):
    s = settings("majority", formats=formats, rollout={"prompt_length": 99})
    s["template"] = {"template": "plain"}
    return "".join(rejection._prompts(run, s, found)["p"])

  assert asked(exemplars=path, num_exemplars=1) == "Q: one\nA: t\n\nQ: three\nA:"
  assert asked() == "three"
  assert asked(exemplars=path, names=()) == "three"
  found[0] = dataclasses.replace(found[0], messages=({"role": "user"},))
  with pytest.raises(InputError, match=r"problem 'p' is a conversation"):
    asked()


# ---------------------------------------------------------------------- whole runs


def read(workdir, stage="own", file="made"):
  path = workdir / "data" / stage / f"{file}.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


def finish(workdir, *, own, student=None, **before):
  """Metrics of the stages behind the base, of which `own` is the last but `student`."""
  stages = {**before, "own": own} | ({} if student is None else {"student": student})
  c = learners.config(base=True, **stages)
  learners.finish(c, workdir)
  return [line for line in small_run.numbers(workdir) if line["stage"] != "base"]


@pytest.fixture(scope="module", name="done")
def _done(tmp_path_factory):
  run = learners.with_base(tmp_path_factory.mktemp("rejection") / "run")
  finish(run, own=small_rejection.own(), student=small_rejection.student())
  return run


def answers_of(workdir):
  files = sorted((workdir / "samples" / "own").glob("round_001_*.jsonl"))
  return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_right_answers_become_examples(done):
  made, answers = read(done), answers_of(done)
  own = [line for line in made if line["source"] == "base"]
  right = {
    (a["problem_id"], a["completion"]) for a in answers if a["reward"]["accuracy"] == 1
  }
  assert {(line["problem_id"], line["completion"]) for line in own} == right
  assert 0 < len(own) == len(right)
  # The question before any template.
  assert all(line["prompt"].endswith("?") for line in made)
  (line,) = (line for line in small_run.numbers(done) if line["stage"] == "own")
  assert line["step"] == 1
  assert line["rejection/answers"] == len(answers) == 36
  wrong = [a for a in answers if a["reward"]["accuracy"] == 0]
  assert line["rejection/dropped_wrong"] == len(wrong)
  dropped = sum(v for k, v in line.items() if k.startswith("rejection/dropped_"))
  assert line["rejection/kept"] == len(own) == 36 - dropped
  assert line["rejection/set_size"] == len(made) == len(own) + 3
  assert line["rejection/size_other"] == 3
  kept = collections.Counter(one["filter"] for one in read(done, file="dropped"))
  assert kept["wrong"] == min(5, len(wrong))
  assert set(kept) <= {"wrong", "duplicates", "truncated"}


@pytest.mark.slow
def test_the_student_learns_for_so_many_epochs(done):
  """As many steps as 4 epochs of the rows are, along a cosine over them all."""
  lines = [line for line in small_run.numbers(done) if line["stage"] == "student"]
  steps = [line["step"] for line in lines]
  (ends,) = (done / "checkpoints" / "student").glob("ends.json")
  assert steps == [*range(1, json.loads(ends.read_text()) + 1)]
  assert 2 < len(steps) < 50
  rates = [line["optim/lr"] for line in lines]
  assert rates[0] == pytest.approx(1e-2)
  progress = np.arange(len(steps)) / len(steps)
  want = 1e-2 * (1 - 0.9 * 0.5 * (1 - np.cos(np.pi * progress)))
  np.testing.assert_allclose(rates, want, rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_is_done_is_not_run_again(done, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(done, copy)

  def times():
    files = [p for kind in ("data", "checkpoints") for p in (copy / kind).rglob("*")]
    return {path: path.stat().st_mtime_ns for path in files}

  before = times()
  finish(copy, own=small_rejection.own(), student=small_rejection.student())
  assert times() == before
  learners.assert_same(copy, done, "student")


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["part", "line"])
def test_a_run_that_was_killed_goes_on(done, tmp_path, lost):
  """While it drew, and between its line of metrics and the set."""
  copy = learners.stopped(done, tmp_path / "copy", "student", 0)
  (copy / "data" / "own" / "made.jsonl").unlink()
  if lost == "part":
    (copy / "samples" / "own" / "round_001_000002.jsonl").unlink()
  finish(copy, own=small_rejection.own(), student=small_rejection.student())
  for file in ("made.jsonl", "dropped.jsonl", "settings.json"):
    path = copy / "data" / "own" / file
    assert path.read_bytes() == (done / "data" / "own" / file).read_bytes()
  learners.assert_same(copy, done, "student")


@pytest.mark.slow
def test_killed_in_both_stages(train, tmp_path):
  """As processes: a whole run, and one that is killed three times and continued."""
  config = "tests/small_rejection.py"
  for folder, stops in (
    ("whole", ()),
    ("broken", (("own", "rollout", 2), ("own", "choose", 1), ("student", "update", 2))),
  ):
    for stop in stops:
      words = map(str, (*stop, int(signal.SIGKILL), 0.0))
      program = ("-c", STOPPED, *words)
      process = train(f"--workdir={tmp_path / folder}", config=config, program=program)
      process.communicate(timeout=300)
      assert process.returncode == -signal.SIGKILL, stop
    process = train(f"--workdir={tmp_path / folder}", config=config)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
  assert "own: done before with these settings, kept" in said
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  made = [run / "data" / "own" / "made.jsonl" for run in (whole, broken)]
  assert made[0].read_bytes() == made[1].read_bytes() != b""
  learners.assert_same(broken, whole, "student")


@pytest.mark.slow
def test_self_improvement_without_golds(tmp_path):
  """Paths of two problems are the exemplars."""
  own = small_rejection.own("majority")
  own.rollout.update({"group_size": 6, "max_tokens": 24})
  own.formats.update({"num_exemplars": 2, "answer_form": "<answer>{answer}</answer>"})
  run = learners.with_base(tmp_path / "run")
  (line,) = finish(run, own=own)
  made = [one for one in read(run) if one["source"] == "base"]
  formats = collections.Counter(one["format"] for one in made)
  assert formats == dict.fromkeys(own.formats.names, line["rejection/kept"])
  labels = collections.defaultdict(set)
  for one in made:
    labels[one["problem_id"]].add((one["answer"], one["score"]))
    if one["format"] in ("few_shot_answer", "question"):
      assert one["completion"] == f"<answer>{one['answer']}</answer>"
    few = one["prompt"].count("Q: ") > 1
    assert few == one["format"].startswith("few_shot")
  assert all(len(own) == 1 for own in labels.values())
  shares = {score for own in labels.values() for _, score in own}
  # Some votes were not of one mind, and some labels are wrong.
  assert min(shares) < 1 and line["rejection/kept_accuracy"] < 1


@pytest.mark.slow
def test_the_best_by_a_reward_model(tmp_path):
  lines = [
    {"prompt": f"{n} a+1 = ?", "chosen": f"<answer>{n}</answer>", "rejected": str(n)}
    for n in range(6)
  ]
  judge = common.reward_model()
  judge.init = "base"
  judge.num_steps = 2
  judge.data.path = learners.jsonl(tmp_path / "pairs.jsonl", lines)
  judge.data.update({"held_out": 0.0, "balance_lengths": False})
  judge.training.update({"batch": 4, "rows": 2, "row_length": 64, "remat": "none"})
  own = small_rejection.own("best")
  own.choose.part = "liked"
  own.reward.models.liked = common.scalar_model("judge")
  own.reward.models.liked.update({"rows": 2, "row_length": 64})
  run = learners.with_base(tmp_path / "run")
  (line,) = (
    line for line in finish(run, judge=judge, own=own) if line["stage"] == "own"
  )
  made = [one for one in read(run) if one["source"] == "base"]
  groups = collections.defaultdict(list)
  for a in answers_of(run):
    if a["stop"] == "eos":
      groups[a["problem_id"]].append(a["reward"]["liked"])
  best = {problem: max(scores) for problem, scores in groups.items()}
  assert {one["problem_id"]: one["score"] for one in made} == best
  assert line["rejection/kept"] == len(made) == len(best)


def rewriter(endpoint, prompts):
  """Keeps what solves an odd question; spoils or refuses the others."""
  replies = []
  for _, user in prompts:
    given = json.loads(user["content"])
    odd = int(given["question"][0]) % 2
    summary = given["solution"] if odd else "<answer>none</answer>"
    replies.append(json.dumps({"thought": "I think.", "summary": summary}))
  endpoint.counts.update(calls=len(prompts))
  return replies


@pytest.mark.slow
def test_a_model_rewrites_what_is_kept(done, tmp_path):
  own = small_rejection.own()
  own.rewrite.endpoint.update({"url": "http://localhost:1/v1", "model": "m"})
  del own.also["general"]
  run = learners.with_base(tmp_path / "run")
  with mock.patch.object(Endpoint, "__call__", rewriter):
    (line,) = finish(run, own=own)
  before = [one for one in read(done) if one["source"] == "base"]
  odd = [one for one in before if int(one["prompt"][0]) % 2]
  assert 0 < len(odd) < len(before)
  form = own.rewrite.form.replace("{thought}", "I think.")
  assert [one["completion"] for one in read(run)] == [
    form.replace("{summary}", one["completion"]) for one in odd
  ]
  assert line["rewriter/calls"] == len(before)
  assert line["rejection/dropped_rewritten_wrong"] == len(before) - len(odd)
  assert line["rejection/kept"] == len(odd)


@pytest.mark.slow
def test_nothing_left_is_an_error_that_says_why(tmp_path):
  own = small_rejection.own()
  own.keep.least = {"format": 1.0}
  run = learners.with_base(tmp_path / "run")
  with pytest.raises(InputError, match=r"nothing is left of 36 answers .*'low_format'"):
    finish(run, own=own)
  assert not (run / "data" / "own" / "made.jsonl").exists()


@pytest.mark.slow
def test_distillation_on_what_a_stage_made(tmp_path):
  """Half of the steps on the examples, half on own answers to their prompts."""
  student = common.distill()
  student.num_steps, student.on_policy = 4, 0.5
  student.teacher.stage = "base"
  student.examples = {"source": "stage", "stage": "own"}
  student.rollout.update(
    {"prompts": 2, "group_size": 2, "prompt_length": 24, "max_tokens": 12}
  )
  student.training.update({"rows": 2, "microbatches": 1, "row_length": 40})
  run = learners.with_base(tmp_path / "run")
  lines = finish(run, own=small_rejection.own(), student=student)
  steps = [line for line in lines if line["stage"] == "student"]
  assert {line["distill/on_policy"] for line in steps} == {0, 1}
  asked = {one["prompt"] for one in read(run)}
  files = (run / "samples" / "student").iterdir()
  drawn = [json.loads(text) for file in files for text in file.read_text().splitlines()]
  assert {one["prompt"] for one in drawn} <= asked
