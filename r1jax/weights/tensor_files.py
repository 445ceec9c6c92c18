"""The safetensors files of a folder: tensors by name, read in part, written one by one.

Reading maps the files into memory: what is read lies in the page cache, and only its
pages are touched. (The safetensors library makes a copy of what it reads, knows no
float8 in numpy, and writes a file only from all of its tensors at once.)
"""

import json
import mmap
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from r1jax.errors import InputError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SCALE = "_scale_inv"  # of the blocks of the tensor that is called so without it
SCALE_BLOCK = 128
_DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
}
_FLOAT8 = {"F8_E4M3": np.dtype(jnp.float8_e4m3fn)}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class TensorFiles:
  """All tensors of a folder.

  Attributes:
    shapes: {name: shape} of all but the scales of float8 blocks.
  """

  def __init__(self, folder: pathlib.Path, *, float8: bool):
    """Opens model.safetensors, or the files that an index names.

    Args:
      float8: whether tensors may be stored in float8 with scales.

    Raises:
      InputError: files that are absent or damaged, a tensor that two of them hold, a
        stored type that is not a plain float, scales that do not fit.
    """
    dtypes = _DTYPES | (_FLOAT8 if float8 else {})
    self._arrays: dict[str, np.ndarray] = {}
    self._maps: dict[str, tuple[mmap.mmap, int]] = {}
    for path in _files(folder):
      header, start, data = _open(path)
      address = np.frombuffer(data, np.uint8).ctypes.data
      for name, entry in header.items():
        if name in self._arrays:
          raise InputError(f"{path}: duplicate tensor {name}, also in another file")
        if entry["dtype"] not in dtypes:
          allowed = ", ".join(dtypes)
          raise InputError(
            f"{path}: {name} is stored as {entry['dtype']}; allowed: {allowed}"
          )
        first, last = entry["data_offsets"]
        self._arrays[name] = (
          np.frombuffer(data, np.uint8, last - first, start + first)
          .view(dtypes[entry["dtype"]])
          .reshape(entry["shape"])
        )
        self._maps[name] = data, address
    self._check_scales(folder)
    self.shapes = {
      name: array.shape
      for name, array in self._arrays.items()
      if not name.endswith(SCALE)
    }

  def read(self, name: str, index: tuple) -> np.ndarray:
    """A part of a tensor, float8 multiplied with the scales of its blocks.

    Args:
      index: a number or slice for each axis.
    """
    part = self._arrays[name][index]
    self._read_ahead(name, part)
    if part.dtype not in _FLOAT8.values():
      return part
    bounds = [
      span.indices(size)[:2]
      for span, size in zip(index, self.shapes[name], strict=True)
    ]
    blocks = [slice(a // SCALE_BLOCK, -(-b // SCALE_BLOCK)) for a, b in bounds]
    scales = self._arrays[name + SCALE][tuple(blocks)]
    (first, last), (left, right) = bounds
    skipped = left % SCALE_BLOCK
    out = part.astype(np.float32)
    for row, scale in enumerate(scales, blocks[0].start):
      along = np.repeat(scale, SCALE_BLOCK)[skipped : skipped + right - left]
      here = max(row * SCALE_BLOCK, first), min((row + 1) * SCALE_BLOCK, last)
      out[slice(*(i - first for i in here))] *= along
    return out

  def _read_ahead(self, name: str, part: np.ndarray) -> None:
    """Asks for the pages of a part at once, unless most of them are not needed."""
    data, address = self._maps[name]
    low, high = np.lib.array_utils.byte_bounds(part)
    if high - low <= 2 * part.nbytes:
      start = (low - address) // mmap.PAGESIZE * mmap.PAGESIZE
      data.madvise(mmap.MADV_WILLNEED, start, high - address - start)

  def _check_scales(self, folder: pathlib.Path) -> None:
    def is_float8(name: str) -> bool:
      array = self._arrays.get(name)
      return array is not None and array.dtype in _FLOAT8.values()

    for name, array in self._arrays.items():
      if name.endswith(SCALE) and not is_float8(name.removesuffix(SCALE)):
        raise InputError(
          f"{folder}: {name} scales {name.removesuffix(SCALE)}, which is not there in "
          "float8"
        )
      if not is_float8(name):
        continue
      scales = self._arrays.get(name + SCALE)
      want = tuple(-(-size // SCALE_BLOCK) for size in array.shape)
      if scales is None or array.ndim != 2:
        raise InputError(f"{folder}: missing {name}{SCALE}, the scales of {name}")
      if scales.shape != want or scales.dtype != np.float32:
        raise InputError(
          f"{folder}: {name}{SCALE} is {scales.dtype}{list(scales.shape)}; for "
          f"{list(array.shape)} in blocks of {SCALE_BLOCK} it must be "
          f"float32{list(want)}"
        )


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = folder / INDEX
  if index.exists():
    try:
      files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (json.JSONDecodeError, KeyError) as e:
      raise InputError(f"{index}: not an index with a weight_map") from e
    return [folder / name for name in sorted(files)]
  if not (folder / SINGLE).exists():
    raise InputError(f"{str(folder)!r} has neither {SINGLE} nor {INDEX}")
  return [folder / SINGLE]


def _open(path: pathlib.Path) -> tuple[dict[str, Any], int, mmap.mmap]:
  """(header, where the data starts, the whole file)."""
  try:
    with safetensors.safe_open(path, "numpy"):
      pass  # the library checks that the header and the file's size fit
  except (safetensors.SafetensorError, OSError) as e:
    raise InputError(f"{path}: not a safetensors file ({e})") from e
  with open(path, "rb") as file:
    (size,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(size))
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  header.pop("__metadata__", None)
  return header, 8 + size, data


def write_file(
  path: pathlib.Path,
  tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  make: Callable[[str], np.ndarray],
) -> None:
  """Writes a safetensors file, holding one tensor at a time.

  Args:
    tensors: {name: (shape, dtype)}.
    make: name -> the tensor.
  """
  # As the library does, wider types come first, so that each is aligned to its width.
  names = sorted(tensors, key=lambda name: -tensors[name][1].itemsize)
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name in names:
    shape, dtype = tensors[name]
    start, end = end, end + num_bytes(tensors[name])
    header[name] = {
      "dtype": _CODES[dtype],
      "shape": list(shape),
      "data_offsets": [start, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
      array = make(name)
      if (array.shape, array.dtype) != tensors[name]:
        raise ValueError(f"{name} is {array.dtype}{array.shape}, not {tensors[name]}")
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def num_bytes(tensor: tuple[tuple[int, ...], np.dtype]) -> int:
  shape, dtype = tensor
  return int(np.prod(shape)) * dtype.itemsize


def split(
  tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]], max_bytes: int
) -> list[list[str]]:
  """Names of the tensors of each file, in order.

  Args:
    max_bytes: of a file's tensors; one that is larger has a file of its own.
  """
  files, size = [[]], 0
  for name, tensor in tensors.items():
    size += num_bytes(tensor)
    if files[-1] and size > max_bytes:
      files.append([])
      size = num_bytes(tensor)
    files[-1].append(name)
  return files


def file_names(count: int) -> list[str]:
  if count == 1:
    return [SINGLE]
  return [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
