"""Save, restore, resume: one layout on disk.

    <folder>/<step>/state/      arrays, written by orbax under the paths of the state
    <folder>/<step>/extra/      JSON: what made it; shape and dtype of every array
    <folder>/<step>/files.json  size and CRC-32 of every file above

A step is written to a temporary folder and renamed when it is whole, so a process that
is killed at any moment leaves only whole steps under a plain number. orbax notices a
missing file but not a changed byte inside an array, so `files.json` is compared before
anything is read (only sizes on an object store, gs://, which guards its own bytes).
"""

import concurrent.futures
import contextlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from r1jax import trees
from r1jax.errors import InputError

SEAL = "files.json"
CHUNK_BYTES = 1 << 24


class Checkpoints:
  """The checkpoints of one stage.

  Reading needs no more than the folder, and may be done while another process writes.
  Every host of a run calls every method, in the same order.
  """

  def __init__(
    self,
    folder: epath.PathLike,
    *,
    keep: int = 2,
    keep_every: int | None = None,
    save_every: int = 1,
  ):
    """Opens a folder, which need not exist yet.

    Args:
      keep: how many of the latest steps stay on disk. With 1, a damaged checkpoint has
        none before it.
      keep_every: steps that are multiples of this number stay for good.
      save_every: `save` does nothing on steps that are no multiples of this number.
    """
    for name, value in (("keep", keep), ("save_every", save_every)):
      if value < 1:
        raise InputError(f"config.checkpoint.{name}={value}: must be 1 or more")
    if keep_every is not None and keep_every < 1:
      raise InputError(
        f"config.checkpoint.keep_every={keep_every}: must be 1 or more, or None"
      )
    absl_logging.get_absl_logger().addFilter(_not_from_orbax)
    self.folder = epath.Path(os.path.abspath(folder) if _local(folder) else folder)
    self._keep = keep
    self._keep_every = keep_every
    self._save_every = save_every
    self._manager = None
    self._here = None  # the step that was restored or completely saved last
    self._saving = None  # (step, bytes) of the save under way

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Steps on disk that were saved to the end, in order."""
    if not self.folder.exists():
      return []
    return sorted(
      int(path.name)
      for path in self.folder.iterdir()
      if path.name.isdigit()
      and (_local(path) or ocp.utils.is_checkpoint_finalized(path))
    )

  def latest(self) -> int | None:
    """The last of `steps`, or None where there is none."""
    return max(self.steps(), default=None)

  # --------------------------------------------------------------------------- save

  def is_due(self, step: int) -> bool:
    """Whether `save` saves this step without being forced to."""
    return step % self._save_every == 0

  def save(
    self, step: int, state: Any, extra: dict[str, Any], *, force: bool = False
  ) -> bool:
    """Starts to save in the background; the state may be donated at once.

    After a return to an earlier step (`restore` with a `step`, or past a damaged one),
    the steps that lie after it belong to an abandoned run: the first save deletes them.

    Args:
      state: any pytree of arrays.
      extra: JSON; what made the state, and where in the data it stands.
      force: save whatever `save_every` says.

    Returns:
      Whether it saves. A step that was saved or restored last is not saved again.

    Raises:
      InputError: this save, or the one before it, cannot be written; or the folder
        holds a run that was not restored.
    """
    self.check()
    if not force and not self.is_due(step):
      return False
    if step == self._here or (self._saving is not None and step == self._saving[0]):
      return False
    flat = _by_path(state)
    extra = json.loads(json.dumps(extra))
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(flat),
      extra=ocp.args.JsonSave({"extra": extra, "arrays": _shapes(flat)}),
    )
    self.wait()
    if self._manager is None:
      self._refuse_another_run(step)
    self._saving = (step, trees.num_bytes(flat))
    # A training loop may forbid hidden transfers; this one is meant.
    with self._explained(), jax.transfer_guard("allow"):
      if self._manager is None:
        self._manager = self._open()
      self._manager.save(step, args=args, force=True)
    return True

  def check(self) -> None:
    """Raises the error of a save that failed in the background; costs no time."""
    if self._saving is None or self._manager.is_saving_in_progress():
      return
    self.wait()

  def wait(self) -> None:
    """Returns when nothing is being written; raises if it failed."""
    if self._saving is None:
      return
    with self._explained():
      self._manager.wait_until_finished()
    self._here, _ = self._saving
    self._saving = None

  def close(self) -> None:
    """Waits for the last save and ends the threads behind it."""
    self.wait()
    if self._manager is not None:
      self._manager.close()
      self._manager = None

  def _refuse_another_run(self, step: int) -> None:
    existing = self.steps()
    if existing and self._here is None and step <= existing[-1]:
      raise InputError(
        f"{self.folder} already has checkpoints of steps {_listed(existing)}, and step "
        f"{step} would overwrite them: resume from them or choose another --workdir"
      )

  def _open(self) -> ocp.CheckpointManager:
    """The orbax manager; made by the first save, since it deletes what kills left."""
    policy = [checkpoint_managers.LatestN(self._keep)]
    if self._keep_every is not None:
      policy.append(checkpoint_managers.EveryNSteps(self._keep_every))
    manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policy),
        cleanup_tmp_directories=True,
        lightweight_initialize=True,
        save_root_metadata=False,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
      ),
    )
    existing = self.steps()
    ocp.utils.sync_global_processes("r1jax:checkpoints:listed")
    for abandoned in existing:
      if self._here is not None and abandoned > self._here:
        manager.delete(abandoned)
    return manager

  def _seal(self) -> None:
    """Writes sizes and sums of the files of the step that is about to be renamed."""
    if jax.process_index() != 0:
      return
    step = str(self._saving[0])
    (unfinished,) = (
      path for path in self.folder.iterdir() if path.name.split(".")[0] == step
    )
    names = sorted(
      str(path.relative_to(unfinished))
      for item in ("state", "extra")
      for path in _files_below(unfinished / item)
    )
    sums = _sizes_and_sums([unfinished / name for name in names])
    (unfinished / SEAL).write_text(json.dumps(dict(zip(names, sums, strict=True))))

  @contextlib.contextmanager
  def _explained(self):
    """Takes the remains of a failed save away; a full disk becomes one line."""
    try:
      yield
    # A full disk arrives as OSError, ValueError or a bare Exception.
    except Exception as error:
      step, num_bytes = self._saving
      self._saving = self._manager = None
      if _local(self.folder) and jax.process_index() == 0:
        for path in self.folder.glob(f"{step}.*"):
          shutil.rmtree(path, ignore_errors=True)
      # tensorstore writes the operating system's code into the text of its errors.
      if not isinstance(error, OSError) and "os_error_code" not in str(error):
        raise
      room = f"{num_bytes / 1e6:.1f} MB to write"
      if _local(self.folder) and self.folder.exists():
        room += f", {shutil.disk_usage(self.folder).free / 1e6:.1f} MB free"
      raise InputError(
        f"the checkpoint of step {step} could not be written to {self.folder} "
        f"({room}): {_reason(error)}. Make room or change --workdir; the same command "
        f"goes on from the last complete one (there are: {_listed(self.steps())})"
      ) from error

  # ------------------------------------------------------------------------ restore

  def restore(
    self,
    abstract_state: Any,
    step: int | None = None,
    *,
    skip_damaged: bool = False,
    partial: bool = False,
  ) -> tuple[Any, dict[str, Any], int]:
    """Reads a checkpoint into the shardings asked for, whatever it was saved with.

    Args:
      abstract_state: the state as ShapeDtypeStructs (or arrays). A leaf without a
        sharding goes to the first local device.
      step: which one; None is the last.
      skip_damaged: go back to the step before as long as one is damaged.
      partial: read only the paths in `abstract_state`, such as {"params": ...}; the
        others in the checkpoint are left out.

    Returns:
      (state, extra, step).

    Raises:
      InputError: there is no such step; it is damaged; its paths, shapes or dtypes are
        not those of `abstract_state`.
    """
    self.close()
    steps = self.steps()
    if not steps:
      raise InputError(f"there is no checkpoint in {self.folder}")
    if step is not None and step not in steps:
      raise InputError(
        f"config.checkpoint.step={step}: no such checkpoint in {self.folder}; "
        f"there are: {_listed(steps)}"
      )
    step = self._undamaged(
      steps if step is None else steps[: steps.index(step) + 1], skip_damaged
    )
    where = self.folder / str(step)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      made = reader.restore(where / "extra")
    target = {
      path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))
      for path, leaf in _by_path(abstract_state).items()
    }
    misfits = _misfits(made["arrays"], _shapes(target), partial=partial)
    if misfits:
      more = f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
      raise InputError(
        f"checkpoint {where} is of another model or optimizer: "
        f"{'; '.join(misfits[:5])}{more}. Use the config it was made with, or another "
        "--workdir"
      )
    with (
      jax.transfer_guard("allow"),
      ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader,
    ):
      flat = reader.restore(
        where / "state",
        args=ocp.args.PyTreeRestore(
          item=target,
          restore_args=ocp.checkpoint_utils.construct_restore_args(target),
          partial_restore=True,
        ),
      )
    self._here = step
    leaves = [flat[path] for path in target]
    structure = jax.tree.structure(abstract_state)
    return jax.tree.unflatten(structure, leaves), made["extra"], step

  def _undamaged(self, steps: list[int], skip_damaged: bool) -> int:
    """The last of `steps`, or the last undamaged one if that is allowed."""
    reasons = []
    for step in reversed(steps):
      damage = self._damage(step)
      if damage is None:
        return step
      reasons.append(f"checkpoint {self.folder / str(step)} is damaged: {damage}")
      if not skip_damaged:
        break
      absl_logging.warning("%s; going back to the one before", reasons[-1])
    before = steps[: -len(reasons)]
    if not before:
      raise InputError(f"{'; '.join(reasons)}. There is none before it")
    raise InputError(
      f"{reasons[0]}. Before it there are: {_listed(before)}. "
      f"--config.checkpoint.step={before[-1]} resumes from there, "
      "--config.checkpoint.skip_damaged=True from the last that is whole"
    )

  def _damage(self, step: int) -> str | None:
    """What is wrong with the files of a step, or None."""
    where = self.folder / str(step)
    try:
      sealed = json.loads((where / SEAL).read_text())
    except FileNotFoundError:
      return f"{SEAL} is missing"
    except ValueError:
      return f"{SEAL} is not JSON"
    for name in sealed:
      if not (where / name).exists():
        return f"{name} is missing"
    sums = _sizes_and_sums([where / name for name in sealed])
    for name, found in zip(sealed, sums, strict=True):
      if found != sealed[name]:
        kind = "size" if found[0] != sealed[name][0] else "content"
        return f"{name} has another {kind} than was written"
    return None


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes a JSON file that is at every moment either the old one or the new one."""
  path = epath.Path(path)
  text = json.dumps(value, indent=2) + "\n"
  if not _local(path):
    path.write_text(text)  # an object appears whole
    return
  unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  unfinished.write_text(text)
  unfinished.replace(path)


