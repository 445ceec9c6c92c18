"""Problems from named sources: files, TFDS builders, procedural tasks."""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from etils import epath

from r1jax import prng
from r1jax.data import builders
from r1jax.errors import InputError, one_of
from r1jax.types import Problem

# Tasks that a module of ours registers with reasoning-gym; the rest are the library's.
TASK_MODULES = {"op_chain": "r1jax.data.chain"}
PROMPT_FIELDS = ("question", "problem", "prompt")


class ProblemSet(Sequence[Problem]):
  """Problems in a fixed order, and what was dropped on the way.

  Attributes:
    name: source and split, for messages.
    counts: lines or entries `read`, `skipped_bad_lines`, `dropped_unparsable_gold`,
      `duplicates` (same prompt as an earlier one), `kept`.
  """

  def __init__(self, problems: Sequence[Problem], counts: Mapping[str, int], name: str):
    self._problems = tuple(problems)
    self.counts = dict(counts)
    self.name = name

  @overload
  def __getitem__(self, index: int) -> Problem: ...
  @overload
  def __getitem__(self, index: slice) -> tuple[Problem, ...]: ...
  def __getitem__(self, index):
    return self._problems[index]

  def __len__(self) -> int:
    return len(self._problems)

  def __repr__(self) -> str:
    return f"ProblemSet({self.name!r}, {self.counts})"


def load_problems(
  source: str,
  *,
  dir: epath.PathLike | None = None,
  path: epath.PathLike | None = None,
  data_dir: epath.PathLike | None = None,
  task: str | None = None,
  task_args: Mapping[str, Any] | None = None,
  split: str = "train",
  size: int | None = None,
  seed: int = 0,
  prompt_field: str | None = None,
  answer_field: str | None = None,
  verifier: str | None = None,
  on_bad_line: str = "error",
  limit: int | None = None,
) -> ProblemSet:
  """Loads the problems of one source, in the source's own order.

  Args:
    source: a key of SOURCES. None of the arguments below may be given to a source that
      does not use it.
    dir: gsm8k: folder with train.jsonl and test.jsonl (None: TFDS downloads);
      math500: folder with test.jsonl.
    path: jsonl: the file.
    data_dir: gsm8k: where prepared sets are kept, TFDS's default for None.
    task, task_args, size: reasoning_gym: task by name, its config, number of entries.
    split: of gsm8k; for reasoning_gym any name, each with problems of its own.
    seed: reasoning_gym only; files have an order already.
    prompt_field, answer_field: jsonl: names of fields; None takes the first of
      PROMPT_FIELDS that is there, and `answer`.
    verifier: jsonl: who judges, "math" for None.
    on_bad_line: "error", or "skip" (and count).
    limit: keeps the first so many.

  Raises:
    InputError: unknown names, missing files, bad lines, nothing left.
  """
  read = SOURCES[one_of(source, SOURCES, key="config.data.source")]
  given = {
    "dir": dir,
    "path": path,
    "data_dir": data_dir,
    "task": task,
    "task_args": task_args or None,
    "size": size,
    "prompt_field": prompt_field,
    "answer_field": answer_field,
    "verifier": verifier,
  }
  given = {name: value for name, value in given.items() if value is not None}
  common = {"split": split, "seed": seed, "on_bad_line": on_bad_line}
  used = inspect.signature(read).parameters
  for name in given:
    if name not in used:
      raise InputError(
        f"config.data.{name} is set, but the source {source!r} does not use it; "
        f"it uses {', '.join(sorted(set(used) - set(common)))}"
      )
  for name, parameter in used.items():
    if parameter.default is parameter.empty and name not in given | common:
      raise InputError(f"the source {source!r} needs --config.data.{name}")
  if limit is not None and limit < 1:
    raise InputError(f"config.data.limit={limit}; needed: 1 or more")

  counts = dict.fromkeys(
    ("read", "skipped_bad_lines", "dropped_unparsable_gold", "duplicates", "kept"), 0
  )
  problems: list[Problem] = []
  prompts: set[str] = set()
  for problem in read(**given, **{k: v for k, v in common.items() if k in used}):
    counts["read"] += 1
    if problem is None:
      counts["skipped_bad_lines"] += 1
    elif problem.prompt in prompts:
      counts["duplicates"] += 1
    elif not gold_parses(problem):
      counts["dropped_unparsable_gold"] += 1
    else:
      prompts.add(problem.prompt)
      problems.append(problem)
      if limit is not None and len(problems) == limit:
        break
  counts["kept"] = len(problems)
  if not problems:
    raise InputError(
      f"the data set is empty: {counts}; look at config.data.source={source!r}, "
      + ", ".join(f"config.data.{k}={v}" for k, v in (given | common).items())
    )
  return ProblemSet(
    problems, counts, f"{source}/{split}" if "split" in used else source
  )


def gold_parses(problem: Problem) -> bool:
  """Whether the verifier of a problem will be able to read its gold answer."""
  gold = problem.answer.strip()
  if problem.verifier == "code":  # whose tests are read when they are first needed
    return bool(problem.meta.get("tests"))
  if problem.verifier == "gsm8k":
    return re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)", gold) is not None
  if problem.verifier == "math" and not re.fullmatch(r"-?\d+", gold):
    import math_verify

    return bool(math_verify.parse(f"${gold}$", fallback_mode="no_fallback"))
  return bool(gold)


