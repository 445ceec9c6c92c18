"""TFDS builders over files that a user has: array_record on disk, no tensorflow."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from r1jax.errors import InputError, one_of

Record = dict[str, Any]
ON_BAD_LINE = ("error", "skip")


def read_lines(
  path: epath.PathLike,
  check: Callable[[Record], Mapping[str, Any]],
  *,
  on_bad_line: str,
  key: str,
) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
  """Yields (line number from 1, checked record) of a JSONL file; blank lines pass.

  Args:
    check: returns what to keep of a record, raises ValueError saying what is wrong.
    on_bad_line: "error" raises, "skip" yields None in place of the record.
    key: the config key that named the file, for errors.

  Raises:
    InputError: no such file, or a bad line (with file and line number).
  """
  one_of(on_bad_line, ON_BAD_LINE, key="config.data.on_bad_line")
  path = epath.Path(path)
  if not path.is_file():
    raise InputError(f"no file {path}; set --{key} to where it is")
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__} where an object should be")
      yield number, check(record)
    except ValueError as e:  # includes JSON and UTF-8 errors
      if on_bad_line == "skip":
        yield number, None
        continue
      raise InputError(
        f"{path}:{number}: {e}; mend the line, or skip such lines with "
        "--config.data.on_bad_line=skip"
      ) from e


def text_fields(record: Record, names: tuple[str, ...]) -> Record:
  """The named fields, each a text that is not blank; else ValueError."""
  for name in names:
    if name not in record:
      raise ValueError(f"no field {name!r} among {sorted(record)}")
    if not isinstance(record[name], str) or not record[name].strip():
      raise ValueError(f"field {name!r} is {record[name]!r}, not a text")
  return {name: record[name] for name in names}


class FolderGsm8k(tfds.core.GeneratorBasedBuilder):
  """One split of GSM8K (arXiv 2110.14168) from its published JSONL file.

  Features: `line` in the file, `question`, `answer` (worked steps, then `#### N`).
  """

  VERSION = tfds.core.Version("1.0.0")
  FIELDS = ("question", "answer")

  def __init__(self, *, path: epath.Path, on_bad_line: str, **kwargs: Any):
    self._path = path
    self._on_bad_line = on_bad_line
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"line": tfds.features.Scalar(np.int64)}
    features |= {name: tfds.features.Text() for name in self.FIELDS}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    return {self._path.stem: self._generate_examples(self._path)}

  def _generate_examples(self, path: epath.Path):
    for number, record in read_lines(
      path,
      lambda record: text_fields(record, self.FIELDS),
      on_bad_line=self._on_bad_line,
      key="config.data.dir",
    ):
      # A skipped line stays as an empty record, so that a cached set still counts it.
      kept = dict.fromkeys(self.FIELDS, "") if record is None else record
      yield number, {"line": number, **kept}


def open_gsm8k_folder(
  dir: epath.PathLike, split: str, *, data_dir: epath.PathLike | None, on_bad_line: str
) -> list[Record]:
  """Records of one split in file order; skipped lines have empty texts.

  The set is prepared once per content of the file, under `data_dir` (TFDS's own
  default for None), and read from there afterwards.

  Raises:
    InputError: no such folder or split file, or a bad line.
  """
  # Checked here as well: a prepared set is read without walking the lines.
  one_of(on_bad_line, ON_BAD_LINE, key="config.data.on_bad_line")
  one_of(split, ("train", "test"), key="config.data.split")
  path = epath.Path(dir) / f"{split}.jsonl"
  if not path.is_file():
    raise InputError(
      f"no file {path}; set --config.data.dir to the folder with GSM8K's train.jsonl "
      "and test.jsonl"
    )
  content = path.read_bytes()
  if not content.strip():
    return []  # which TFDS refuses to write
  root = epath.Path(data_dir if data_dir is not None else tfds.core.constants.DATA_DIR)
  digest = hashlib.sha256(on_bad_line.encode() + content).hexdigest()[:12]
  builder = FolderGsm8k(
    path=path,
    on_bad_line=on_bad_line,
    data_dir=root.expanduser() / f"gsm8k_{split}_{digest}",
    file_format="array_record",
  )
  prepare(builder)
  return sorted(records(builder, split), key=lambda record: record["line"])


def open_gsm8k_published(
  split: str, *, data_dir: epath.PathLike | None
) -> list[Record]:
  """Records of TFDS's own `gsm8k` builder, downloaded unless already prepared.

  Raises:
    InputError: the network does not give the files.
  """
  import requests
  from tensorflow_datasets.text.gsm8k import gsm8k

  one_of(split, ("train", "test"), key="config.data.split")
  builder = gsm8k.Gsm8k(data_dir=data_dir, file_format="array_record")
  try:
    if not builder.data_path.exists():
      # The downloader would retry and wait; this fails within seconds.
      url = f"{gsm8k._URL_PREFIX}train.jsonl"
      requests.head(url, timeout=10, allow_redirects=True).raise_for_status()
    prepare(builder)
  except (requests.RequestException, tfds.download.DownloadError) as e:
    raise InputError(
      f"GSM8K could not be downloaded ({type(e).__name__}); give a folder with its "
      "train.jsonl and test.jsonl by --config.data.dir"
    ) from e
  return [
    {"line": number, **record}
    for number, record in enumerate(records(builder, split), start=1)
  ]


def prepare(builder: tfds.core.DatasetBuilder) -> None:
  """Writes the set unless it is there."""
  tfds.disable_progress_bar()
  try:
    builder.download_and_prepare()
  except OSError:
    # Another process on this machine may have finished the same set first.
    if not (builder.data_path / "dataset_info.json").exists():
      raise


def records(builder: tfds.core.DatasetBuilder, split: str) -> list[Record]:
  source = builder.as_data_source(split=split)
  return [
    {
      name: value.decode() if isinstance(value, bytes) else int(value)
      for name, value in record.items()
    }
    for record in source.__getitems__(range(len(source)))
  ]
