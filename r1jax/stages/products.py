"""What a stage leaves that makes data: its set, what was dropped, a line of metrics."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax import metrics
from r1jax.stages.run import Run, anywhere


def write(
  run: Run,
  name: str,
  made: Sequence[Mapping[str, Any]],
  dropped: Sequence[Mapping[str, Any]],
  seen: Mapping[str, Any],
) -> None:
  """Writes all of it, the set last: where that is there, all is.

  Args:
    made: lines of the set.
    dropped: examples of what was left out, with the reason.
    seen: metrics of the stage.
  """
  run.take_back(name, -1)  # a start that was killed may have said them already
  run.writer.write(1, name, seen)
  if run.is_main:
    path = run.product(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, lines in ((path.with_name("dropped.jsonl"), dropped), (path, made)):
      text = "".join(f"{json.dumps(line)}\n" for line in lines)
      metrics.write_whole(file, text.encode())
  anywhere(False)  # waits until they are written, which all processes may read
