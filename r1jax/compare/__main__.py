"""Compares the stages of runs that differ in their seeds: a figure and a table.

    python -m r1jax.compare RUN RUN... --out=FOLDER [--set=NAME] [--answers=N]

All stages that are evaluated on the set NAME (by default the only one) are compared
after the same number of answers drawn, by default as many as all of them have drawn.
FOLDER gets comparison.png and .svg, .md (the table) and .json (all numbers). Needs
matplotlib, and of a run config.json and metrics.jsonl alone. Exit codes: 0 done, 2 bad
input.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from r1jax import metrics
from r1jax.compare import curves, figure, table
from r1jax.errors import InputError, refuse


def write(comparison: curves.Comparison, out: Path) -> list[Path]:
  """Writes the files into a folder, which is made if it is absent.

  Raises:
    InputError: matplotlib is not installed, or the disk refuses.
  """
  numbers = {
    "answers": curves.parts(comparison.budget),
    **dataclasses.asdict(comparison),
  }
  files = {
    "md": table.markdown(comparison).encode(),
    "json": (json.dumps(numbers, indent=2) + "\n").encode(),
    **figure.draw(comparison),
  }
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f"--out={out}: {e.strerror}; name another folder") from e
  paths = {out / f"comparison.{kind}": data for kind, data in files.items()}
  for path, data in paths.items():
    metrics.write_whole(path, data)
  return list(paths)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    if flags.FLAGS.out is None:
      raise InputError("--out=FOLDER is needed: the folder that is written")
  except (flags.Error, InputError) as e:
    refuse(e)
  return rest


def main(argv: Sequence[str]) -> None:
  given = flags.FLAGS
  try:
    comparison = curves.read(argv[1:], eval_set=given.set, budget=given.answers)
    paths = write(comparison, Path(given.out))
  except InputError as e:
    refuse(e)
  print(table.markdown(comparison))
  for path in paths:
    print(path)


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "The folder that is written.")
  flags.DEFINE_string("set", None, "Of config.eval.sets; by default the only one.")
  flags.DEFINE_integer("answers", None, "To compare at; by default as far as all go.")
  app.run(main, flags_parser=_parse_flags)
