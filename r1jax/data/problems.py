"""Problems from named sources: files, TFDS builders, procedural tasks, and mixtures.

Every problem is of a category, `meta["category"]`: as its file says, or its set, or the
name of its task or source. It decides which rewards count (`config.reward.categories`).
"""

import dataclasses
import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from etils import epath

from r1jax import prng
from r1jax.data import builders, published
from r1jax.errors import InputError, one_of
from r1jax.types import Problem

# Tasks that a module of ours registers with reasoning-gym; the rest are the library's.
TASK_MODULES = {
  "op_chain": "r1jax.data.chain",
  "small_talk": "r1jax.data.small_talk",
}
PROMPT_FIELDS = ("question", "problem", "prompt")
MIXTURE = "mixture"
# What may become of an entry that is read.
FATES = ("skipped_bad_lines", "dropped_unparsable_gold", "duplicates", "kept")


class ProblemSet(Sequence[Problem]):
  """Problems in a fixed order, and what was dropped on the way.

  Attributes:
    name: source and split, for messages.
    counts: lines or entries `read`, and of them FATES; `duplicates` have the prompt of
      an earlier one.
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
  of: Mapping[str, Mapping[str, Any]] | None = None,
  on_bad_line: str = "error",
  limit: int | None = None,
) -> ProblemSet:
  """Loads the problems of one source, in the source's own order.

  Args:
    source: a key of SOURCES. None of the arguments below may be given to a source that
      does not use it.
    dir: of a set in `published.SETS`: the folder with its files; with neither `dir` nor
      `path` they are downloaded.
    path: of such a set: its file, or that of the split; jsonl: the file, which may be
      any that `builders.rows_of` reads.
    data_dir: of such a set: where it is kept once it is prepared, TFDS's default for
      None.
    task, task_args, size: reasoning_gym: task by name, its config, number of entries.
    split: of gsm8k and math; for reasoning_gym any name, each with problems of its own.
    seed: reasoning_gym only; files have an order already.
    prompt_field, answer_field: jsonl: names of fields; None takes the first of
      PROMPT_FIELDS that is there, and `answer`.
    verifier: who judges; jsonl: "math" for None, "none" for problems without answers;
      reasoning_gym: the task itself for None, or "none".
    of: mixture: {category: the arguments of its source}; sources follow one another,
      and what one of them asks again of an earlier one is a duplicate.
    on_bad_line: "error", or "skip" (and count).
    limit: keeps the first so many.

  Raises:
    InputError: unknown names, missing files, bad lines, nothing left.
  """
  counts = dict.fromkeys(("read", *FATES), 0)
  kept: list[Problem] = []
  for problem, fate in entries(
    source,
    dir=dir,
    path=path,
    data_dir=data_dir,
    task=task,
    task_args=task_args,
    split=split,
    size=size,
    seed=seed,
    prompt_field=prompt_field,
    answer_field=answer_field,
    verifier=verifier,
    of=of,
    on_bad_line=on_bad_line,
    limit=limit,
  ):
    counts["read"] += 1
    counts[fate] += 1
    if fate == "kept":
      kept.append(problem)
  has_splits = "split" in inspect.signature(SOURCES[source]).parameters
  return ProblemSet(kept, counts, f"{source}/{split}" if has_splits else source)


def entries(source: str, **settings: Any) -> Iterator[tuple[Problem | None, str]]:
  """Every entry of a source, None for a bad line, and which of FATES it has.

  Args:
    settings: of `load_problems`.

  Raises:
    InputError: as of `load_problems`.
  """
  read = SOURCES[one_of(source, SOURCES, key="config.data.source")]
  call = inspect.signature(load_problems).bind(source, **settings)
  call.apply_defaults()
  given, limit = dict(call.arguments), call.arguments["limit"]
  common = {key: given.pop(key) for key in ("split", "seed", "on_bad_line")}
  del given["source"], given["limit"]
  given = {key: v for key, v in given.items() if v is not None and v != {}}
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

  met = read(**given, **{k: v for k, v in common.items() if k in used})
  if source != MIXTURE:
    met = ((problem, "kept") for problem in met)
  counts = dict.fromkeys(FATES, 0)
  prompts: set[str] = set()
  for problem, fate in met:
    if problem is None:
      fate = "skipped_bad_lines"
    elif problem.prompt in prompts:
      fate = "duplicates"
    elif source != MIXTURE and not gold_parses(problem):
      fate = "dropped_unparsable_gold"
    if fate == "kept":
      prompts.add(problem.prompt)
    if problem is not None and "category" not in problem.meta:
      problem = in_category(problem, source)
    counts[fate] += 1
    yield problem, fate
    if limit is not None and counts["kept"] == limit:
      break
  if not counts["kept"]:
    raise InputError(
      f"the data set is empty: {counts}; look at config.data.source={source!r}, "
      + ", ".join(f"config.data.{k}={v}" for k, v in (given | common).items())
    )


def in_category(problem: Problem, category: str) -> Problem:
  return dataclasses.replace(problem, meta={**problem.meta, "category": category})


def gold_parses(problem: Problem) -> bool:
  """Whether the verifier of a problem will be able to read its gold answer."""
  gold = problem.answer.strip()
  if problem.verifier == "none":
    return True
  if problem.verifier == "code":  # whose tests are read when they are first needed
    return bool(problem.meta.get("tests"))
  if problem.verifier == "gsm8k":
    return re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)", gold) is not None
  if problem.verifier == "math" and not re.fullmatch(r"-?\d+", gold):
    import math_verify

    return bool(math_verify.parse(f"${gold}$", fallback_mode="no_fallback"))
  return bool(gold)


# The readers below yield a Problem, or None for a bad line that is to be skipped; that
# of a mixture yields what `entries` does.


def read_jsonl(
  *,
  path: epath.PathLike,
  on_bad_line: str,
  prompt_field: str | None = None,
  answer_field: str = "answer",
  verifier: str = "math",
) -> Iterator[Problem | None]:
  """Any file that `builders.rows_of` reads, one problem a line."""
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
  """Problems `name`/line; fields that are neither prompt nor answer go to meta, as
  does `category`, which must be a text."""

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
    fields = (prompt,) if verifier in ("code", "none") else (prompt, answer_field)
    own = ("category",) if "category" in record else ()
    builders.text_fields(record, (*fields, *own))
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
  verifier: str = "reasoning_gym",
) -> Iterator[Problem]:
  """A procedural task; meta holds all that the task's own judge needs.

  Entry i of a reasoning-gym data set is a function of (seed + i), so that seeds 0 and 1
  would share nearly all entries; (seed, task, split) are hashed to a seed far from
  others. With the verifier "none" the task's judge is not asked.
  """
  one_of(verifier, ("reasoning_gym", "none"), key="config.data.verifier")
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
    meta = {"task": task, "task_args": args, "module": module, "entry": entry}
    yield Problem(
      id=f"{task}/{split}/{seed}/{index}",
      prompt=entry["question"],
      answer=str(entry["answer"]),
      verifier=verifier,
      meta={**meta, "category": task},
    )


def read_mixture(
  of: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[Problem | None, str]]:
  """The `entries` of each source, with ids that begin with the category."""
  takes = inspect.signature(load_problems).parameters
  for category, settings in of.items():
    where = f"config.data.of.{category}"
    if not category or "/" in category:
      raise InputError(f"config.data.of: {category!r} is no name for a category")
    if not isinstance(settings, Mapping) or "source" not in settings:
      raise InputError(f"{where}.source is missing")
    for key in settings:
      one_of(key, takes, key=f"a key of {where}")
    try:
      for problem, fate in entries(**settings):
        if problem is not None:
          problem = dataclasses.replace(problem, id=f"{category}/{problem.id}")
          problem = in_category(problem, category)
        yield problem, fate
    except InputError as e:
      raise InputError(str(e).replace("config.data", where)) from e


SOURCES: dict[str, Callable[..., Iterator[Any]]] = {
  **{
    # Where there is one split nobody is asked which.
    name: functools.partial(
      published.read, name, *(known.files if len(known.files) == 1 else ())
    )
    for name, known in published.SETS.items()
  },
  "jsonl": read_jsonl,
  "reasoning_gym": read_reasoning_gym,
  MIXTURE: read_mixture,
}
