"""Text to token ids and back: one interface over three kinds of vocabulary.

A tokenizer never adds a token that the text does not spell: begin-of-text, turns and
end-of-text come from the template or from whoever assembles the row. Text is for
rewards and for people; a rollout stays ids from draw to update.
"""

import abc
import functools
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import sentencepiece
import tokenizers

from r1jax import trees
from r1jax.data import tokenizer_files
from r1jax.data.tokenizer_files import Special
from r1jax.errors import InputError, nearest, one_of


class Tokenizer(abc.ABC):
  """A vocabulary with its special ids.

  Attributes:
    pieces: the vocabulary in id order, as stored (byte-level pieces look odd).
    vocab_size: length of `pieces`; a model may have more rows than this.
    bos_id, eos_id, pad_id, stop_ids, chat_template: see `Special`.
  """

  def __init__(self, pieces: Sequence[str], special: Special):
    self.pieces = tuple(pieces)
    self.vocab_size = len(self.pieces)
    self.bos_id = special.bos_id
    self.eos_id = special.eos_id
    self.pad_id = special.pad_id
    self.stop_ids = special.stop_ids
    self.chat_template = special.chat_template

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Ids of a text. Special tokens spelled in it become their ids; none is added."""

  @abc.abstractmethod
  def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
    """Text of ids.

    Args:
      ids: any integers; those at or past `vocab_size` (rows that pad a model's
        embedding) have no text.
      skip_special: leave out control tokens such as end-of-text. Symbols that the
        model writes as part of an answer (`<think>`) stay.
    """

  @abc.abstractmethod
  def save(self, folder: str | os.PathLike) -> None:
    """Writes files from which `load_tokenizer(folder)` makes an equal tokenizer."""

  def id_of(self, piece: str) -> int:
    """The id of a piece as stored. Raises InputError where there is none."""
    if piece not in self._ids:
      raise InputError(
        f"{piece!r} is not one token of this vocabulary{nearest(piece, self._ids)}"
      )
    return self._ids[piece]

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(self.pieces)}

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hex digits that name the list of pieces, whatever file it came from."""
    return trees.digest(json.dumps(self.pieces))


class SentencePieceTokenizer(Tokenizer):
  """A sentencepiece model, from its serialized bytes.

  Where the model was trained with a dummy prefix (Llama 2), each stretch of text
  between two control tokens gets one.
  """

  def __init__(self, model: bytes, *, chat_template: str | None = None):
    self._model = model
    self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = self._sp.vocab_size()
    eos_id, bos_id, pad_id = self._sp.eos_id(), self._sp.bos_id(), self._sp.pad_id()
    if eos_id < 0:
      raise InputError("the sentencepiece model has no end-of-text piece (eos_id)")
    pieces = [self._sp.id_to_piece(i) for i in range(size)]
    self._control = {pieces[i]: i for i in range(size) if self._sp.is_control(i)}
    self._control_ids = frozenset(self._control.values())
    self._split = re.compile(f"({'|'.join(map(re.escape, self._control))})")
    super().__init__(
      pieces,
      Special(
        bos_id=bos_id if bos_id >= 0 else None,
        eos_id=eos_id,
        pad_id=pad_id if pad_id >= 0 else eos_id,
        stop_ids=(eos_id,),
        chat_template=chat_template,
      ),
    )

  def encode(self, text: str) -> list[int]:
    ids = []
    for part in self._split.split(text):
      if part in self._control:
        ids.append(self._control[part])
      elif part:
        ids.extend(self._sp.encode(part))
    return ids

  def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
    texts, run = [], []
    for i in map(int, ids):
      if i not in self._control_ids:
        run.extend([i] if i < self.vocab_size else [])
      elif not skip_special:
        texts += [self._sp.decode(run), self.pieces[i]]
        run = []
    return "".join([*texts, self._sp.decode(run)])

  def save(self, folder: str | os.PathLike) -> None:
    folder = pathlib.Path(folder)
    _write(folder / "tokenizer.model", self._model)
    if self.chat_template is not None:
      _write(folder / "chat_template.jinja", self.chat_template.encode())


class HuggingFaceTokenizer(Tokenizer):
  """A vocabulary of the `tokenizers` library: tokenizer.json, or built from GGUF."""

  def __init__(self, backend: tokenizers.Tokenizer, special: Special):
    self._backend = backend
    by_id = {i: piece for piece, i in backend.get_vocab().items()}
    super().__init__([by_id.get(i, "") for i in range(max(by_id) + 1)], special)
    for i in special.stop_ids:
      if i not in by_id:
        raise InputError(f"end token id {i} is not in the vocabulary of {len(by_id)}")

  def encode(self, text: str) -> list[int]:
    return self._backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
    return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

  def save(self, folder: str | os.PathLike) -> None:
    folder = pathlib.Path(folder)
    named = {"eos": self.eos_id, "pad": self.pad_id, "bos": self.bos_id}
    config = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      **{f"{k}_token": self.pieces[i] for k, i in named.items() if i is not None},
      "chat_template": self.chat_template,
      "clean_up_tokenization_spaces": False,
    }
    generation = {
      f"{kind}_token_id": list(self.stop_ids) if kind == "eos" else i
      for kind, i in named.items()
    }
    _write(folder / "tokenizer.json", self._backend.to_str().encode())
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode())
    _write(folder / "generation_config.json", json.dumps(generation, indent=2).encode())


