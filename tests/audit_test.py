"""The audit: faults that are planted in small data sets are found, and nothing else."""

import json
import re
import sys

import pytest
from ml_collections import ConfigDict
from rich.console import Console

from configs import common
from r1jax import audit
from r1jax.errors import InputError
from r1jax.rewards import combine
from tests import small_run

QUIET = Console(quiet=True)
TEN = "one two three four five six seven eight nine ten"
# A verifier that is easily pleased, and now and then does not come back.
EASY = """
import os, time

def score(text, record):
  if "slow" in record["id"] and "boxed" in text:
    time.sleep(1000)
  if "dies" in record["id"] and "boxed" in text:
    os._exit(1)
  if "sulks" in record["id"]:
    raise ValueError("cannot read it")
  return float(record["answer"] in text.rpartition("answer>")[0])
"""


def lines(path, *rows, **settings):
  """Settings of a set with one problem a row, (question, gold) or a whole record."""
  records = [
    row if isinstance(row, dict) else {"question": row[0], "answer": row[1]}
    for row in rows
  ]
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return ConfigDict({"source": "jsonl", "path": str(path), **settings})


def config(data, **eval_sets):
  c = small_run.get_config()
  c.zero.data = data
  c.zero.eval.sets = ConfigDict(eval_sets)
  return c


def found(c, out, **settings):
  """{(kind, problem)} of the findings, and the audits."""
  audits = audit.run(c.to_dict(), out, console=QUIET, **settings)
  findings = [finding for one in audits for finding in one.findings]
  return {(finding.kind, finding.problem) for finding in findings}, audits


def test_clean_data_gives_no_finding(tmp_path):
  data = lines(
    tmp_path / "a.jsonl",
    {"question": "Twice two?", "answer": "4", "solution": "2+2=4, so \\boxed{4}"},
    {"question": "A half?", "answer": "\\frac{1}{2}", "solution": "It is 0.5."},
    ("The root of eight?", "2\\sqrt{2}"),
    ("Where does the sun rise?", "\\text{east}"),
    ("A pair?", "(1, -2)"),
  )
  options = {"options": ["snow", "rain", "sun"]}
  choices = lines(
    tmp_path / "b.jsonl",
    {"question": "What is wet?", "answer": "B", **options},
    {"question": "What is hot?", "answer": "C", **options},
    verifier="choice",
  )
  chains = small_run.chains("heldout", size=3)
  findings, audits = found(config(data, choice=choices, gym=chains), tmp_path / "out")
  assert findings == set()
  names = ["zero.data", "zero.eval.sets.choice", "zero.eval.sets.gym"]
  assert [one.data_set for one in audits] == names
  assert (tmp_path / "out/audit.jsonl").read_text() == ""
  numbers = json.loads((tmp_path / "out/summary.json").read_text())
  assert (numbers["findings"], numbers["severe"]) == (0, 0)
  checks = {
    (c["kind"], c["what"]): c for c in numbers["data_sets"]["zero.data"]["checks"]
  }
  assert checks["gold_rejected", "boxed"]["of"] == 5
  assert checks["gold_disputed", "boxed"]["of"] == 1
  assert checks["extractors_disagree", "last number"]["of"] == 2
  assert checks["false_positive", "one more"]["of"] == 2
  assert checks["doubtful_positive", "another gold"]["of"] > 0
  assert checks["overlap", "eval.sets.gym"]["of"] == 5
  assert checks["no_verdict", ""]["of"] == checks["error", ""]["of"] > 50
  assert audits[0].facts["wrong_points_mean"] == 0.0
  assert audits[0].facts["most_common_gold"]["share"] == 0.2


