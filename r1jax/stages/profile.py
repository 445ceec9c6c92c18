"""Traces of chosen steps, for `config.profile.steps`."""

from collections.abc import Collection
from pathlib import Path

import jax


class Profiler:
  """Writes what host and devices do in a step to `<folder>/step_<number>/`.

  Each process of a run writes its own file there.
  """

  def __init__(self, folder: Path, steps: Collection[int]):
    self._folder = folder
    self._steps = steps
    self._tracing: Path | None = None

  def is_asked(self, step: int) -> bool:
    return step in self._steps

  def begin(self, step: int) -> None:
    """The devices should have nothing to do, or that is in the trace as well."""
    self._tracing = self._folder / f"step_{step:06d}"
    jax.profiler.start_trace(self._tracing)

  def end(self) -> str:
    """Ends the trace; the devices should be done. Says where it is, how to open it."""
    jax.profiler.stop_trace()
    return (
      f"profile in {self._tracing}: open the .trace.json.gz there with "
      f"https://ui.perfetto.dev, or all of it with `xprof --logdir={self._tracing}` "
      "(pip install xprof)"
    )
