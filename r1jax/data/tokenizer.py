"""Text to token ids and back: one interface over three kinds of vocabulary.

Begin-of-text stands once: `encode` adds no token that the text does not spell, and with
`begin=True` puts in front what the model saw in front of every text, unless the text
spells it. A chat template writes its own, so its text is encoded without `begin`; turns
and end-of-text come from the template or from whoever assembles the row. Text is for
rewards and for people; a rollout stays ids from draw to update.
"""

import abc
import functools
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sentencepiece
import tokenizers

from r1jax import trees
from r1jax.data import tokenizer_files, tokenizer_gguf
from r1jax.data.tokenizer_files import Special
from r1jax.errors import InputError, nearest, one_of

_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class Tokenizer(abc.ABC):
  """A vocabulary with its special ids.

  Attributes:
    pieces: the vocabulary in id order, as stored (byte-level pieces look odd).
    vocab_size: length of `pieces`; a model may have more rows than this.
    added: {piece that is matched whole wherever a text spells it: whether it is a
      control token}.
    bos_id, eos_id, pad_id, stop_ids, begin_ids, chat_template: see `Special`.
  """

  def __init__(
    self, pieces: Sequence[str], special: Special, added: Mapping[str, bool]
  ):
    self.pieces = tuple(pieces)
    self.vocab_size = len(self.pieces)
    self.added = dict(added)
    self.bos_id = special.bos_id
    self.eos_id = special.eos_id
    self.pad_id = special.pad_id
    self.stop_ids = special.stop_ids
    self.begin_ids = special.begin_ids
    self.chat_template = special.chat_template
    for i in special.stop_ids:
      if not 0 <= i < self.vocab_size:
        raise InputError(f"end token id {i} is not in the vocabulary of {len(pieces)}")

  def encode(self, text: str, *, begin: bool = False) -> list[int]:
    """Ids of a text. Special tokens spelled in it become their ids.

    Args:
      begin: put `begin_ids` in front, unless they are there; nothing else is added.
    """
    ids = self._encode(text)
    first = list(self.begin_ids) if begin else []
    return ids if ids[: len(first)] == first else first + ids

  @abc.abstractmethod
  def _encode(self, text: str) -> list[int]: ...

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

  def token_bytes(self, token_id: int) -> bytes:
    """What an id adds to a text in UTF-8, which may be a part of a character.

    Control tokens add nothing, nor do ids at or past `vocab_size`. Where `encode` puts
    a space in front of a stretch of text (Llama 2), the space is in the bytes of the
    first token, though `decode` leaves it out: which token is first is not known here.

    Raises:
      InputError: a tokenizer.json that decodes in a way not known here.
    """
    if not 0 <= token_id < self.vocab_size:
      return b""
    piece = self.pieces[token_id]
    if piece in self.added:
      return b"" if self.added[piece] else piece.encode()
    return self._piece_bytes(piece)

  @abc.abstractmethod
  def _piece_bytes(self, piece: str) -> bytes: ...

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

  def _save_beside(self, folder: pathlib.Path, **more: Any) -> None:
    """Writes the names of the special tokens, the end tokens and the template."""
    named = {"eos": self.eos_id, "pad": self.pad_id, "bos": self.bos_id}
    config = {
      **{f"{k}_token": self.pieces[i] for k, i in named.items() if i is not None},
      "chat_template": self.chat_template,
      "clean_up_tokenization_spaces": False,
      **more,
    }
    generation = {
      f"{kind}_token_id": list(self.stop_ids) if kind == "eos" else i
      for kind, i in named.items()
    }
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode())
    _write(folder / "generation_config.json", json.dumps(generation, indent=2).encode())


class TextStream:
  """Text of ids that come a few at a time, never with half a character.

  What `push` and `end` return, joined, is `decode` of all ids.
  """

  def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False):
    self._tokenizer = tokenizer
    self._decode = functools.partial(tokenizer.decode, skip_special=skip_special)
    # The text of what is held depends on what came before it, since the first space of
    # a text may be left out: on the last ids that have a text.
    self._before: list[int] = []
    self._held: list[int] = []

  def push(self, ids: Iterable[int]) -> str:
    """The text that is certain now and was not yet given."""
    self._held += map(int, ids)
    text = self._new_text()
    last = self._held[-1] if self._held else -1
    pieces = self._tokenizer.pieces
    is_byte = 0 <= last < len(pieces) and _BYTE_PIECE.fullmatch(pieces[last])
    # A run of byte pieces is decoded as a whole; a replacement character at the end may
    # be the first bytes of a character.
    if is_byte or text.endswith("\ufffd"):
      return ""
    self._before = self._held if self._decode(self._held) else self._before + self._held
    self._held = []
    return text

  def end(self) -> str:
    """The rest, with replacement characters where bytes are missing."""
    text, self._held = self._new_text(), []
    return text

  def _new_text(self) -> str:
    known = self._decode(self._before)
    return self._decode(self._before + self._held)[len(known) :]


