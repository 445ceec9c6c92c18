"""Tests of what the texts of a data set tell by themselves."""

import json

import pytest

from r1jax import audit
from r1jax.data import auditing, problems
from r1jax.data.auditing import Audit
from r1jax.types import Problem

TEN = "one two three four five six seven eight nine ten"


def problem(prompt, answer="1", name="p"):
  return Problem(f"{name}/{prompt}", prompt, answer, "exact")


def test_golds_that_no_verifier_can_read_are_found(tmp_path):
  rows = [
    {"question": "a?", "answer": "1"},
    {"question": "b?", "answer": "\\frac{1}{"},
    {"question": "a?", "answer": "2"},
    {"answer": "3"},
    {"question": "c?", "answer": "3"},
    {"question": "d?", "answer": "4"},
  ]
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  settings = {"source": "jsonl", "path": str(path), "on_bad_line": "skip", "limit": 2}
  kept = problems.load_problems(**settings)
  assert [problem.id for problem in kept] == ["a/1", "a/5"]
  met = list(problems.entries(**settings))
  assert [fate for _, fate in met] == [
    *("kept", "dropped_unparsable_gold", "duplicates", "skipped_bad_lines", "kept")
  ]
  entries = [problem for problem, _ in met if problem is not None]
  assert [problem.id for problem in entries] == ["a/1", "a/2", "a/3", "a/5"]
  found = Audit("x")
  others = auditing.find_unparsable(found, entries)
  assert [problem.id for problem in others] == ["a/1", "a/3", "a/5"]
  [finding] = found.findings
  assert (finding.kind, finding.problem) == ("unparsable_gold", "a/2")
  assert finding.gold == "\\frac{1}{"


@pytest.mark.parametrize(
  ("prompts", "pairs"),
  [
    (("a b", "A  b\n", "ab"), [(0, 1)]),
    (("a", "b", "a ", " A"), [(0, 2), (0, 3)]),
    (("caf\u00e9", "cafe\u0301"), [(0, 1)]),
    (("a_1 + 1", "a_1 - 1", "a1 + 1"), []),  # signs count
    (("x\u00b2", "x2"), []),
  ],
)
def test_what_is_asked_again(prompts, pairs):
  asked = [problem(prompt) for prompt in prompts]
  want = [(asked[i], asked[k]) for i, k in pairs]
  assert list(auditing.asked_again(asked)) == want


def test_overlap_is_that_of_training_with_all_examples():
  train = [problem(f"{i} {TEN}") for i in range(7)] + [problem("other")]
  held_out = {"eval.sets.x": [problem(f"so {TEN}", name="e")], "eval.sets.y": []}
  for words, kind in ((10, "overlap"), (0, "overlap_kept")):
    found = Audit("x")
    auditing.find_overlap(found, train, held_out, words=words)
    assert [finding.kind for finding in found.findings] == [kind] * 7
    assert found.findings[2].detail == f"e/so {TEN}: {TEN}"
    assert found.tried == {(kind, "eval.sets.x"): 8, (kind, "eval.sets.y"): 8}
    assert found.num_severe == 7 * (words == 0)
  found = Audit("x")
  auditing.find_overlap(found, train, held_out, words=12)
  assert found.findings == []


def test_checks_count_and_are_in_order():
  found = Audit("x")
  found.tried.update(
    {("duplicate", ""): 3, ("error", ""): 4, ("gold_rejected", "b"): 5}
  )
  found.tried["gold_rejected", "a"] = 6
  for prompt in ("u", "v", "v"):  # which is said once
    found.add("duplicate", problem(prompt), "d" * 999)
  assert [(c["kind"], c["what"], c["found"], c["of"]) for c in found.checks()] == [
    ("gold_rejected", "b", 0, 5),
    ("gold_rejected", "a", 0, 6),
    ("error", "", 0, 4),
    ("duplicate", "", 2, 3),
  ]
  assert found.checks()[-1]["first"] == "p/u"
  assert max(len(finding.detail) for finding in found.findings) == 300
  assert found.num_severe == 0
  found.add("error", problem("w"), "it raised")
  assert found.num_severe == 1


def test_most_common_gold():
  golds = ["1", "2 ", "2", "3"]
  asked = [problem(str(i), gold) for i, gold in enumerate(golds)]
  assert auditing.most_common_gold(asked) == ("2", 0.5)


def test_the_command_names_the_severe_kinds():
  severe = [name for name, kind in auditing.KINDS.items() if kind.is_severe]
  said = " ".join(audit.__doc__.split())
  assert f"{', '.join(severe)}." in said
