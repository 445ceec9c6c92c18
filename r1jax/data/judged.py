"""Answers that somebody has judged, for models that give scores: JSONL files.

Every line has `prompt` (a text) or `messages` (a conversation that the user ends), and
beside it what its objective learns from:

- "pairwise": `chosen` and `rejected`, and `margin` (a number) where one is wanted; or
  `responses`, two texts, and `judgements`, each {"first": 0 or 1, "scores": [x, y]}:
  which response a judge was shown first, and the scores of the two as they were shown.
- "pointwise" and "outcome": `completion`, and `label`: true or 1 where it is safe or
  right, false or 0 where not.
- "process": `completion`, and `labels`: a number from 0 to 1 for each step. Steps are
  those of `step_ends`, unless `ends` has the number of characters up to the end of
  each, in order.

Other fields are not read. Lines that a stage of the kind "pairs" makes have some:
`problem_id`, `category`, and the `gap` that was above its threshold.
"""

import bisect
import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from r1jax import prng
from r1jax.data import builders
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import InputError, one_of
from r1jax.types import Problem

_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclasses.dataclass(frozen=True)
class Judged:
  """One line.

  Attributes:
    answers: one text, or two of which the first is preferred.
    labels: of the answer, or of each of its steps; empty for two answers.
    ends: characters up to the end of each step; empty where there are no steps.
    margin: by which the preferred answer should lead, in units of the score.
  """

  problem: Problem
  answers: tuple[str, ...]
  labels: tuple[float, ...] = ()
  ends: tuple[int, ...] = ()
  margin: float = 0.0


def load_judged(
  *,
  objective: str,
  path: epath.PathLike,
  min_gap: float = 1.0,
  on_bad_line: str = "error",
  limit: int | None = None,
) -> tuple[list[Judged], dict[str, int]]:
  """Lines of a file in its order, and counts of what was dropped.

  Dropped are pairs of equal answers, pairs whose judges do not agree enough, and lines
  that say what an earlier one has said.

  Args:
    objective: a name in OBJECTIVES.
    min_gap: of the mean scores of two `responses`, above which a pair is kept. R1
      (arXiv 2501.12948, supplement): 1.
    on_bad_line: "error", or "skip" (and count).
    limit: keeps the first so many.

  Raises:
    InputError: no such file, a bad line, nothing left.
  """
  read = OBJECTIVES[one_of(objective, OBJECTIVES, key="config.objective")]
  if limit is not None and limit < 1:
    raise InputError(f"config.data.limit={limit}; needed: 1 or more")
  names = ("read", "skipped_bad_lines", "equal_answers", "small_gap", "duplicates")
  counts = dict.fromkeys((*names, "kept"), 0)

  def check(record: builders.Record) -> dict[str, Any]:
    return asked(record) | read(record, min_gap)

  found: list[Judged] = []
  met: set[tuple] = set()
  for number, record in builders.read_lines(
    path, check, on_bad_line=on_bad_line, key="config.data.path"
  ):
    counts["read"] += 1
    if record is None:
      counts["skipped_bad_lines"] += 1
      continue
    prompt, messages, answers = (
      record[name] for name in ("prompt", "messages", "answers")
    )
    key = (prompt, *(tuple(m.items()) for m in messages), answers)
    if len(answers) == 2 and answers[0] == answers[1]:
      counts["equal_answers"] += 1
    elif record.get("small_gap"):
      counts["small_gap"] += 1
    elif key in met:
      counts["duplicates"] += 1
    else:
      met.add(key)
      name = f"{epath.Path(path).stem}/{number}"
      problem = Problem(name, prompt, "", "exact", messages=messages)
      more = {k: v for k, v in record.items() if k in ("labels", "ends", "margin")}
      found.append(Judged(problem, answers, **more))
      if limit is not None and len(found) == limit:
        break
  counts["kept"] = len(found)
  if not found:
    raise InputError(f"nothing is left of config.data.path={str(path)!r}: {counts}")
  return found, counts


# ------------------------------------------------- what is read of a line; ValueErrors


def asked(record: builders.Record) -> dict[str, Any]:
  """`prompt` and `messages` of a line that has one of them."""
  if ("prompt" in record) == ("messages" in record):
    raise ValueError(f"one of 'prompt' and 'messages' is needed among {sorted(record)}")
  if "prompt" in record:
    return builders.text_fields(record, ("prompt",)) | {"messages": ()}
  messages = record["messages"]
  if not isinstance(messages, list) or not messages:
    raise ValueError(f"field 'messages' is {messages!r}, not a list of messages")
  for place, message in enumerate(messages):
    if not isinstance(message, dict):
      raise ValueError(f"messages[{place}] is {message!r}, not an object")
    try:
      builders.text_fields(message, ("role", "content"))
    except ValueError as e:
      raise ValueError(f"messages[{place}]: {e}") from e
  if messages[-1]["role"] != "user":
    raise ValueError(f"messages[-1] is of role {messages[-1]['role']!r}, not 'user'")
  kept = tuple({"role": m["role"], "content": m["content"]} for m in messages)
  return {"prompt": kept[-1]["content"], "messages": kept}


