"""Tests of the reward pool: hangs, crashes, memory, errors, and no jax in workers."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from r1jax.errors import InputError
from r1jax.rewards import accuracy, combine
from r1jax.rewards.pool import RewardPool
from r1jax.types import Problem

PARTS = '''
import os, sys, time

def good(text, record):
  return float(len(text))

def behave(text, record):
  """Does what the text says; anything else scores 1."""
  if text == "loop":
    while True:
      pass
  if text == "sleep":
    time.sleep(1000)
  if text == "allocate":
    held = []
    while True:
      held.append(bytearray(2**22))
  if text == "exit":
    os._exit(0)
  if text == "sys.exit":
    sys.exit(1)
  if text == "segfault":
    import ctypes
    ctypes.string_at(0)
  if text == "raise":
    raise ArithmeticError("cannot read " + record["id"])
  if text == "nan":
    return float("nan")
  return 1.0

def hoard(text, record):
  """Grows by 16 MiB with every item."""
  held = globals().setdefault("_held", [])
  held.append(bytearray(2**24))
  return 1.0

def modules(text, record):
  return float("jax" in sys.modules) + 2.0 * float("sympy" in sys.modules)

def process(text, record):
  return float(os.getpid())
'''


@pytest.fixture(name="parts")
def _parts(tmp_path, monkeypatch):
  (tmp_path / "pool_test_parts.py").write_text(PARTS)
  monkeypatch.syspath_prepend(str(tmp_path))
  import pool_test_parts

  yield pool_test_parts
  del sys.modules["pool_test_parts"]


def problems(count, **fields):
  fields = {"prompt": "?", "answer": "7", "verifier": "gsm8k", **fields}
  return [Problem(id=f"p/{i}", **fields) for i in range(count)]


@pytest.mark.parametrize(
  ("bad", "counter"),
  [
    ("loop", "timeouts"),
    ("sleep", "timeouts"),
    ("allocate", "crashes"),
    ("exit", "crashes"),
    ("sys.exit", "crashes"),
    ("segfault", "crashes"),
    ("raise", "errors"),
    ("nan", "errors"),
  ],
)
def test_bad_items_cost_only_themselves(parts, bad, counter):
  """R8: a verifier that loops, allocates without end or dies; the others are scored."""
  texts = ["ok"] * 40
  texts[3] = texts[17] = bad
  with RewardPool(
    {"behave": parts.behave, "good": parts.good},
    # Filling the memory takes a while on a busy machine, and must not pass for a hang.
    timeout_s=0.4 if counter == "timeouts" else 30.0,
    memory_limit_mb=200,
  ) as pool:
    start = time.monotonic()
    scores, stats = pool.score(texts, problems(40))
    assert time.monotonic() - start < 20
    for i, score in enumerate(scores):
      # A part that raises leaves the others; a lost process loses the item.
      good = float(len(texts[i])) if i not in (3, 17) or counter == "errors" else 0.0
      assert score == {"behave": float(i not in (3, 17)), "good": good}
    want = dict.fromkeys(("timeouts", "crashes", "errors"), 0) | {counter: 2}
    assert {name: stats[name] for name in want} == want
    assert stats["seconds"] > 0
    # and the pool goes on as if nothing had been
    scores, stats = pool.score(["ok"] * 8, problems(8))
    assert scores == [{"behave": 1.0, "good": 2.0}] * 8
    assert stats["timeouts"] == stats["crashes"] == stats["errors"] == 0


def test_algebra_that_explodes_costs_only_itself():
  """R8: what math-verify and sympy do not come back from."""
  texts = [f"<answer>{i}</answer>" for i in range(40)]
  texts[3] = r"<answer>(x+1)^{2000} - (x+2)^{2000}</answer>"
  texts[17] = r"<answer>\binom{10^{12}}{10^6} + x</answer>"
  golds = [str(i) for i in range(40)]
  golds[3] = golds[17] = "x^2 + 1"
  asked = [
    Problem(id=f"p/{i}", prompt="?", answer=gold, verifier="math")
    for i, gold in enumerate(golds)
  ]
  with RewardPool({"accuracy": accuracy.score}, timeout_s=2.0) as pool:
    pool.warm(asked)
    start = time.monotonic()
    scores, stats = pool.score(texts, asked)
    assert time.monotonic() - start < 20
  assert [s["accuracy"] for s in scores] == [float(i not in (3, 17)) for i in range(40)]
  # A worker that outgrows its memory on the way has crashed.
  assert stats["timeouts"] + stats["crashes"] == 2


def test_batch_deadline_bounds_many_slow_items(parts):
  """R8: a deadline per batch as well as per item."""
  with RewardPool(
    {"behave": parts.behave}, timeout_s=60.0, batch_timeout_s=1.0
  ) as pool:
    pool.warm()
    start = time.monotonic()
    scores, stats = pool.score(["ok", *["sleep"] * 20], problems(21))
    assert time.monotonic() - start < 5
    assert scores == [{"behave": 1.0}] + [{"behave": 0.0}] * 20
    assert stats["timeouts"] == 20


def test_all_raising_is_an_input_error(parts):
  with (
    RewardPool({"behave": parts.behave}) as pool,
    pytest.raises(
      InputError, match=r"ArithmeticError: cannot read p/0 \(problem 'p/0'.*config"
    ),
  ):
    pool.score(["raise"] * 3, problems(3))


def test_a_worker_that_grows_is_renewed_before_it_fails(parts):
  with RewardPool({"hoard": parts.hoard}, num_workers=1, memory_limit_mb=128) as pool:
    scores, stats = pool.score(["x"] * 40, problems(40))
  assert scores == [{"hoard": 1.0}] * 40
  assert stats["crashes"] == stats["errors"] == 0


def test_a_worker_killed_while_idle_costs_nothing(parts):
  with RewardPool({"process": parts.process}, num_workers=1) as pool:
    [first], _ = pool.score([""], problems(1))
    os.kill(int(first["process"]), signal.SIGKILL)
    time.sleep(0.2)
    [second], stats = pool.score([""], problems(1))
  assert second["process"] not in (0.0, first["process"])
  assert stats["crashes"] == 0


def test_workers_have_no_jax(parts):
  with RewardPool({"modules": parts.modules, "accuracy": accuracy.score}) as pool:
    [score], _ = pool.score(["7"], problems(1))
    assert score == {"modules": 0.0, "accuracy": 1.0}
    # math-verify is loaded once a problem asks for it
    [score], _ = pool.score(["7"], problems(1, verifier="math"))
    assert score == {"modules": 2.0, "accuracy": 1.0}


def test_importing_rewards_brings_no_jax_and_no_algebra():
  code = (
    "import sys; from r1jax.rewards import combine, pool, worker; "
    "print([m for m in ('jax', 'sympy', 'reasoning_gym') if m in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == "[]"


def test_order_is_kept_over_workers_and_chunks(parts):
  texts = ["x" * (i * 7 % 50) for i in range(333)]
  with RewardPool({"good": parts.good}, num_workers=3) as pool:
    scores, _ = pool.score(texts, problems(333))
    empty, _ = pool.score([], [])
  assert [score["good"] for score in scores] == [float(len(text)) for text in texts]
  assert empty == []


def test_easy_batch_is_quick():
  texts = [f"<think>{'so 3 + 4 = 7. ' * 20}</think><answer>7</answer>"] * 512
  with RewardPool(combine.choose_parts(["accuracy", "format"])) as pool:
    pool.score(texts[:8], problems(8))
    seconds = min(pool.score(texts, problems(512))[1]["seconds"] for _ in range(5))
  assert seconds < 0.3  # 0.04 on two idle cores


def test_unknown_verifier_is_an_input_error():
  with (
    RewardPool(combine.choose_parts(["accuracy"])) as pool,
    pytest.raises(InputError, match="did you mean 'math'"),
  ):
    pool.score(["7"], problems(1, verifier="maths"))


def test_missing_library_is_an_input_error():
  meta = {"module": "no_such_module", "task": "t", "task_args": {}, "entry": {}}
  with (
    RewardPool(combine.choose_parts(["accuracy"])) as pool,
    pytest.raises(InputError, match=r"no_such_module.*config\.data\.verifier"),
  ):
    pool.score(["7"], problems(1, verifier="reasoning_gym", meta=meta))


def test_parts_that_no_worker_can_import_are_an_input_error(parts, monkeypatch):
  monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in parts.__file__])
  with (
    RewardPool({"good": parts.good}) as pool,
    pytest.raises(InputError, match="good"),
  ):
    pool.warm()


@pytest.mark.parametrize(
  "key", ["num_workers", "timeout_s", "batch_timeout_s", "memory_limit_mb"]
)
def test_settings_are_checked(parts, key):
  with pytest.raises(InputError, match=f"config.reward.{key}=0"):
    RewardPool({"good": parts.good}, **{key: 0})


def test_workers_end_with_a_killed_main_process(parts, tmp_path):
  main = textwrap.dedent(f"""
    import sys; sys.path.insert(0, {str(tmp_path)!r})
    import pool_test_parts as parts
    from r1jax.rewards.pool import RewardPool
    from r1jax.types import Problem
    p = Problem(id="p", prompt="?", answer="7", verifier="gsm8k")
    both = {{"process": parts.process, "behave": parts.behave}}
    pool = RewardPool(both, num_workers=1)
    print(int(pool.score([""], [p])[0][0]["process"]), flush=True)
    pool.score(["loop"], [p])
  """)
  process = subprocess.Popen(
    [sys.executable, "-c", main], stdout=subprocess.PIPE, text=True
  )
  worker = int(process.stdout.readline())
  os.kill(worker, 0)  # it runs
  time.sleep(0.3)
  process.kill()
  process.wait()
  process.stdout.close()
  for _ in range(50):
    try:
      with open(f"/proc/{worker}/stat") as f:
        if f.read().rpartition(")")[2].split()[0] == "Z":
          return
    except FileNotFoundError:
      return
    time.sleep(0.1)
  pytest.fail(f"worker {worker} outlived its main process by 5 s")
