"""Starting `programs.py`: the number of devices is fixed when jax starts."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]

# {name: (mesh, what to run beside the update)}. 6 slots do not divide over 8 devices.
MESHES = {
  "one": ({}, {"rollout": 8, "fresh": True, "uneven": True}),
  "data": ({"data": 8}, {}),
  "fsdp": ({"fsdp": 8}, {}),
  "tp": ({"tp": 2, "fsdp": 4}, {}),
  "all": ({"data": 2, "fsdp": 2, "tp": 2}, {"rollout": 6, "fresh": True}),
  "ep": ({"ep": 8}, {"uneven": True}),
}
# Every architecture; these programs take minutes to compile.
FAMILY = {
  "one": ({}, {"family": True}),
  "experts": ({"fsdp": 2, "tp": 2, "ep": 2}, {"family": True}),
}


def start(out, meshes, *, devices, arguments=()):
  flags = f"--xla_force_host_platform_device_count={devices}"
  flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
  settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  settings["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles twice as fast
  environment = {**os.environ, **settings}
  command = [
    sys.executable,
    "-m",
    "tests.multidevice.programs",
    out,
    json.dumps(meshes),
  ]
  return subprocess.Popen(
    [*map(str, command), *map(str, arguments)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def run(module, *arguments, devices):
  """A module in a process with so many devices, until it has ended well."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
  process = subprocess.Popen(
    [sys.executable, "-m", module, *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  finish([process])


def finish(processes, limit_s=240):
  """Waits for all of them; none is left behind, whatever happens."""
  try:
    outputs = [process.communicate(timeout=limit_s)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output[-3000:]


def load(path, name):
  """{quantity: array} of one mesh."""
  with np.load(path) as arrays:
    here = [key for key in arrays if key.startswith(f"{name}/")]
    return {key.removeprefix(f"{name}/"): arrays[key] for key in here}
