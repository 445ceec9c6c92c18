"""Looks at the problems of a config and at who judges them, before anything is trained.

    python -m r1jax.audit --config=configs/NAME.py [--config.key=VALUE] [--stage=NAME]
        [--out=FOLDER] [--limit=N] [--strict]

Every data set of the stages that judge answers, training and evaluation alike, is read
as training reads it. Texts made from each gold (`rewards/probes.py`) are judged by the
problem's own verifier in processes as `config.reward` has them, with its deadlines.
A table is printed; FOLDER (runs/audit) gets audit.jsonl, a line for each finding, and
summary.json, the numbers. Needs no model.

`data/auditing.py` says what may be found. Severe is what makes a reward or an accuracy
wrong: gold_rejected, gold_disputed, false_positive, no_verdict, error,
conflicting_golds, overlap_kept.

Problems that a model judges (the verifier "judge") are looked at, but not judged: each
of their texts would have to be paid for. Nor are those without a gold ("none").

Exit codes: 0 done, whatever was found; with --strict 1 where a finding is severe; 2 bad
input; 130 stopped by Ctrl-C.
"""

import collections
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from r1jax import metrics, terminal
from r1jax.command import parse_flags
from r1jax.data import auditing, problems
from r1jax.data.auditing import KINDS, Audit
from r1jax.errors import InputError, one_of, refuse
from r1jax.rewards import accuracy, code, judge, probes
from r1jax.rewards.combine import choose_parts
from r1jax.rewards.probes import Probe
from r1jax.stages import setup
from r1jax.types import Problem

_LIMITS = ("num_workers", "timeout_s", "batch_timeout_s", "memory_limit_mb")
# Verifiers that are not asked.
_UNPROBED = (judge.VERIFIER, accuracy.NO_GOLD)


@dataclasses.dataclass(frozen=True)
class DataSet:
  """What is read, and who judges.

  Attributes:
    stages: those that have it with all of these settings.
    where: below the settings of a stage, "data" or "eval.sets.NAME".
    settings: of `load_problems`.
    held_out: {where: settings} of the sets that it should not overlap with.
    decontaminate: words in a row; 0 is off.
    reward: limits of the pool, and `code`.
  """

  stages: tuple[str, ...]
  where: str
  settings: Mapping[str, Any]
  held_out: Mapping[str, Mapping[str, Any]]
  decontaminate: int
  reward: Mapping[str, Any]


