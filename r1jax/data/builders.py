"""TFDS builders over files that a user has: array_record on disk, no tensorflow."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
  """Yields (number from 1, checked record) of a file; see `rows_of`.

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
  for number, row in rows_of(path):
    try:
      record = json.loads(row) if isinstance(row, bytes) else row
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


def rows_of(path: epath.Path) -> Iterator[tuple[int, bytes | Record]]:
  """(number from 1, a line of JSON or what a row holds) of a file, by its ending.

  `.csv` has a header, `.parquet` columns, `.json` one array or one object; `.json`
  whose first line is a whole object, and all else, has an object a line, and blank
  lines pass.

  Raises:
    InputError: a file that is not what its ending says.
  """
  content, ending = path.read_bytes(), path.suffix.lower()
  try:
    if ending == ".csv":
      yield from _cells(content.decode("utf-8-sig"))
      return
    if ending == ".parquet":
      import pyarrow.parquet

      yield from enumerate(
        pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist(), start=1
      )
      return
    if ending == ".json" and not _is_object(content.strip().partition(b"\n")[0]):
      whole = json.loads(content)
      yield from enumerate(whole if isinstance(whole, list) else [whole], start=1)
      return
  except (ValueError, csv.Error) as e:  # those of pyarrow are ValueErrors
    raise InputError(f"{path} is no {ending} file that can be read: {e}") from e
  for number, line in enumerate(content.splitlines(), start=1):
    if line.strip():
      yield number, line


def _cells(text: str) -> Iterator[tuple[int, Record]]:
  for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1):
    if None in row or None in row.values():
      raise ValueError(f"row {number} has not as many cells as the header")
    yield number, row


def _is_object(line: bytes) -> bool:
  try:
    return isinstance(json.loads(line), dict)
  except ValueError:
    return False


def text_fields(record: Record, names: tuple[str, ...]) -> Record:
  """The named fields, each a text that is not blank; else ValueError."""
  for name in names:
    if name not in record:
      raise ValueError(f"no field {name!r} among {sorted(record)}")
    if not isinstance(record[name], str) or not record[name].strip():
      raise ValueError(f"field {name!r} is {record[name]!r}, not a text")
  return {name: record[name] for name in names}


class LocalSet(tfds.core.GeneratorBasedBuilder):
  """One split of a data set from its files, one behind the other.

  Features: `line`, the number of a record, counted on from file to file; each of
  `fields` as a text; `more`, all other fields as JSON.

  Args:
    fields: name of each text -> how files spell it; the first that is there is taken.
    about: of `tfds.core.DatasetInfo`: description, citation, license.
  """

  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    *,
    paths: Sequence[epath.Path],
    local_split: str,
    fields: Mapping[str, Sequence[str]],
    on_bad_line: str,
    about: Mapping[str, str],
    **kwargs: Any,
  ):
    self._paths = paths
    self._split = local_split
    self._fields = fields
    self._on_bad_line = on_bad_line
    self._about = about
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"line": tfds.features.Scalar(np.int64)}
    features |= {name: tfds.features.Text() for name in (*self._fields, "more")}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), **self._about
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    return {self._split: self._generate_examples()}

  def _generate_examples(self):
    before = 0
    for path in self._paths:
      number = 0
      for number, record in read_lines(
        path, self._checked, on_bad_line=self._on_bad_line, key="config.data.path"
      ):
        # A skipped line stays as an empty record, so that a cached set still counts it.
        kept = dict.fromkeys((*self._fields, "more"), "") if record is None else record
        yield before + number, {"line": before + number, **kept}
      before += number

  def _checked(self, record: Record) -> dict[str, str]:
    spelled = {
      name: next((known for known in spellings if known in record), spellings[0])
      for name, spellings in self._fields.items()
    }
    numbers = {
      known: str(record[known])
      for known in spelled.values()
      # bool is an int to Python, and no number.
      if type(record.get(known)) in (int, float)
    }
    texts = text_fields(record | numbers, tuple(spelled.values()))
    more = {k: v for k, v in record.items() if k not in texts}
    kept = {name: texts[known] for name, known in spelled.items()}
    return {**kept, "more": json.dumps(more, default=str)}


def open_files(
  paths: Sequence[epath.Path],
  split: str,
  *,
  name: str,
  fields: Mapping[str, Sequence[str]],
  about: Mapping[str, str],
  data_dir: epath.PathLike | None,
  on_bad_line: str,
) -> list[Record]:
  """What `LocalSet` makes of files, in their order; skipped lines have empty texts.

  The set is prepared once per content of the files, under `data_dir` (TFDS's own
  default for None), and read from there afterwards.

  Raises:
    InputError: a file that cannot be read, or a bad line.
  """
  # Checked here as well: a prepared set is read without walking the lines.
  one_of(on_bad_line, ON_BAD_LINE, key="config.data.on_bad_line")
  spelled = {known: list(spellings) for known, spellings in fields.items()}
  made_of = [path.name.encode() + b"\0" + path.read_bytes() for path in paths]
  digest = hashlib.sha256(json.dumps([on_bad_line, spelled]).encode())
  for content in made_of:
    digest.update(hashlib.sha256(content).digest())
  builder = LocalSet(
    paths=paths,
    local_split=split,
    fields=fields,
    on_bad_line=on_bad_line,
    about=about,
    data_dir=prepared_folder(data_dir) / f"{name}_{split}_{digest.hexdigest()[:12]}",
    file_format="array_record",
  )
  if not builder.data_path.exists() and not any(any(rows_of(path)) for path in paths):
    return []  # which TFDS refuses to write
  prepare(builder)
  return sorted(records(builder, split), key=lambda record: record["line"])


def prepared_folder(data_dir: epath.PathLike | None) -> epath.Path:
  """Where sets are kept; TFDS's default for None."""
  root = tfds.core.constants.DATA_DIR if data_dir is None else data_dir
  return epath.Path(root).expanduser()


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
