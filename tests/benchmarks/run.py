"""How fast the programs of a GRPO step are, beside what the machine could do at most
and beside other libraries; what the rollout engine saves; how fast a model is imported,
rows are multiplied with their expert's matrix, and the tokens of a row attend to one
another; what a gradient costs by remat policy; how many answers are judged a minute.

    python tests/benchmarks/run.py NAME [--model MODEL] [--json OUT] [--repeats N]
                                        [--set KEY=VALUE ...]
                                        [--peer PEER [--peer-python PATH]]

NAME is one of

    rollout   weights to the sampler, answers to the host
    score     the scoring pass of one mini-batch
    update    its forward and backward pass and AdamW, reference log-probs given
    step      all of a step, with the reference's scores, by phase
    refill    answers of mixed lengths, beside waves of answers (engine.py)
    prompts   prompts shared by their samples, beside a prompt for each (engine.py)
    all       a process for each of these, or each that the peer has
    import, groups, attention, remat, verdicts   shapes of their own; KEY is one of
              SETTINGS in imports.py, groups.py, attention.py, remat.py or verifiers.py

MODEL is `smollm2` (random weights where models/ lacks the file) or a path, both with 8
prompts x 8 samples of 64 + 128 tokens; `quickstart` with its own shapes; or a preset of
a dense model, as `qwen2.5-1.5b`, with random weights and 16 prompts x 16 samples of 256
+ 768 tokens. `refill` and `prompts` have sizes of their own.

What runs are the functions that the stage calls, on random tokens, every prompt and
answer as long as may be. Text and rewards are not timed. Tokens counted are those
drawn, in `score` and `update` those of every answer with its prompt; `fed_tokens` are
those that the model saw, where answers share a prompt. `limits.py` says what a limit
is; `mfu` is the model FLOPs utilization by `r1jax/limits.py`. The first call, which
compiles, is not in `seconds`; each is said on standard error as it ends.
`peak_rss_gib` is the process's, from its start to the last repeat, so with loading and
compiling; `peak_device_gib` is that of the device's allocator.

PEER is `transformers` (rollout, score, update) or `trl` (step). It does the same work
(peers.py says how) in a process of its own, by the interpreter PATH or by this one, in
turn with ours: ours, peer, ours, peer. `over_ours` holds the quotients of medians and
counts, the peer's or the engine's other way's over ours.
"""

import argparse
import contextlib
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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # a script sees its folder

from r1jax import train
from r1jax.checkpoints import write_json
from r1jax.errors import InputError
from r1jax.models.presets import PRESETS
from tests.benchmarks import (
  attention,
  engine,
  groups,
  imports,
  peer_process,
  remat,
  verifiers,
  work,
)

WORK = {
  "rollout": work.rollout,
  "score": work.score,
  "update": work.update,
  "step": work.step,
  "refill": engine.refill,
  "prompts": engine.shared_prompts,
}
SIZES = {"refill": engine.REFILL, "prompts": engine.PROMPTS}
# Benchmarks without a model of the config.
ALONE = {
  "import": imports,
  "groups": groups,
  "attention": attention,
  "remat": remat,
  "verdicts": verifiers,
}
_NAMED = ("smollm2", "quickstart", *PRESETS)
# What else decides how fast a program is.
_ENVIRONMENT = re.compile(r"XLA_FLAGS|JAX_PLATFORMS|(OMP|MKL)_NUM_THREADS")
_MFU = ("score", "update")
# Quotients of these would say nothing more.
_NO_QUOTIENT = ("first_call_s", "tokens_per_s")


def measure(
  name: str,
  model: str,
  changes: Sequence[str],
  repeats: int,
  *,
  peer: str | None = None,
  peer_python: str = sys.executable,
) -> dict[str, Any]:
  """What is written as JSON, but for what all benchmarks say."""
  config = work.config_of(model, changes, SIZES.get(name)).to_dict()
  run, others = work.start(config), {}
  with contextlib.ExitStack() as opened:
    if peer is not None:
      others[peer] = opened.enter_context(
        peer_process.started(peer, peer_python, name, run, config, calls=1 + repeats)
      )
    done = WORK[name](run, config["zero"])
    calls = {"ours": done.call, **done.beside}
    calls |= {who: other.call for who, other in others.items()}
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    seen: dict[str, list[Mapping[str, float]]] = {who: [] for who in calls}
    for repeat in range(1 + repeats):
      for who, call in calls.items():
        began = time.perf_counter()
        seen[who].append(call(repeat))
        seconds[who].append(time.perf_counter() - began)
        print(f"{repeat}: {who} {seconds[who][-1]:.4g} s", file=sys.stderr, flush=True)
  found = {who: summary(seconds[who], seen[who]) for who in calls}
  ours = found.pop("ours")
  ours |= peak_memory()  # now, since the limit takes memory of its own
  limit = done.limit(max(repeats, 3))
  return {
    "model": model if model in _NAMED else run.model.name,
    "dtype": np.dtype(run.compute_dtype).name,
    "settings": {
      "weights": config["model"]["path"] or f"random, seed {run.seed}",
      "tokens": "random, seed 0, no stop token",
      "model": dataclasses.asdict(run.model),
      "mesh": dict(run.partition.mesh.shape),
      **done.settings,
    },
    **ours,
    "limit_tokens_per_s": ours["tokens"] / limit["seconds"],
    "fraction_of_limit": limit["seconds"] / ours["median_s"],
    **({"mfu": limit["model_flops_s"] / ours["median_s"]} if name in _MFU else {}),
    "limit": limit,
    **{
      who: numbers | (others[who].about if who in others else {})
      for who, numbers in found.items()
    },
    "over_ours": {
      who: dict(quotients(numbers, ours)) for who, numbers in found.items()
    },
  }


