"""Tests of the verifier "code": which program is run, and what counts as right."""

import json
import math

import pytest

from r1jax.errors import InputError
from r1jax.rewards import accuracy, code, sandbox
from r1jax.rewards.combine import choose_parts
from r1jax.rewards.pool import RewardPool
from r1jax.types import Problem

SETTINGS = {
  "sandbox": "auto",
  "score": "fraction",
  "time_s": 60.0,
  "total_s": 60.0,
  "memory_mb": 128,
  "output_kb": 64,
  "file_mb": 1,
  "processes": 4,
}
SUMS = {"tests": [{"stdin": f"{n} 1", "stdout": f"{n + 1}\n"} for n in range(4)]}


def problem(**meta):
  return Problem(id="p/1", prompt="?", answer="", verifier="code", meta=meta)


def record(**meta):
  return {"id": "p/1", "prompt": "?", "answer": "", "verifier": "code", "meta": meta}


@pytest.fixture(name="settings", scope="module")
def _settings():
  for python in ("", "/usr/bin/python3"):
    limits = {k: v for k, v in SETTINGS.items() if k not in ("sandbox", "score")}
    limits = sandbox.Limits(**limits)
    try:
      box = sandbox.choose("auto", limits, python=python)
    except InputError as e:
      why = str(e)
    else:
      return code.Settings(box, limits, "fraction")
  pytest.skip(why)


def fenced(program, language="python"):
  return f"```{language}\n{program}\n```"


@pytest.mark.parametrize(
  ("text", "want"),
  [
    (fenced("a"), "a"),
    (f"First\n{fenced('a')}\nno:\n{fenced('b')}\nDone.", "b"),
    ("It is ```python\na\n```", None),
    (f"{fenced('a')}\nit prints\n{fenced('8', '')}", "a"),
    (f"{fenced('a', '')}\n{fenced('b', '')}\n{fenced('ls', 'sh')}", "b"),
    (fenced("a", "Python3 title=x"), "a"),
    (fenced("a", "py"), "a"),
    (fenced("ls", "sh"), None),
    (f"<think>{fenced('a')}</think>", None),
    (f"<think>{fenced('a')}</think><answer>\n{fenced('b')}</answer>", "b"),
    (f"{fenced('a')}<answer>\n{fenced('b')}\n</answer>", "b"),
    ("<answer>print(1)</answer>", "print(1)"),
    (f"<answer>{fenced('ls', 'sh')}</answer>", None),
    ("print(1)", None),
    ("", None),
    # cut off
    ("```python\nprint(1)", None),
    (f"{fenced('a')}\n```python\nprint(1)", "a"),
    ("<answer>```python\nprint(1)", None),
    # fences within programs and within lists
    ("````python\n```\na\n```\n````", "```\na\n```"),
    ("```python\nx = '''\n    ```\n'''\n```", "x = '''\n    ```\n'''"),
    ("1. So:\n   ```python\n   if x:\n     y\n   ```", "if x:\n  y"),
    ("```x``` then ```\na\n```", None),
    ("```python\r\na\r\n```\r\n", "a\r"),
  ],
)  # fmt: skip
def test_program_of(text, want):
  assert code.program_of(text) == want


def test_blocks_takes_linear_time():
  text = "```a\n" * 200_000
  assert list(code.blocks(text)) == []


@pytest.mark.parametrize(
  ("got", "want", "tolerance", "right"),
  [
    ("1 2\n3\n", "1 2\n3", 0, True),
    ("1 2  \r\n3\n\n\n", "1 2\n3", 0, True),
    ("", "\n", 0, True),
    ("\n1", "1", 0, False),
    (" 1", "1", 0, False),
    ("1  2", "1 2", 0, False),
    ("1\n2", "1 2", 0, False),
    ("Yes", "YES", 0, False),
    ("1", "1.0", 0, False),
    ("1  2.0000001", "1.0 2", 1e-6, True),
    ("1 2.1", "1 2", 1e-6, False),
    ("1000000.5", "1000000", 1e-6, True),
    ("0.0000005", "0", 1e-6, True),
    ("1 2", "1", 1e-6, False),
    ("1\n2", "1", 1e-6, False),
    ("x 1.0", "x 1", 1e-6, True),
    ("y 1", "x 1", 1e-6, False),
    ("nan", "1", 1e-6, False),
    ("inf", "1", 1e-6, False),
    ("8" * 400, "9" * 400, 1e-6, False),
    ("9" * 400, "9" * 400, 1e-6, True),
  ],
)
def test_same_text(got, want, tolerance, right):
  assert code.same_text(got, want, tolerance) == right


@pytest.mark.parametrize(
  ("got", "want", "tolerance", "right"),
  [
    ([1, 2.0, "a", None], [1.0, 2, "a", None], 0, True),
    ({"a": [1]}, {"a": [1]}, 0, True),
    ({"a": 1, "b": 2}, {"a": 1}, 0, False),
    ({}, {"a": 1}, 0, False),
    ([1, 2], [2, 1], 0, False),
    ([1], [1, 1], 0, False),
    ([1], 1, 0, False),
    (1, [1], 0, False),
    (True, 1, 0, False),
    (1, True, 0, False),
    (True, True, 0, True),
    (0, None, 0, False),
    ("1", 1, 0, False),
    (None, None, 0, True),
    (0.1 + 0.2, 0.3, 0, False),
    ([0.1 + 0.2], [0.3], 1e-9, True),
    (2**53 + 1, 2**53, 0, False),
    (10**400, 10**400, 0, True),
    (10**400, 10**400 + 1, 1e-6, False),
    (math.inf, math.inf, 0, True),
    (math.nan, math.nan, 0, False),
  ],
)
def test_same_value(got, want, tolerance, right):
  assert code.same_value(got, want, tolerance) == right


