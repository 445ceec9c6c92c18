"""The folder of an evaluation: whose it is, and what is written when all is judged.

Its settings are written first; answers come in parts, below samples/, which are
replaced by the files that are kept; the results are last, so that where they are all
is.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r1jax import metrics
from r1jax.errors import InputError
from r1jax.evaluate import table
from r1jax.stages.lineage import differences
from r1jax.stages.run import SETTINGS

RESULTS = "results.json"
KEPT = ("samples.jsonl", "results.md", RESULTS)
_PARTS = "samples"


def check(out: Path, made: Mapping[str, Any], *, overwrite: bool) -> None:
  """Sees to it that a folder is free, or of an evaluation with the same settings.

  Args:
    made: settings; those that it does not have are not compared.
    overwrite: another evaluation goes.

  Raises:
    InputError: it holds something else.
  """
  if out.exists() and not out.is_dir():
    raise InputError(f"--out={out} is a file; name a folder")
  if not out.exists() or not any(out.iterdir()):
    return
  if not (out / SETTINGS).exists():
    raise InputError(
      f"--out={out} is not empty, and holds no evaluation ({SETTINGS} is not there); "
      "name another folder"
    )
  before = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
  changed = differences({key: before.get(key) for key in made}, made)
  if not changed:
    return
  if not overwrite:
    more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
    raise InputError(
      f"--out={out} holds another evaluation: {'; '.join(changed[:4])}{more}. Name "
      "another folder, or --overwrite it"
    )
  for name in reversed((SETTINGS, *KEPT)):
    (out / name).unlink(missing_ok=True)
  shutil.rmtree(out / _PARTS, ignore_errors=True)


def begin(out: Path, made: Mapping[str, Any]) -> None:
  out.mkdir(parents=True, exist_ok=True)
  metrics.write_whole(out / SETTINGS, _text(made))


def done(out: Path) -> dict[str, Any] | None:
  """The results, where all is there."""
  path = out / RESULTS
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def finish(
  out: Path, lines: Iterable[Mapping[str, Any]], results: Mapping[str, Any]
) -> None:
  """Writes what is kept."""
  contents = (
    "".join(json.dumps(line) + "\n" for line in lines).encode(),
    table.markdown(results).encode(),
    _text(results),
  )
  for name, data in zip(KEPT, contents, strict=True):
    metrics.write_whole(out / name, data)
  shutil.rmtree(out / _PARTS)


def _text(value: Mapping[str, Any]) -> bytes:
  return (json.dumps(value, indent=2) + "\n").encode()