def summary(
  seconds: Sequence[float], seen: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
  """Medians of what was timed, and the last of what was counted; the first call is
  told apart."""
  median_s = statistics.median(seconds[1:])
  last = dict(seen[-1])
  for key in last:
    if key.endswith("_s"):
      last[key] = statistics.median(one[key] for one in seen[1:])
  return {
    "first_call_s": seconds[0],
    "seconds": list(seconds[1:]),
    "median_s": median_s,
    "tokens_per_s": last["tokens"] / median_s,
    **last,
  }


def quotients(
  other: Mapping[str, Any], ours: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
  """Of the numbers that both have."""
  for key, value in other.items():
    if isinstance(value, int | float) and ours.get(key) and key not in _NO_QUOTIENT:
      yield key, value / ours[key]


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
  for key, value in flat(result):
    if isinstance(value, int | float):
      rows.add_row(key, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}")
    elif key.endswith("seconds"):
      rows.add_row(key, " ".join(f"{one:.4g}" for one in value))
  rows.add_row("weights", result["settings"]["weights"])
  rows.add_row("device", result["device"])
  return rows


def flat(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(name, value), the settings left out."""
  for key, value in result.items():
    if isinstance(value, Mapping):
      if key not in ("settings", "versions", "environment"):
        yield from flat(value, f"{prefix}{key}: ")
    else:
      yield prefix + key, value


def main(argv: Sequence[str]) -> int:
  """Returns the exit code: 2 where a setting is wrong."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("name", choices=[*WORK, *ALONE, "all"])
  parser.add_argument("--model", default="smollm2")
  parser.add_argument("--json", help="a .json file, or a folder for NAME-MODEL-DEVICE")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--peer", choices=peer_process.BENCHMARKS)
  parser.add_argument("--peer-python", default=sys.executable, metavar="PATH")
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="change the config, as in --set zero.rollout.prompts=2, or --set gb=0.5",
  )
  given = parser.parse_args(argv)
  is_file = given.json is not None and given.json.endswith(".json")
  names = list(WORK) if given.peer is None else peer_process.BENCHMARKS[given.peer]
  if given.repeats < 1:
    parser.error(f"--repeats={given.repeats}: must be 1 or more")
  if given.name == "all":
    if is_file:
      parser.error(f"--json={given.json}: `all` writes several files; name a folder")
    rest = [word for word in argv if word != "all"]
    commands = [[sys.executable, __file__, name, *rest] for name in names]
    return max(subprocess.run(one, check=False).returncode for one in commands)
  if given.peer is not None and given.name not in names:
    parser.error(f"--peer {given.peer} can be asked for {', '.join(names)} only")
  if given.peer is not None:
    # On a GPU both need room; jax takes three quarters of it otherwise.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
  load, said = os.getloadavg()[0], list(argv)
  if given.peer is not None and given.peer_python in said:
    said[said.index(given.peer_python)] = "PATH"  # it is another machine's
  try:
    if given.name in ALONE:
      result = ALONE[given.name].measure(given.set, given.repeats)
    else:
      result = measure(
        given.name,
        given.model,
        given.set,
        given.repeats,
        peer=given.peer,
        peer_python=given.peer_python,
      )
  except InputError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  result = {
    "name": given.name,
    **result,
    "device": device_name(),
    "load_at_start": load,
    "environment": {k: v for k, v in os.environ.items() if _ENVIRONMENT.match(k)},
    "versions": train.versions() | {"commit": train.git_commit()},
    "command": shlex.join(["python", "tests/benchmarks/run.py", *said]),
  }
  Console(highlight=False).print(table(result))
  if given.json is not None:
    path = pathlib.Path(given.json)
    if not is_file:
      words = [given.name, result["model"], given.peer, jax.devices()[0].device_kind]
      name = "-".join(filter(None, words)).lower()
      path /= re.sub(r"[^a-z0-9.]+", "-", name) + ".json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
