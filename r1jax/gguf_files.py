"""GGUF files, parsed once: for a large vocabulary the gguf package takes seconds.

Vocabulary, shape and weights of a model are read from one file, in that order.
"""

import functools
import os
import pathlib

import gguf

from r1jax.errors import InputError


def read(path: str | os.PathLike) -> gguf.GGUFReader:
  """The metadata and the mapped tensors of a file.

  Raises:
    InputError: not a GGUF file.
  """
  path = pathlib.Path(path)
  try:
    status = path.stat()
    return _parsed(path.resolve(), status.st_mtime_ns, status.st_size)
  except (ValueError, OSError) as e:
    raise InputError(f"{path}: not a GGUF file that can be read ({e})") from e


@functools.lru_cache(maxsize=1)
def _parsed(path: pathlib.Path, changed_ns: int, size: int) -> gguf.GGUFReader:
  del changed_ns, size  # a file that was written anew is parsed anew
  return gguf.GGUFReader(path)