def question(problem: Problem) -> dict[str, Any]:
  """The fields of a line that say what was asked: what `asked` reads."""
  if problem.messages:
    return {"messages": [dict(message) for message in problem.messages]}
  return {"prompt": problem.prompt}


def _pair(record: builders.Record, min_gap: float) -> dict[str, Any]:
  if "responses" in record:
    return _judged_pair(record, min_gap)
  texts = builders.text_fields(record, ("chosen", "rejected"))
  margin = _number(record.get("margin", 0.0), "margin", at_least=0)
  return {"answers": (texts["chosen"], texts["rejected"]), "margin": margin}


def _judged_pair(record: builders.Record, min_gap: float) -> dict[str, Any]:
  responses, judgements = record["responses"], record.get("judgements")
  is_text = isinstance(responses, list) and all(isinstance(r, str) for r in responses)
  if not is_text or len(responses) != 2 or not all(r.strip() for r in responses):
    raise ValueError(f"field 'responses' is {responses!r}, not two texts")
  gap = gap_of(judgements)
  answers = tuple(responses) if gap > 0 else tuple(responses[::-1])
  return {"answers": answers, "small_gap": not abs(gap) > min_gap}


def gap_of(judgements: Any) -> float:
  """By how much response 0 is the better one: mean difference of the scores."""
  if not isinstance(judgements, list) or not judgements:
    raise ValueError(f"field 'judgements' is {judgements!r}, not a list of objects")
  gaps = {0: [], 1: []}
  for place, judgement in enumerate(judgements):
    where = f"judgements[{place}]"
    if not isinstance(judgement, dict) or judgement.get("first") not in (0, 1):
      raise ValueError(f"{where} is {judgement!r}: 'first' must be 0 or 1")
    scores = judgement.get("scores")
    if not isinstance(scores, list) or len(scores) != 2:
      raise ValueError(f"{where}.scores is {scores!r}, not two numbers")
    shown = [_number(score, f"{where}.scores") for score in scores]
    first = int(judgement["first"])
    gaps[first].append(shown[first] - shown[1 - first])
  # What a judge likes in the first place whatever stands there cancels where both
  # orders were judged, however often each was.
  return float(np.mean([np.mean(own) for own in gaps.values() if own]))


def _answer(record: builders.Record, min_gap: float) -> dict[str, Any]:
  del min_gap
  text = builders.text_fields(record, ("completion",))["completion"]
  label = record.get("label")
  if label not in (0, 1):
    raise ValueError(f"field 'label' is {label!r}, not true, false, 1 or 0")
  return {"answers": (text,), "labels": (float(label),)}


def _steps(record: builders.Record, min_gap: float) -> dict[str, Any]:
  del min_gap
  text = builders.text_fields(record, ("completion",))["completion"]
  ends = record.get("ends", list(step_ends(text)))
  labels = record.get("labels")
  for name, value in (("ends", ends), ("labels", labels)):
    if not isinstance(value, list) or not value:
      raise ValueError(f"field {name!r} is {value!r}, not a list of numbers")
  numbers = [_number(end, "ends", at_least=1, at_most=len(text)) for end in ends]
  whole = tuple(int(end) for end in numbers)
  if list(whole) != numbers or sorted(set(whole)) != list(whole):
    raise ValueError(f"field 'ends' is {ends!r}, not whole numbers that increase")
  if len(labels) != len(whole):
    raise ValueError(f"{len(labels)} 'labels' for {len(whole)} steps")
  marks = tuple(_number(label, "labels", at_least=0, at_most=1) for label in labels)
  return {"answers": (text,), "labels": marks, "ends": whole}


def _number(
  value: Any, name: str, *, at_least: float = -np.inf, at_most: float = np.inf
) -> float:
  is_number = isinstance(value, (int, float)) and np.isfinite(value)
  if not is_number or not at_least <= value <= at_most:
    raise ValueError(f"field {name!r}: {value!r} is no number that may stand there")
  return float(value)


