"""How fast the programs of a GRPO step are, beside what the machine could do at most;
how fast a model is imported, and rows are multiplied with their expert's matrix.

    python tests/benchmarks/run.py NAME [--model MODEL] [--json OUT] [--repeats N]
                                        [--set KEY=VALUE ...]

NAME is `rollout` (weights to the sampler, answers to the host), `score` (the scoring
pass of one mini-batch), `update` (its forward and backward pass and AdamW, reference
log-probs given), or `all`, which starts a process for each of these three. MODEL is
`smollm2` (random weights where models/ lacks the file) or a path, both with 8 prompts x
8 samples of 64 + 128 tokens, or `quickstart` with its own shapes. Two more have shapes
of their own, and KEY is one of their SETTINGS: `import` (imports.py) and `groups`
(groups.py).

What runs are the functions that the stage calls, on random tokens, every prompt and
answer as long as may be. Text, rewards and packing are not timed. Tokens counted are,
in `rollout`, those drawn; in `score` and `update` all but padding, prompts included.
`limits.py` says what a limit is. The first call, which compiles, is not in `seconds`.
`peak_rss_gib` is the process's, from its start to the last repeat, so with loading and
compiling; `peak_device_gib` is that of the device's allocator.
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # a script sees its folder

from r1jax import train
from r1jax.checkpoints import write_json
from r1jax.errors import InputError
from tests.benchmarks import groups, imports
from tests.benchmarks.work import MODELS, WORK, config_of, start

# Benchmarks without a model of the config.
ALONE = {"import": imports, "groups": groups}


def measure(name: str, model: str, changes: Sequence[str], repeats: int) -> dict:
  """What is written as JSON, but for what all benchmarks say."""
  config = config_of(model, changes).to_dict()
  run, stage = start(config), config["zero"]
  work = WORK[name](run, stage)
  seconds = []
  for repeat in range(1 + repeats):
    began = time.perf_counter()
    tokens = work.call(repeat)
    seconds.append(time.perf_counter() - began)
  peak = peak_memory()  # now, since the limit takes memory of its own
  limit = work.limit(max(repeats, 3))
  median_s = statistics.median(seconds[1:])
  return {
    "model": model if model in MODELS else run.model.name,
    "dtype": np.dtype(run.compute_dtype).name,
    "settings": {
      "weights": config["model"]["path"] or f"random, seed {run.seed}",
      "tokens": "random, seed 0, no stop token",
      "model": dataclasses.asdict(run.model),
      "mesh": dict(run.partition.mesh.shape),
      **{key: stage[key] for key in ("rollout", "training", "loss", "optim")},
    },
    "tokens": tokens,
    "first_call_s": seconds[0],
    "seconds": seconds[1:],
    "median_s": median_s,
    "tokens_per_s": tokens / median_s,
    "limit_tokens_per_s": tokens / limit["seconds"],
    "fraction_of_limit": limit["seconds"] / median_s,
    "limit": limit,
    **peak,
  }


def peak_memory() -> dict[str, float]:
  if jax.default_backend() == "cpu":
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return {"peak_rss_gib": kib / 2**20}
  peaks = [d.memory_stats()["peak_bytes_in_use"] for d in jax.local_devices()]
  return {"peak_device_gib": max(peaks) / 2**30}


def device_name() -> str:
  kind, count = jax.devices()[0].device_kind, jax.device_count()
  if jax.default_backend() != "cpu":
    return f"{count} x {kind}"
  info = pathlib.Path("/proc/cpuinfo")
  named = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else ()
  name, cores = named[1] if named else platform.machine(), len(os.sched_getaffinity(0))
  return f"{name}, cores: {cores}, jax devices: {count}"


def table(result: Mapping[str, Any]) -> Table:
  rows = Table("what", title=f"{result['name']}, {result['model']}, {result['dtype']}")
  rows.add_column("value", justify="right")
  parts = {f"limit: {key}": value for key, value in result.get("limit", {}).items()}
  for key, value in {**result, **parts}.items():
    if isinstance(value, int | float):
      rows.add_row(key, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}")
  rows.add_row("seconds", " ".join(f"{value:.4g}" for value in result["seconds"]))
  rows.add_row("weights", result["settings"]["weights"])
  rows.add_row("device", result["device"])
  return rows


def main(argv: Sequence[str]) -> int:
  """Returns the exit code: 2 where a setting is wrong."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("name", choices=[*WORK, *ALONE, "all"])
  parser.add_argument("--model", default=MODELS[0])
  parser.add_argument("--json", help="a .json file, or a folder for NAME-MODEL-DEVICE")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="change the config, as in --set zero.rollout.prompts=2, or --set gb=0.5",
  )
  given = parser.parse_args(argv)
  is_file = given.json is not None and given.json.endswith(".json")
  if given.repeats < 1:
    parser.error(f"--repeats={given.repeats}: must be 1 or more")
  if given.name == "all":
    if is_file:
      parser.error(f"--json={given.json}: `all` writes several files; name a folder")
    rest = [word for word in argv if word != "all"]
    commands = [[sys.executable, __file__, name, *rest] for name in WORK]
    return max(subprocess.run(one, check=False).returncode for one in commands)
  try:
    if given.name in ALONE:
      result = ALONE[given.name].measure(given.set, given.repeats)
    else:
      result = measure(given.name, given.model, given.set, given.repeats)
  except InputError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  result = {
    "name": given.name,
    **result,
    "device": device_name(),
    "versions": train.versions() | {"commit": train.git_commit()},
    "command": shlex.join(["python", "tests/benchmarks/run.py", *argv]),
  }
  Console(highlight=False).print(table(result))
  if given.json is not None:
    path = pathlib.Path(given.json)
    if not is_file:
      words = (given.name, result["model"], jax.devices()[0].device_kind)
      path /= re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower()) + ".json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