class SentencePieceTokenizer(Tokenizer):
  """A sentencepiece model, from its serialized bytes.

  Where the model was trained with a dummy prefix (Llama 2), each stretch of text
  between two of the `added` tokens gets one.

  Args:
    added: pieces that a text is cut at, beside the control pieces.
  """

  def __init__(self, model: bytes, special: Special, added: Sequence[str] = ()):
    self._model = model
    self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = self._sp.vocab_size()
    pieces = [self._sp.id_to_piece(i) for i in range(size)]
    control = {pieces[i]: i for i in range(size) if self._sp.is_control(i)}
    super().__init__(
      pieces, special, {piece: piece in control for piece in (*control, *added)}
    )
    self._matched = {
      self._ids[piece]: is_control for piece, is_control in self.added.items()
    }
    longest_first = map(re.escape, sorted(self.added, key=len, reverse=True))
    self._split = re.compile(f"({'|'.join(longest_first) or '(?!)'})")

  def _encode(self, text: str) -> list[int]:
    ids = []
    for part in self._split.split(text):
      if part in self.added:
        ids.append(self._ids[part])
      elif part:
        ids.extend(self._sp.encode(part))
    return ids

  def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
    texts, run = [], []
    for i in map(int, ids):
      if i not in self._matched:
        run.extend([i] if i < self.vocab_size else [])
        continue
      texts.append(self._sp.decode(run))
      run = []
      if not (skip_special and self._matched[i]):
        texts.append(self.pieces[i])
    return "".join([*texts, self._sp.decode(run)])

  def _piece_bytes(self, piece: str) -> bytes:
    token_id = self._ids[piece]
    if self._sp.is_unknown(token_id):
      return self._sp.decode([token_id]).encode()
    if self._sp.is_byte(token_id):
      return _spelled_byte(piece)
    return piece.replace("\u2581", " ").encode()

  def save(self, folder: str | os.PathLike) -> None:
    folder = pathlib.Path(folder)
    _write(folder / "tokenizer.model", self._model)
    listed = {
      str(self._ids[piece]): {"content": piece, "special": is_control}
      for piece, is_control in self.added.items()
    }
    self._save_beside(
      folder,
      tokenizer_class="LlamaTokenizer",
      legacy=True,  # each stretch between added tokens is encoded by itself
      add_bos_token=bool(self.begin_ids),
      added_tokens_decoder=listed,
    )


class HuggingFaceTokenizer(Tokenizer):
  """A vocabulary of the `tokenizers` library: tokenizer.json, or built from GGUF."""

  def __init__(self, backend: tokenizers.Tokenizer, special: Special):
    self._backend = backend
    by_id = {i: piece for piece, i in backend.get_vocab().items()}
    added = backend.get_added_tokens_decoder().values()
    super().__init__(
      [by_id.get(i, "") for i in range(max(by_id) + 1)],
      special,
      {token.content: token.special for token in added},
    )

  def _encode(self, text: str) -> list[int]:
    return self._backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
    return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

  def _piece_bytes(self, piece: str) -> bytes:
    if self._byte_of is not None:
      if not self._byte_of.keys() >= set(piece):
        return piece.encode()  # as the library does
      return bytes(self._byte_of[character] for character in piece)
    if _BYTE_PIECE.fullmatch(piece):
      return _spelled_byte(piece)
    return piece.replace("\u2581", " ").encode()

  @functools.cached_property
  def _byte_of(self) -> dict[str, int] | None:
    """Bytes as a byte-level vocabulary spells them, None for one with U+2581."""
    decoder = json.loads(self._backend.to_str())["decoder"] or {"type": "none"}
    parts = decoder.get("decoders", [decoder])
    kinds = {part["type"] for part in parts}
    if kinds == {"ByteLevel"}:
      # Printable bytes stand for themselves, the others are moved up in order.
      alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
      moved = sorted(set(range(256)) - set(map(ord, alphabet)))
      own = [ord(character) for character in alphabet if ord(character) < 256]
      return dict(zip(alphabet, own + moved, strict=True))
    spaces = [
      part.get("replacement", part.get("pattern", {}).get("String"))
      for part in parts
      if part["type"] in ("Replace", "Metaspace")
    ]
    others = kinds - {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}
    if spaces == ["\u2581"] and not others:
      return None
    raise InputError(
      f"the bytes of a token are not known for this tokenizer.json, whose decoder is "
      f"{decoder}; known are ByteLevel, and U+2581 for spaces with or without "
      "ByteFallback. Stop strings need them: set stop_strings to none"
    )

  def save(self, folder: str | os.PathLike) -> None:
    folder = pathlib.Path(folder)
    _write(folder / "tokenizer.json", self._backend.to_str().encode())
    self._save_beside(folder, tokenizer_class="PreTrainedTokenizerFast")


def _spelled_byte(piece: str) -> bytes:
  """The byte of a piece like <0x0A>."""
  return bytes.fromhex(piece[3:5])


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
  return SentencePieceTokenizer(*tokenizer_files.read_sentencepiece(pathlib.Path(path)))


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
    backend, *rest = tokenizer_gguf.read_gguf(path)
    kind = (
      SentencePieceTokenizer if isinstance(backend, bytes) else HuggingFaceTokenizer
    )
    return kind(backend, *rest)
  if path.suffix == ".model":
    return SentencePieceTokenizer(*tokenizer_files.read_sentencepiece(path))
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