# Objective -> (line, least gap) -> answers and what is said of them.
OBJECTIVES: dict[str, Callable[[builders.Record, float], dict[str, Any]]] = {
  "pairwise": _pair,
  "pointwise": _answer,
  "outcome": _answer,
  "process": _steps,
}


# ------------------------------------------------------------------ orders and lengths


def show_first(pair: str, num_judgements: int, seed: int) -> list[int]:
  """Which of two responses each of several judgements is shown first, at random.

  Departs: R1 (arXiv 2501.12948, supplement) draws each order by itself; here both come
  up equally often, so that a judge's liking for a place cancels in the mean. Of an odd
  number of judgements the last is drawn.

  Args:
    pair: id of the pair; the draw is a function of it and of the seed.
  """
  draw = random.Random(prng.host_seed(seed, f"{pair}/order"))
  orders = [0, 1] * (num_judgements // 2)
  orders += [draw.randrange(2)] * (num_judgements % 2)
  draw.shuffle(orders)
  return orders


def balance_lengths(
  chosen_P: Sequence[int], rejected_P: Sequence[int], *, seed: int
) -> list[int]:
  """Numbers of pairs to keep, in order, so that length does not tell which is chosen.

  R1 (arXiv 2501.12948, supplement) balances lengths over the data set and gives no
  rule. Here: pairs whose lengths differ by 2^k to 2^(k+1) - 1 tokens are a class,
  and of each class as many are kept where the chosen answer is the longer one as where
  the rejected one is; those of the larger side are drawn. Pairs of equal lengths are
  all kept. So "the longer one" is right in half of the pairs that differ, also among
  those that differ much.

  Args:
    chosen_P, rejected_P: lengths of the answers of each pair.
    seed: of the draw.
  """
  sides: dict[int, tuple[list[int], list[int]]] = {}
  kept = []
  for i, (chosen, rejected) in enumerate(zip(chosen_P, rejected_P, strict=True)):
    if chosen == rejected:
      kept.append(i)
      continue
    by_size = sides.setdefault(abs(chosen - rejected).bit_length(), ([], []))
    by_size[chosen > rejected].append(i)
  for size, (shorter, longer) in sides.items():
    draw = random.Random(prng.host_seed(seed, "balance_lengths", size))
    count = min(len(shorter), len(longer))
    kept += draw.sample(shorter, count) + draw.sample(longer, count)
  return sorted(kept)


def hold_out(
  items: Sequence[Judged], share: float, *, seed: int
) -> tuple[list[Judged], list[Judged]]:
  """(those to train on, those held out); no prompt is in both.

  Whether a prompt is held out depends on its text and the seed alone.

  Args:
    share: of the prompts to hold out, in expectation; 0 holds out nothing.

  Raises:
    InputError: one of the two would be empty.
  """
  if not 0 <= share < 1:
    raise InputError(f"config.data.held_out={share}: must be 0 or more and below 1")

  def is_held(item: Judged) -> bool:
    said = repr(item.problem.messages or item.problem.prompt)
    return prng.host_seed(seed, f"held_out/{said}") < share * 2**31

  split: tuple[list[Judged], list[Judged]] = ([], [])
  for item in items:
    split[is_held(item)].append(item)
  if not split[0] or (share and not split[1]):
    raise InputError(
      f"config.data.held_out={share} of {len(items)} lines leaves {len(split[0])} to "
      f"train on and {len(split[1])} held out; change it, or give more lines"
    )
  return split


# ------------------------------------------------------------------------------- steps


def step_ends(text: str) -> tuple[int, ...]:
  """Characters up to the end of each step of a solution.

  A step is a line that is not blank, its newline and blank lines behind it included;
  blank lines at the front belong to the first one.
  """
  ends: list[int] = []
  place = 0
  for line in _LINE.findall(text):
    place += len(line)
    if line.strip():
      ends.append(place)
    elif ends:
      ends[-1] = place
  return tuple(ends)


def tokens_at(
  tokenizer: Tokenizer, ids: Sequence[int], text: str, ends: Sequence[int]
) -> list[int] | None:
  """Number of the token that completes the first `end` characters, for each of `ends`.

  Args:
    text: what the ids are, control tokens left out.

  Returns:
    None where the ids spell another text, or where two ends are in one token.
  """

  def spells(count: int, start: str) -> bool:
    return tokenizer.decode(ids[:count], skip_special=True).startswith(start)

  found: list[int] = []
  for end in ends:
    start, counts = text[:end], range(len(ids) + 1)
    place = bisect.bisect_left(counts, True, key=lambda n, s=start: spells(n, s))
    if place == len(counts) or (found and place - 1 <= found[-1]):
      return None
    found.append(place - 1)
  return found
