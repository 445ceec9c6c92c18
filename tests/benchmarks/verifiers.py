"""Verdicts a minute by the reward pool, on answers made up here.

`gsm8k`: worked solutions of a few lines with a number in `<answer>`; `numbers`: the
same answers by the verifier "math"; `formulas`: pairs that only algebra tells apart.
Half of the answers are right. No gold and no answer comes twice, as the answers of one
prompt do and then cost nothing. Timed is `RewardPool.score`, processes running.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from r1jax.rewards.combine import choose_parts
from r1jax.rewards.pool import RewardPool
from r1jax.types import Problem
from tests.benchmarks.imports import changed

SETTINGS = {"workers": 2, "numbers": 4096, "formulas": 128}

_THOUGHT = "So there are {0} + {1} of them, which makes {2}. That is ${2} in all.\n"


def answers(kind: str, count: int, start: int) -> tuple[list[str], list[Problem]]:
  """Texts and problems, the first and every other one right."""
  texts, problems = [], []
  for i in range(start, start + count):
    wrong = i % 2
    if kind == "formulas":
      gold, answer = f"{i}\\sqrt{{13}} + x", f"x + {i + wrong}\\sqrt{{13}}"
    else:
      gold, answer = str(i + 7), f"{i + 7 + wrong} dollars"
    thought = "".join(_THOUGHT.format(k, i, i + k) for k in range(6))
    texts.append(f"<think>{thought}</think>\n<answer>{answer}</answer>")
    verifier = "gsm8k" if kind == "gsm8k" else "math"
    problems.append(
      Problem(id=f"{kind}/{i}", prompt="?", answer=gold, verifier=verifier)
    )
  return texts, problems


def measure(changes: Sequence[str], repeats: int) -> dict[str, Any]:
  """What is written as JSON, but for what all benchmarks say."""
  given = changed(SETTINGS, changes)
  found: dict[str, Any] = {}
  for kind in ("gsm8k", "numbers", "formulas"):
    count = given["formulas"] if kind == "formulas" else given["numbers"]
    seconds = []
    with RewardPool(choose_parts(["accuracy"]), num_workers=given["workers"]) as pool:
      for repeat in range(1 + repeats):
        texts, problems = answers(kind, count, start=repeat * count)
        pool.warm(problems)
        began = time.perf_counter()
        scores, stats = pool.score(texts, problems)
        seconds.append(time.perf_counter() - began)
        right = sum(score["accuracy"] for score in scores)
        if 2 * right != count or any(stats[name] for name in ("timeouts", "crashes")):
          raise RuntimeError(f"{kind}: {right} of {count} right, {stats}")
    median_s = statistics.median(seconds[1:])
    found[kind] = {
      "first_call_s": seconds[0],
      "seconds": seconds[1:],
      "median_s": median_s,
      "verdicts_per_minute": 60 * count / median_s,
    }
  return {
    "model": "rewards",
    "dtype": "text",
    "settings": {**given, "weights": "none"},
    **found,
  }