def test_results_are_compared_as_json_has_them():
  test = {"args": [], "result": {1: (2, 3)}}
  assert code.right(b'{"1": [2, 3]}', test, 0)
  for output in (b"", b"{", b"[" * 10**5, b'"1"' * 2, b"\xff"):
    assert not code.right(output, test, 0)


@pytest.mark.parametrize(
  ("program", "meta", "want"),
  [
    ("print(sum(map(int, input().split())))", SUMS, 1.0),
    ("a, b = input().split()\nprint(int(a) + 1 if a < '2' else 0)", SUMS, 0.5),
    ("a, b = input().split()\nif a == '3': exit(1)\nprint(int(a) + 1)", SUMS, 0.75),
    ("print(", SUMS, 0.0),
    (
      "def add(a, b=1): return a + b",
      {
        "function": "add",
        "tests": [
          {"args": [1], "result": 2},
          {"args": [0.1], "kwargs": {"b": 0.2}, "result": 0.3},
          {"kwargs": {"a": 1}, "result": 3},
        ],
        "tolerance": 1e-9,
      },
      2 / 3,
    ),
    (
      "class S:\n  def f(self, x): return (x, x)\nif __name__ == '__main__': print(5)",
      {"function": "S.f", "tests": [{"args": [1], "result": [1, 1]}, {"stdout": "5"}]},
      1.0,
    ),
  ],
)
def test_verify(program, meta, want, settings):
  assert code.verify(fenced(program), record(**meta), settings) == want
  whole = code.Settings(settings.sandbox, settings.limits, "all")
  assert code.verify(fenced(program), record(**meta), whole) == float(want == 1.0)


def test_without_a_program_nothing_is_run(settings, monkeypatch):
  monkeypatch.setattr(code, "run", None)
  assert code.verify("It is 5.", record(**SUMS), settings) == 0.0


def test_what_should_come_out_stays_out(settings, monkeypatch):
  given = []

  def run(program, tests, *_, **options):
    given.append(json.dumps([tests, options]))
    return [sandbox.Outcome("ok", b"gold")] * len(tests)

  monkeypatch.setattr(code, "run", run)
  meta = {
    "function": "f",
    "tests": [{"stdin": "in", "stdout": "gold"}, {"args": ["in"], "result": "gold"}],
  }
  assert code.verify(fenced("x"), record(**meta), settings) == 0.5
  assert "gold" not in given[0]
  assert given[0].count('"in"') == 2


def test_prepare_is_for_programs_alone(monkeypatch):
  monkeypatch.setattr(code, "choose", lambda kind, limits: (kind, limits.time_s))
  maths = Problem(id="m", prompt="?", answer="7", verifier="math")
  assert code.prepare([maths], timeout_s=10.0, **SETTINGS) is None
  got = code.prepare([maths, problem(**SUMS)], timeout_s=99.0, **SETTINGS)
  assert (got.sandbox, got.score) == (("auto", 60.0), "fraction")
  with pytest.raises(InputError, match=r"total_s=60\.0 is not below .*timeout_s=10"):
    code.prepare([problem(**SUMS)], timeout_s=10.0, **SETTINGS)
  with pytest.raises(InputError, match="did you mean 'fraction'"):
    code.prepare([problem(**SUMS)], timeout_s=99.0, **SETTINGS | {"score": "fractions"})


@pytest.mark.parametrize(
  ("meta", "said"),
  [
    ({}, r"meta\['tests'\] is None"),
    ({"tests": []}, "needed: a list"),
    ({"tests": "print"}, "needed: a list"),
    ({"tests": [{"stdin": "1"}]}, "test 0 is {'stdin': '1'}"),
    ({"tests": [{"stdout": "1"}, {"stdin": 1, "stdout": "1"}]}, "test 1"),
    ({"tests": [{"stdout": "1", "output": "1"}]}, "test 0"),
    ({"tests": ["1"]}, "test 0"),
    ({"function": "f", "tests": [{"args": 1, "result": 1}]}, "test 0"),
    ({"tests": [{"args": [1], "result": 1}]}, "no 'function'"),
  ],
)
def test_tests_that_cannot_be_read(meta, said):
  with pytest.raises(InputError, match=said):
    code.prepare([problem(**meta)], timeout_s=99.0, **SETTINGS)


def test_without_settings_nothing_is_run():
  with pytest.raises(InputError, match=r"'p/1'.*config\.reward\.code"):
    accuracy.score(fenced("print(1)"), record(**SUMS))


def test_in_the_pool(settings):
  maths = Problem(id="m", prompt="?", answer="7", verifier="gsm8k")
  texts = [
    fenced("print(sum(map(int, input().split())))"),
    "It is 7.",
    fenced("while input() != '1 1': pass\nprint(2)"),
  ]
  asked = [problem(**SUMS), maths, problem(**SUMS)]
  parts = choose_parts(["accuracy"], code_settings=settings)
  with RewardPool(parts, num_workers=1, timeout_s=60.0) as pool:
    scores, stats = pool.score(texts, asked)
  assert [score["accuracy"] for score in scores] == [1.0, 1.0, 0.25]
  assert stats["timeouts"] == stats["crashes"] == stats["errors"] == 0