def _write(path: pathlib.Path, content: bytes) -> None:
  """Whole or not at all, so that a killed run leaves no half file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f".{path.name}.{os.getpid()}")
  part.write_bytes(content)
  os.replace(part, path)


def train_sentencepiece(
  lines: Iterable[str],
  *,
  vocab_size: int | None = None,
  model_type: str = "char",
  symbols: Sequence[str] = ("<think>", "</think>", "<answer>", "</answer>"),
  path: str | os.PathLike,
) -> SentencePieceTokenizer:
  """Trains a vocabulary and writes it; the same lines give the same bytes.

  Text goes in as it is: no normalisation, no dummy prefix, spaces kept, newline a
  symbol of its own. So decode(encode(t)) == t for every t whose characters were in
  `lines`, except that U+2581, sentencepiece's own mark, reads back as a space. Other
  characters become the unknown piece. Ids 0, 1, 2 are pad, end-of-text, unknown.

  Args:
    vocab_size: upper limit of the number of pieces; None keeps every character
      (`char` only).
    model_type: "char", "bpe" or "unigram".
    symbols: texts that are always one token, newline aside.
    path: the `.model` file to write.

  Raises:
    InputError: an unknown model type, no lines, or a size that does not fit them.
  """
  one_of(model_type, ["char", "bpe", "unigram"], key="tokenizer.model_type")
  if vocab_size is None and model_type != "char":
    raise InputError(f"tokenizer.vocab_size must be given for {model_type!r}")
  size = {"use_all_vocab": True} if vocab_size is None else {"vocab_size": vocab_size}
  lines = list(lines)
  if not any(lines):
    raise InputError("cannot train a tokenizer on no text: the corpus is empty")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_writer=model,
      model_type=model_type,
      user_defined_symbols=list(dict.fromkeys(["\n", *symbols])),
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      character_coverage=1.0,
      hard_vocab_limit=False,
      max_sentence_length=1 << 30,
      num_threads=1,  # the order of floating-point sums
      minloglevel=2,
      **size,
    )
  except RuntimeError as e:
    raise InputError(
      f"sentencepiece cannot train {model_type!r} with tokenizer.vocab_size="
      f"{vocab_size} on this text: {e}"
    ) from e
  _write(pathlib.Path(path), model.getvalue())
  return SentencePieceTokenizer(model.getvalue())


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
  """Reads a tokenizer from a `.model`, `.json` or `.gguf` file or a folder with one.

  In a folder, `tokenizer.json` is taken before a `.model`, and that before a `.gguf`.

  Raises:
    InputError: nothing there, nothing readable in it, or more than one choice.
  """
  path, given = pathlib.Path(path), str(path)
  if not given or not path.exists():
    raise InputError(f"config.tokenizer.path: {given!r} does not exist")
  if path.is_dir():
    return load_tokenizer(_file_in(path))
  if path.suffix == ".json":
    return HuggingFaceTokenizer(*tokenizer_files.read_hugging_face(path))
  if path.suffix == ".gguf":
    return HuggingFaceTokenizer(*tokenizer_files.read_gguf(path))
  if path.suffix == ".model":
    return _load_sentencepiece(path)
  raise InputError(
    f"config.tokenizer.path: {str(path)!r} ends in {path.suffix!r}; allowed: "
    ".model, .json, .gguf, or a folder with one of them"
  )


def _file_in(folder: pathlib.Path) -> pathlib.Path:
  for pattern in ("tokenizer.json", "*.model", "*.gguf"):
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
      names = ", ".join(file.name for file in found)
      raise InputError(
        f"config.tokenizer.path: {str(folder)!r} has several: {names}; name one"
      )
    if found:
      return found[0]
  raise InputError(
    f"config.tokenizer.path: {str(folder)!r} has no tokenizer.json, no .model "
    "and no .gguf file"
  )


def _load_sentencepiece(path: pathlib.Path) -> SentencePieceTokenizer:
  if (path.parent / "added_tokens.json").exists():
    raise InputError(
      f"{path}: added_tokens.json beside it extends the vocabulary; "
      "only tokenizer.json can say that here"
    )
  try:
    return SentencePieceTokenizer(
      path.read_bytes(),
      chat_template=tokenizer_files.read_chat_template(path.parent),
    )
  except RuntimeError as e:
    raise InputError(f"{path}: not a sentencepiece model ({e})") from e