def test_planted_faults_are_found(tmp_path):
  data = lines(
    tmp_path / "t.jsonl",
    ("Twice two?", "4"),
    ("What is unreadable?", "\\frac{1}{"),
    ("Up to forty?", ", ".join(map(str, range(40)))),  # more than verifiers compare
    {"question": "Three squared?", "answer": "9", "solution": "It is \\boxed{8}."},
    {"question": "A dozen?", "answer": "12", "solution": "\\boxed{12} in 3 steps"},
    ("twice  TWO?", "4.0"),
    ("Twice two? ", "5"),
    ("Twice two?", "4"),  # dropped on loading, and still told
    ("Write 78", "78"),
    (f"0 {TEN}", "1"),
  )
  held_out = lines(tmp_path / "e.jsonl", (f"So {TEN}?", "2"))
  letters = lines(tmp_path / "c.jsonl", ("Capital?", "Paris"), verifier="choice")
  findings, audits = found(config(data, e=held_out, c=letters), tmp_path / "out")
  assert findings == {
    ("unparsable_gold", "t/2"),
    ("gold_rejected", "t/3"),
    ("gold_disputed", "t/4"),
    ("extractors_disagree", "t/4"),
    ("extractors_disagree", "t/5"),
    ("duplicate", "t/6"),
    ("conflicting_golds", "t/7"),
    ("duplicate", "t/8"),
    ("question_accepted", "t/9"),
    ("overlap", "t/10"),
    ("error", "c/1"),
  }
  written = (tmp_path / "out/audit.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in written]
  by_key = {(r["kind"], r["problem"]): r for r in records}
  fields = ["data_set", "kind", "problem", "what", "gold", "detail"]
  assert all(list(record) == fields for record in records)
  assert by_key["gold_disputed", "t/4"]["detail"] == "8"
  assert by_key["conflicting_golds", "t/7"]["detail"] == "t/1: 4"
  assert by_key["duplicate", "t/6"]["detail"] == "t/1: 4"
  assert by_key["overlap", "t/10"]["detail"] == f"e/1: {TEN}"
  assert "one letter from A to J" in by_key["error", "c/1"]["detail"]
  assert len([r for r in records if r["kind"] == "gold_rejected"]) == 5  # every form
  assert audits[0].facts["counts"]["dropped_unparsable_gold"] == 1
  # 5 forms, a disputed solution, two golds
  assert audits[0].num_severe == 7


def test_a_bad_verifier_is_found(tmp_path, monkeypatch):
  (tmp_path / "audit_test_easy.py").write_text(EASY)
  monkeypatch.syspath_prepend(str(tmp_path))
  import audit_test_easy

  monkeypatch.setitem(combine.PARTS, "accuracy", audit_test_easy.score)
  data = {
    name: lines(tmp_path / f"{name}.jsonl", (f"How {name}?", "7"), verifier="gsm8k")
    for name in ("good", "slow", "dies", "sulks")
  }
  c = config(data.pop("good"), **data)
  c.zero.reward.update({"timeout_s": 0.5, "batch_timeout_s": 100.0})
  findings, audits = found(c, tmp_path / "out")
  del sys.modules["audit_test_easy"]
  # What holds the gold somewhere is right for it; "boxed" has no tags, which it needs.
  kinds = {"false_positive", "gold_rejected"}
  want = {(kind, f"{name}/1") for kind in kinds for name in ("good", "slow", "dies")}
  lost = {("no_verdict", "slow/1"), ("no_verdict", "dies/1")}
  assert findings == want | lost | {("error", "sulks/1")}
  whats = {f.what for f in audits[0].findings if f.kind == "false_positive"}
  assert whats == {"sign", "times ten", "a tenth", "reciprocal", "list"}
  assert 0 < audits[0].facts["wrong_points_mean"] < 1
  by_name = {one.data_set: one for one in audits}
  for name, why in (("slow", "timeout"), ("dies", "crash")):
    one = by_name[f"zero.eval.sets.{name}"]
    details = [f.detail for f in one.findings if f.kind == "no_verdict"]
    assert len(details) == 2  # boxed, and R1's template
    assert details[0].startswith(f"{why} of gold_rejected, boxed: So it is")
  assert len(by_name["zero.eval.sets.sulks"].findings) == 1


def test_programs_that_always_say_the_same(tmp_path):
  one = [{"stdin": "", "stdout": "5\n"}]
  two = [{"args": [n], "result": n + 1} for n in (1, 2)]
  data = lines(
    tmp_path / "p.jsonl",
    {"question": "Print 5.", "tests": one, "solution": "print(5)"},
    {
      **{"question": "Add 1.", "tests": two, "function": "f"},
      "solution": "def f(x):\n  return x + 2",
    },
    verifier="code",
  )
  c = config(data)
  try:
    findings, audits = found(c, tmp_path / "out")
  except InputError as e:
    pytest.skip(f"programs cannot run here: {e}")
  assert findings == {("false_positive", "p/1"), ("gold_rejected", "p/2")}
  [positive] = [f for f in audits[0].findings if f.kind == "false_positive"]
  assert positive.what == "constant"
  # of 6 wrong programs one gets a point, one half of it
  assert audits[0].facts["wrong_points_mean"] == pytest.approx(1.5 / 6)
  assert "most_common_gold" not in audits[0].facts


@pytest.mark.parametrize("verifier", ["judge", "none"])
def test_what_no_verifier_judges_is_looked_at_and_not_judged(tmp_path, verifier):
  rows = [("Why?", "So."), ("Why?", "Not so."), ("How?", "Thus.")]
  c = config(lines(tmp_path / "j.jsonl", *rows, verifier=verifier))
  findings, audits = found(c, tmp_path / "out")
  assert findings == {("duplicate", "j/2")}
  assert audits[0].tried["error", ""] == 0


# ------------------------------------------------------------------ what is looked at


def test_equal_data_sets_are_one(tmp_path):
  c = config(
    lines(tmp_path / "a.jsonl", ("a?", "1")), x=small_run.chains("heldout", size=4)
  )
  c.other = c.zero.copy_and_resolve_references()
  c.third = c.zero.copy_and_resolve_references()
  c.third.decontaminate = 3
  c.stages = (*c.stages, "other", "third")
  chosen = audit.data_sets(c.to_dict())
  assert [(one.stages, one.where) for one in chosen] == [
    (("zero", "other"), "data"),
    (("zero", "other", "third"), "eval.sets.x"),
    (("third",), "data"),
  ]
  chosen = audit.data_sets(c.to_dict(), stage="other")
  assert [one.stages for one in chosen] == [("other",)] * 2


def test_a_stage_that_makes_examples_has_sets_that_it_must_not_hold(tmp_path):
  rows = [(f"{n}?", str(n)) for n in range(4)]
  c = config(lines(tmp_path / "a.jsonl", *rows, verifier="exact"))
  c.kept = common.rejection()
  c.kept.data = c.zero.data
  c.kept.held_out.x = lines(tmp_path / "x.jsonl", *rows[3:], verifier="exact")
  c.stages = (*c.stages, "kept")
  chosen = audit.data_sets(c.to_dict(), stage="kept")
  assert [one.where for one in chosen] == ["data", "held_out.x"]
  assert list(chosen[0].held_out) == ["held_out.x"] and chosen[0].decontaminate == 10


def test_limit(tmp_path):
  rows = [(f"{n}?", str(n)) for n in range(9)]
  data = lines(tmp_path / "a.jsonl", *rows, limit=5, verifier="exact")
  c = config(data, x=lines(tmp_path / "x.jsonl", *rows[4:], verifier="exact"))
  for limit, want in ((None, (5, None)), (7, (5, 7)), (3, (3, 3))):
    chosen = audit.data_sets(c.to_dict(), limit=limit)
    assert tuple(one.settings["limit"] for one in chosen) == want
  findings, audits = found(c, tmp_path / "out")
  assert findings == {("overlap", "a/5")}
  findings, audits = found(c, tmp_path / "out", limit=2)
  assert findings == set()
  assert [one.facts["counts"]["kept"] for one in audits] == [2, 2]


def test_a_limit_is_of_each_source_of_a_mixture(tmp_path):
  part = lines(tmp_path / "a.jsonl", ("1?", "1"), limit=5)
  c = config(ConfigDict({"source": "mixture", "of": {"a": part, "b": part}}))
  [one] = audit.data_sets(c.to_dict(), limit=3)
  assert [own["limit"] for own in one.settings["of"].values()] == [3, 3]


@pytest.mark.parametrize(
  ("change", "settings", "message"),
  [
    ({}, {"stage": "zerro"}, r"--stage='zerro'.*did you mean 'zero'"),
    ({}, {"stage": "base"}, r"--stage=base judges no answers.*these do: zero"),
    ({}, {"limit": 0}, r"--limit=0; needed: 1 or more"),
    ({"stages": ("base",)}, {}, r"config\.stages=\('base',\): none of them judges"),
    ({"zero.data.path": "no"}, {}, r"no file no; set --config\.zero\.data\.path"),
    ({"zero.data.verifier": "mth"}, {}, r"config\.zero\.data\.verifier='mth'.*'math'"),
    (
      {"zero.eval.sets.x.task": "sums"},
      {},
      r"config\.zero\.eval\.sets\.x\.task='sums' is not known",
    ),
    ({"zero.reward.num_workers": 0}, {}, r"config\.zero\.reward\.num_workers=0"),
  ],
)
def test_bad_settings(tmp_path, change, settings, message):
  c = config(lines(tmp_path / "a.jsonl", ("a?", "1"), verifier="exact"))
  c.zero.eval.sets.x = small_run.chains("heldout", size=2)
  c.update_from_flattened_dict(change)
  with pytest.raises(InputError, match=message):
    audit.run(c.to_dict(), tmp_path / "out", console=QUIET, **settings)


def test_a_folder_that_cannot_be(tmp_path):
  (tmp_path / "file").write_text("")
  c = config(small_run.chains("train", size=2))
  with pytest.raises(InputError, match=r"--out=.*file/out: .*name another folder"):
    audit.run(c.to_dict(), tmp_path / "file/out", console=QUIET)


# ------------------------------------------------------------------------- the command

CONFIG = """
from ml_collections import ConfigDict
from tests import small_run

def get_config(arg=None):
  c = small_run.get_config()
  c.zero.data = ConfigDict({"source": "jsonl", "path": arg, "verifier": "exact"})
  c.zero.eval.sets = ConfigDict()
  return c
"""


def test_the_command(train, tmp_path):
  """All started at once."""
  lines(tmp_path / "a.jsonl", ("[red]one\x1b[1m?", "1"), ("[red]One\x1b[1m?", "2"))
  (tmp_path / "config.py").write_text(CONFIG)
  good = f"{tmp_path}/config.py:{tmp_path}/a.jsonl"
  started = {
    name: train(
      *words, f"--out={tmp_path}/{name}", config=path, program=("-m", "r1jax.audit")
    )
    for name, path, words in (
      ("plain", good, ()),
      ("strict", good, ("--strict",)),
      ("key", good, ("--config.zero.dta=1",)),
    )
  }
  ended = {name: (*p.communicate(timeout=120), p) for name, p in started.items()}
  codes = {name: process.returncode for name, (_, _, process) in ended.items()}
  assert codes == {"plain": 0, "strict": 1, "key": 2}, ended
  said = ended["plain"][0]
  for part in ("zero.data", "exact", "conflicting golds"):
    assert part in said
  assert re.search(r"conflicting golds +1 +1 +a/2 *\n", said)
  assert "1 findings, 1 of them severe" in said
  assert "\x1b" not in said
  [line] = (tmp_path / "strict/audit.jsonl").read_text().splitlines()
  assert json.loads(line)["detail"] == "a/1: 1"
  said, errors, _ = ended["key"]
  assert re.fullmatch("error: no such setting: 'dta'.*\n", errors), errors
  assert not said