# The readers below yield a Problem, or None for a bad line that is to be skipped.


def read_gsm8k(
  *,
  split: str,
  on_bad_line: str,
  dir: epath.PathLike | None = None,
  data_dir: epath.PathLike | None = None,
) -> Iterator[Problem | None]:
  """GSM8K: `answer` ends in `#### N`, which becomes the gold; the rest is kept."""
  if dir is None:
    records = builders.open_gsm8k_published(split, data_dir=data_dir)
  else:
    records = builders.open_gsm8k_folder(
      dir, split, data_dir=data_dir, on_bad_line=on_bad_line
    )
  for record in records:
    if not record["question"]:
      yield None
      continue
    solution, mark, gold = record["answer"].rpartition("####")
    yield Problem(
      id=f"gsm8k/{split}/{record['line']}",
      prompt=record["question"],
      answer=gold.strip().replace(",", "") if mark else "",
      verifier="gsm8k",
      meta={"solution": solution.strip()},
    )


def read_math500(*, dir: epath.PathLike, on_bad_line: str) -> Iterator[Problem | None]:
  """MATH-500: a folder with test.jsonl, fields problem and answer."""
  yield from read_lines_of(
    epath.Path(dir) / "test.jsonl",
    name="math500/test",
    key="config.data.dir",
    on_bad_line=on_bad_line,
    prompt_field="problem",
    answer_field="answer",
    verifier="math",
  )


def read_jsonl(
  *,
  path: epath.PathLike,
  on_bad_line: str,
  prompt_field: str | None = None,
  answer_field: str = "answer",
  verifier: str = "math",
) -> Iterator[Problem | None]:
  """Any JSONL file, one problem a line."""
  yield from read_lines_of(
    path,
    name=epath.Path(path).stem,
    key="config.data.path",
    on_bad_line=on_bad_line,
    prompt_field=prompt_field,
    answer_field=answer_field,
    verifier=verifier,
  )


def read_lines_of(
  path: epath.PathLike,
  *,
  name: str,
  key: str,
  on_bad_line: str,
  prompt_field: str | None,
  answer_field: str,
  verifier: str,
) -> Iterator[Problem | None]:
  """Problems `name`/line; fields that are neither prompt nor answer go to meta."""

  def check(record: dict[str, Any]) -> dict[str, Any]:
    prompt = prompt_field
    if prompt is None:
      prompt = next((field for field in PROMPT_FIELDS if field in record), "prompt")
    answer = record.get(answer_field)
    # bool is an int to Python, and no answer.
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
      if not math.isfinite(answer):
        raise ValueError(f"field {answer_field!r} is {answer}")
      record = record | {answer_field: str(answer)}
    # Of programs the tests decide, whatever else is there.
    fields = (prompt,) if verifier == "code" else (prompt, answer_field)
    builders.text_fields(record, fields)
    return {
      "prompt": record[prompt],
      "answer": record.get(answer_field) or "",
      "meta": {k: v for k, v in record.items() if k not in (prompt, answer_field)},
    }

  for number, record in builders.read_lines(
    path, check, on_bad_line=on_bad_line, key=key
  ):
    if record is None:
      yield None
    else:
      yield Problem(id=f"{name}/{number}", verifier=verifier, **record)


def read_reasoning_gym(
  *,
  split: str,
  seed: int,
  task: str,
  size: int,
  task_args: Mapping[str, Any] | None = None,
) -> Iterator[Problem]:
  """A procedural task; meta holds all that the task's own judge needs.

  Entry i of a reasoning-gym data set is a function of (seed + i), so that seeds 0 and 1
  would share nearly all entries; (seed, task, split) are hashed to a seed far from
  others.
  """
  module = TASK_MODULES.get(task, "reasoning_gym")
  try:
    importlib.import_module(module)
    from reasoning_gym.factory import DATASETS, create_dataset
  except ImportError as e:
    raise InputError(
      f"config.data.source='reasoning_gym' needs the package reasoning-gym: {e}"
    ) from e
  one_of(task, {*DATASETS, *TASK_MODULES}, key="config.data.task")
  args = dict(task_args) if task_args is not None else {}
  try:
    data = create_dataset(
      task, **args, seed=prng.host_seed(seed, f"{task}/{split}"), size=size
    )
  except (TypeError, ValueError, AssertionError) as e:
    raise InputError(f"config.data.task_args={args} does not fit {task!r}: {e}") from e
  for index in range(size):
    entry = data[index]
    yield Problem(
      id=f"{task}/{split}/{seed}/{index}",
      prompt=entry["question"],
      answer=str(entry["answer"]),
      verifier="reasoning_gym",
      meta={"task": task, "task_args": args, "module": module, "entry": entry},
    )


SOURCES: dict[str, Callable[..., Iterator[Problem | None]]] = {
  "gsm8k": read_gsm8k,
  "jsonl": read_jsonl,
  "math500": read_math500,
  "reasoning_gym": read_reasoning_gym,
}
