"""Starts a peer (peers.py) and asks it for one call at a time, in turn with ours."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from r1jax.errors import InputError
from r1jax.stages.run import Run
from r1jax.weights import hf_config
from tests.benchmarks import work

# Benchmarks that each peer can be asked for.
BENCHMARKS = {"transformers": ("rollout", "score", "update"), "trl": ("step",)}
_PACKAGES = {
  "transformers": ("torch", "transformers"),
  "trl": ("torch", "transformers", "trl", "accelerate", "datasets"),
}
_ROOT = pathlib.Path(__file__).parents[2]
_SCRIPT = pathlib.Path(__file__).with_name("peers.py")
# Nothing is looked for on a network.
_ENVIRONMENT = {
  "HF_HUB_OFFLINE": "1",
  "TRANSFORMERS_VERBOSITY": "error",
  "TOKENIZERS_PARALLELISM": "false",
}


class Peer:
  """A running peer.

  Attributes:
    about: what it says of itself: versions, threads, and what it has chosen.
  """

  def __init__(self, name: str, process: subprocess.Popen, job: Mapping[str, Any]):
    self._name, self._process = name, process
    self.about = self._ask(job)

  def call(self, repeat: int) -> dict[str, float]:
    return self._ask({"call": repeat})

  def _ask(self, what: Mapping[str, Any]) -> dict[str, Any]:
    # Of a process that has ended there is nothing to read, which says so below.
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps(what), file=self._process.stdin, flush=True)
    line = self._process.stdout.readline()
    if not line:
      raise InputError(
        f"--peer {self._name} ended with code {self._process.wait()} and without an "
        "answer; what it printed says why"
      )
    return json.loads(line)


@contextlib.contextmanager
def started(
  peer: str,
  python: str,
  name: str,
  run: Run,
  config: Mapping[str, Any],
  *,
  calls: int,
) -> Iterator[Peer]:
  """A peer that holds the same weights, or as many random ones; it ends in the end.

  Args:
    peer, name: one of `BENCHMARKS`, and one that it can be asked for.
    python: the interpreter that has its packages.
    calls: how often it is going to be called.

  Raises:
    InputError: the interpreter lacks packages, or the peer ended by itself.
  """
  _check(peer, python)
  path = config["model"]["path"]
  with tempfile.TemporaryDirectory() as folder:
    if path:
      _export(path, folder)
    else:
      fields = json.dumps(hf_config.config_to_hf(run.model))
      pathlib.Path(folder, "config.json").write_text(fields, encoding="utf-8")
    job = job_of(peer, name, run, config["zero"])
    job |= {"folder": folder, "has_weights": bool(path), "calls": calls}
    with subprocess.Popen(
      [python, str(_SCRIPT)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | _ENVIRONMENT,
    ) as process:
      try:
        yield Peer(peer, process, job)
      finally:
        process.kill()


def _check(peer: str, python: str) -> None:
  """Raises InputError where packages are missing."""
  code = (
    "import importlib.util, sys; "
    "print(*(name for name in sys.argv[1:] if not importlib.util.find_spec(name)))"
  )
  try:
    missing = subprocess.run(
      [python, "-c", code, *_PACKAGES[peer]], capture_output=True, text=True, check=True
    ).stdout.split()
  except (OSError, subprocess.CalledProcessError) as e:
    raise InputError(f"--peer-python {python}: is no Python interpreter ({e})") from e
  if missing:
    raise InputError(
      f"--peer {peer} needs {', '.join(_PACKAGES[peer])}, and {python} lacks "
      f"{', '.join(missing)}; name an interpreter that has them by --peer-python"
    )


def _export(path: str, folder: str) -> None:
  """The model as a folder of transformers, by a process whose memory is not ours."""
  paths = filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])
  done = subprocess.run(
    [sys.executable, "-m", "r1jax.export", f"--model={path}", f"--out={folder}"],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise InputError(f"--model {path}: r1jax.export says: {done.stderr.strip()}")


def job_of(peer: str, name: str, run: Run, stage: Mapping[str, Any]) -> dict[str, Any]:
  """What `peers.Job` holds, but for its folder: the work that ours does."""
  sizes, training, losses = stage["rollout"], stage["training"], stage["loss"]
  rows = work.num_rows(stage)
  own = slice(rows // training["minibatches"])  # the first mini-batch
  optim = ("learning_rate", "b1", "b2", "eps", "weight_decay", "grad_clip")
  return {
    "peer": peer,
    "name": name,
    "dtype": np.dtype(run.compute_dtype).name,
    "device": "cpu" if jax.default_backend() == "cpu" else "cuda",
    "prompts": work.prompts(run, stage),
    "completions": work.random_ids(run, rows, sizes["max_tokens"])[own],
    "prompt_of": work.prompt_of(stage)[own].tolist(),
    "advantage": work.advantage(stage)[own].tolist(),
    "samples": sizes["group_size"],
    "max_tokens": sizes["max_tokens"],
    "parts": training["minibatches"],
    **{key: sizes[key] for key in ("temperature", "top_k", "top_p", "min_p")},
    "loss": {key: losses[key] for key in ("clip_low", "clip_high", "kl_coef")}
    | {"logp_ref": work.uniform_logp(run)},
    "optim": {key: stage["optim"][key] for key in optim},
  }
