"""What a model costs to import: time beside that of reading its bytes, and memory.

The folder is synthetic: random bfloat16 in the shapes of a Llama, in several files. The
reference is safetensors.numpy.load_file of the same files, all tensors held until the
last is read. Both come from the page cache, in turn.

The peak is of anonymous memory during the first import, sampled all the while, beyond
what there was before it and, where the host's memory holds them, the parameters.
"""

import contextlib
import dataclasses
import json
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from r1jax.errors import InputError, nearest, one_of
from r1jax.models.config import ModelConfig
from r1jax.stages.setup import DTYPES
from r1jax.weights import assemble, hf, hf_config

SETTINGS = {"gb": 2.0, "dtype": "bfloat16", "width": 2048, "file_gb": 0.5}
_SAMPLE_S = 0.002


def changed(settings: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
  """Settings, changed by "key=value" each, the value as JSON."""
  found = dict(settings)
  for change in changes:
    key, _, text = change.partition("=")
    if key not in found:
      raise InputError(
        f"--set {change}: no such setting{nearest(key, found)}; there are: "
        f"{', '.join(found)}"
      )
    try:
      found[key] = type(found[key])(json.loads(text))
    except ValueError as e:
      raise InputError(
        f"--set {change}: {e} (the value is JSON: text is quoted)"
      ) from e
  return found


def shape_of(width: int, gb: float) -> ModelConfig:
  """A Llama of about so many bytes in bfloat16."""
  heads = max(width // 128, 1)
  c = ModelConfig(
    depth=1,
    width=width,
    heads=heads,
    kv_heads=heads if heads % 4 else heads // 4,
    head_dim=width // heads,
    ffw=4 * width,
    vocab=32 * width,
    name="synthetic",
  )
  layer = 2 * width * (2 * width + 2 * c.kv_heads * c.head_dim + 3 * c.ffw)
  left = gb * 1e9 - 2 * c.vocab * width
  return dataclasses.replace(c, depth=max(round(left / layer), 1))


def write_folder(folder: pathlib.Path, c: ModelConfig, file_bytes: float) -> list[int]:
  """Random tensors in files of about so many bytes; bytes of each tensor."""
  rng = np.random.default_rng(0)
  (folder / "config.json").write_text(json.dumps(hf_config.config_to_hf(c)))
  where, sizes, held = {}, [], {}

  def flush() -> None:
    name = f"model-{len(set(where.values())):05}.safetensors"
    safetensors.numpy.save_file(held, folder / name)
    where.update(dict.fromkeys(held, name))
    held.clear()

  for name, shape in assemble.stored_shapes(c, hf.layout(c)).items():
    bits = rng.integers(0, 0x3F80, shape, np.uint16)  # below 1: no infinity
    held[name] = bits.view(ml_dtypes.bfloat16)
    sizes.append(bits.nbytes)
    if sum(array.nbytes for array in held.values()) > file_bytes:
      flush()
  if held:
    flush()
  index = {"metadata": {}, "weight_map": where}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return sizes


@contextlib.contextmanager
def sampled_peak() -> Iterator[list[int]]:
  """Yields a list whose one number is, in the end, the peak beyond the start, bytes."""

  def anonymous() -> int:
    text = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (row for row in text.splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

  def watch() -> None:
    while not done.wait(_SAMPLE_S):
      peak[0] = max(peak[0], anonymous() - start)

  peak, done, start = [0], threading.Event(), anonymous()
  thread = threading.Thread(target=watch)
  thread.start()
  try:
    yield peak
  finally:
    done.set()
    thread.join()


def measure(changes: Sequence[str], repeats: int) -> dict[str, Any]:
  """What is written as JSON, but for what all benchmarks say."""
  given = changed(SETTINGS, changes)
  one_of(given["dtype"], DTYPES, key="--set dtype")
  c, dtype = shape_of(given["width"], given["gb"]), DTYPES[given["dtype"]]
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    sizes = write_folder(folder, c, given["file_gb"] * 1e9)
    files = sorted(folder.glob("*.safetensors"))

    def read() -> Any:
      return [safetensors.numpy.load_file(file) for file in files]

    def load() -> Any:
      return jax.block_until_ready(hf.load_hf(folder, dtype=dtype)[1])

    def seconds(run: Any) -> float:
      began = time.perf_counter()
      held = run()
      ended = time.perf_counter()
      del held
      return ended - began

    with sampled_peak() as peak:
      first_s = seconds(load)
    on_host = jax.default_backend() == "cpu"
    beyond = peak[0] - on_host * sum(sizes) // 2 * np.dtype(dtype).itemsize
    reads, loads = [], []
    for _ in range(repeats):
      reads.append(seconds(read))
      loads.append(seconds(load))
  read_s, load_s = statistics.median(reads), statistics.median(loads)
  return {
    "model": c.name,
    "dtype": given["dtype"],
    "settings": {
      **given,
      "weights": "random bfloat16, seed 0",
      "model": dataclasses.asdict(c),
      "block_bytes": 4 * assemble.BLOCK_SIZE,
    },
    "bytes": sum(sizes),
    "largest_tensor_bytes": max(sizes),
    "first_call_s": first_s,
    "seconds": loads,
    "median_s": load_s,
    "bytes_per_s": sum(sizes) / load_s,
    "read_seconds": reads,
    "read_bytes_per_s": sum(sizes) / read_s,
    "rate_over_reading": read_s / load_s,
    "peak_beyond_params_bytes": beyond,
    "peak_over_largest_tensor": beyond / max(sizes),
  }