def data_sets(
  config: Mapping[str, Any], *, stage: str | None = None, limit: int | None = None
) -> list[DataSet]:
  """Those of one stage, or of all that judge answers; equal ones are one.

  Args:
    config: the whole config as plain dicts.
    limit: most problems of a set, or of each source of a mixture, where its own limit
      is not smaller.

  Raises:
    InputError: what `stage_configs` raises; no such stage, or none that judges.
  """
  if limit is not None and limit < 1:
    raise InputError(f"--limit={limit}; needed: 1 or more")
  stages = setup.stage_configs(config)
  judging = [name for name, own in stages.items() if {"data", "reward"} <= own.keys()]
  if not judging:
    raise InputError(
      f"config.stages={tuple(stages)}: none of them judges answers to problems, as "
      "stages of the kinds 'grpo' and 'expert' do"
    )
  if stage is not None and one_of(stage, stages, key="--stage") not in judging:
    raise InputError(
      f"--stage={stage} judges no answers to problems; these do: {', '.join(judging)}"
    )

  def shortened(settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("of"):  # as many of each source
      parts = {name: shortened(own) for name, own in settings["of"].items()}
      return {**settings, "of": parts}
    limits = [n for n in (settings.get("limit"), limit) if n is not None]
    return {**settings, "limit": min(limits, default=None)}

  found: dict[str, DataSet] = {}
  for name in judging if stage is None else [stage]:
    own = stages[name]
    where, others = "held_out", own.get("held_out", {})
    if "eval" in own:
      where, others = "eval.sets", own["eval"]["sets"]
    held_out = {
      f"{where}.{key}": shortened(settings) for key, settings in others.items()
    }
    reward = {key: own["reward"][key] for key in (*_LIMITS, "code")}
    for where, settings in {"data": shortened(own["data"]), **held_out}.items():
      others = held_out if where == "data" else {}
      words = own["decontaminate"] if others else 0
      one = DataSet((), where, settings, others, words, reward)
      same = json.dumps(dataclasses.asdict(one), sort_keys=True, default=str)
      named = (*found[same].stages, name) if same in found else (name,)
      found[same] = dataclasses.replace(one, stages=named)
  return list(found.values())


# ------------------------------------------------------------------------ what is found


def audit(data_set: DataSet, *, console: Console) -> Audit:
  """Reads a data set, compares its problems, and judges what is made from them.

  Raises:
    InputError: what `load_problems` raises; an unknown verifier; tests or workers that
      cannot be.
  """
  began = time.monotonic()
  found = Audit(f"{data_set.stages[0]}.{data_set.where}")
  kept = load(data_set.settings, data_set.where)
  verifiers = collections.Counter(problem.verifier for problem in kept)
  for name in verifiers:
    known = {*accuracy.VERIFIERS, judge.VERIFIER}
    one_of(name, known, key=f"config.{data_set.where}.verifier")
  met = problems.entries(**data_set.settings)
  entries = [problem for problem, _ in met if problem is not None]
  readable = auditing.find_unparsable(found, entries)
  held_out = {where: load(own, where) for where, own in data_set.held_out.items()}
  auditing.find_overlap(found, kept, held_out, words=data_set.decontaminate)
  judge_probes(
    found,
    [problem for problem in kept if problem.verifier not in _UNPROBED],
    readable,
    reward=data_set.reward,
    console=console,
  )
  found.facts |= {
    "source": kept.name,
    "stages": data_set.stages,
    "counts": kept.counts,
    "verifiers": dict(verifiers),
    "seconds": round(time.monotonic() - began, 1),
  }
  with_gold = [p for p in kept if p.verifier not in ("code", accuracy.NO_GOLD)]
  if with_gold:
    gold, share = auditing.most_common_gold(with_gold)
    found.facts["most_common_gold"] = {"gold": gold, "share": share}
  return found


def load(settings: Mapping[str, Any], where: str) -> problems.ProblemSet:
  """A set as training has it; errors name its own keys."""
  try:
    return problems.load_problems(**settings)
  except InputError as e:
    raise InputError(str(e).replace("config.data", f"config.{where}")) from e


def judge_probes(
  found: Audit,
  kept: Sequence[Problem],
  readable: Sequence[Problem],
  *,
  reward: Mapping[str, Any],
  console: Console,
) -> None:
  """Adds what the verifiers make of probes, and problems that were asked before.

  Args:
    kept: those that are probed.
    readable: all whose golds can be read, duplicates too, in the set's order.
  """
  settings = code.prepare(kept, timeout_s=reward["timeout_s"], **reward["code"])
  parts = choose_parts(["accuracy"], code_settings=settings)
  batches = probes.verdicts(
    parts["accuracy"],
    itertools.chain(compare_golds(found, readable), probes.of_all(kept)),
    **{key: reward[key] for key in _LIMITS},
  )
  place = {problem.id: i for i, problem in enumerate(kept, start=1)}
  earned = []
  num_judged = at = 0
  with terminal.Progress(found.data_set, len(kept), console=console) as progress:
    for batch in batches:
      for verdict in batch:
        add_verdict(found, verdict)
        if not verdict.probe.right and verdict.points is not None:
          earned.append(verdict.points)
      num_judged += len(batch)
      if place.get(verdict.problem.id, 0) > at:
        at = place[verdict.problem.id]
        progress.step(at, {})
  found.tried["no_verdict", ""] = found.tried["error", ""] = num_judged
  found.facts["wrong_points_mean"] = sum(earned) / len(earned) if earned else None


def compare_golds(
  found: Audit, readable: Sequence[Problem]
) -> Iterator[tuple[Problem, Probe]]:
  """Adds problems that were asked before. Where the golds are written otherwise, the
  earlier one is to be judged as an answer to the later problem."""
  found.tried["duplicate", ""] = len(readable)
  for first, later in auditing.asked_again(readable):
    gold = first.answer.strip()
    if gold == later.answer.strip() or later.verifier in ("code", *_UNPROBED):
      found.add("duplicate", later, first.id)
    else:
      said = f"{first.id}: {gold}"
      yield later, Probe("conflicting_golds", "", said, probes.tags(gold), True)


def add_verdict(found: Audit, verdict: probes.Verdict) -> None:
  problem, probe, points, lost, error = verdict
  found.tried[probe.kind, probe.what] += 1
  if lost:
    found.add(
      "no_verdict", problem, f"{lost} of {probe.kind}, {probe.what}: {probe.text}"
    )
  elif error:
    found.add("error", problem, error)
  elif (points >= 1.0) != probe.right:
    found.add(probe.kind, problem, probe.answer, what=probe.what)
  elif probe.kind == "conflicting_golds":  # which say the same
    found.add("duplicate", problem, probe.answer)


# ------------------------------------------------------------------- what is said of it


def print_audit(found: Audit, where: str, console: Console) -> None:
  """What was read, and a line for everything that was looked for."""
  facts = found.facts
  counts = [f"{key.replace('_', ' ')} {n:,}" for key, n in facts["counts"].items() if n]
  rows = {
    "data set": ", ".join(f"{stage}.{where}" for stage in facts["stages"]),
    "source": f"{facts['source']} ({', '.join(counts)})",
    "verifier": ", ".join(facts["verifiers"]),
  }
  if "most_common_gold" in facts:
    gold, share = facts["most_common_gold"].values()
    rows["first guess"] = f"{gold!r} is the gold of {share:.1%}"
  if facts["wrong_points_mean"] is not None:
    rows["wrong answers"] = f"{facts['wrong_points_mean']:.4f} points each, on average"
  rows["done in"] = terminal.duration(facts["seconds"])
  table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
  for name, side in (("", "left"), ("found", "right"), ("of", "right")):
    table.add_column(name, justify=side)
  table.add_column("the first", overflow="fold")
  for check in found.checks():
    style = ("bold red" if check["severe"] else "yellow") if check["found"] else "dim"
    name = check["kind"].replace("_", " ")
    name += f": {check['what']}" if check["what"] else ""
    first = terminal.printable(check["first"] or "")
    cells = (name, f"{check['found']:,}", f"{check['of']:,}", first)
    table.add_row(*(Text(cell, style=style) for cell in cells))
  for part in (terminal.pairs(rows), table, ""):
    console.print(part)


def run(
  config: Mapping[str, Any],
  out: Path,
  *,
  stage: str | None = None,
  limit: int | None = None,
  console: Console | None = None,
) -> list[Audit]:
  """Audits data sets, prints and writes what is found.

  Raises:
    InputError: what `data_sets` and `audit` raise; a folder that cannot be written.
  """
  console = Console(highlight=False) if console is None else console
  chosen = data_sets(config, stage=stage, limit=limit)
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f"--out={out}: {e.strerror}; name another folder") from e
  audits = []
  for data_set in chosen:
    with setup.keys_of(data_set.stages[0], config):
      audits.append(audit(data_set, console=console))
    print_audit(audits[-1], data_set.where, console)
  findings = [finding for one in audits for finding in one.findings]
  num_severe = sum(one.num_severe for one in audits)
  lines = [json.dumps(dataclasses.asdict(one)) + "\n" for one in findings]
  numbers = {
    "findings": len(findings),
    "severe": num_severe,
    "data_sets": {one.data_set: one.facts | {"checks": one.checks()} for one in audits},
  }
  metrics.write_whole(out / "audit.jsonl", "".join(lines).encode())
  metrics.write_whole(out / "summary.json", json.dumps(numbers, indent=2).encode())
  console.print(f"{len(findings):,} findings, {num_severe:,} of them severe: {out}")
  seen = {finding.kind for finding in findings}
  for name, kind in KINDS.items():
    if name in seen:
      mark = " (severe)" if kind.is_severe else ""
      console.print(f"  {name.replace('_', ' ')}{mark}: {kind.says}")
  return audits


# ------------------------------------------------------------------------- the command


def main(argv: Sequence[str]) -> None:
  """Exits with 2 and one line where the input is bad; see the module."""
  del argv
  given = flags.FLAGS
  if not given["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  try:
    audits = run(
      given.config.to_dict(),
      Path(given.out),
      stage=given.stage,
      limit=given.limit,
    )
  except InputError as e:
    refuse(e)
  except KeyboardInterrupt:
    sys.exit(130)
  sys.exit(int(given.strict and any(one.num_severe for one in audits)))


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", lock_config=True)
  flags.DEFINE_string("stage", None, "Of the config; by default all that judge.")
  flags.DEFINE_string("out", "runs/audit", "The folder that is written.")
  flags.DEFINE_integer("limit", None, "Most problems of a data set.")
  flags.DEFINE_bool("strict", False, "Exit with 1 where a finding is severe.")
  app.run(main, flags_parser=parse_flags)