def _by_path(tree: Any) -> dict[str, Any]:
  """{path: leaf}; names of dict keys, fields and positions joined by "/"."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def _shapes(flat: dict[str, Any]) -> dict[str, list]:
  return {path: [list(leaf.shape), leaf.dtype.name] for path, leaf in flat.items()}


def _misfits(saved: dict, wanted: dict, *, partial: bool) -> list[str]:
  """One clause per path that differs."""
  clauses = [
    f"{path} is {_shape(saved[path])} there and {_shape(wanted[path])} here"
    for path in wanted
    if path in saved and saved[path] != wanted[path]
  ]
  clauses += [f"{path} is not in it" for path in wanted if path not in saved]
  if not partial:
    clauses += [f"{path} is only in it" for path in saved if path not in wanted]
  return clauses


def _shape(described: list) -> str:
  shape, dtype = described
  return f"{dtype}{shape}".replace(" ", "")


def _sharding(leaf: Any) -> jax.sharding.Sharding:
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return sharding


def _local(path: epath.PathLike) -> bool:
  return "://" not in str(path)


def _files_below(folder: epath.Path) -> Iterator[epath.Path]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files_below(path)
    else:
      yield path


def _sizes_and_sums(paths: list[epath.Path]) -> list[list[int]]:
  """[bytes, CRC-32] of each file; [bytes] alone on an object store."""

  def one(path):
    if not _local(path):
      return [path.stat().length]
    size = total = 0
    with open(path, "rb") as file:
      while chunk := file.read(CHUNK_BYTES):
        size, total = size + len(chunk), zlib.crc32(chunk, total)
    return [size, total]

  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(one, paths))


def _reason(error: Exception) -> str:
  """The short cause at the end of a nested error text."""
  text = " ".join(str(error).split())
  if "No space left on device" in text:
    return "no space left on device"
  return text[:300] or type(error).__name__


def _listed(steps: list[int]) -> str:
  return ", ".join(map(str, steps)) or "none"


def _not_from_orbax(record: logging.LogRecord) -> bool:
  """orbax tells every phase of every save, and repeats errors that it also raises."""
  return f"{os.sep}orbax{os.sep}" not in record.pathname
