"""Vocabularies as Hugging Face folders store them: `tokenizer.json` or sentencepiece.

A `tokenizer.json` ends as a `tokenizers.Tokenizer`, a `.model` file as the bytes of a
sentencepiece model; `tokenizer.py` wraps the two.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import processors

from r1jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Special:
  """The ids and the template that a vocabulary does not say by itself.

  Attributes:
    stop_ids: every id that ends an answer; `eos_id` is the first.
    pad_id: may equal `eos_id`; masks never come from token values.
    chat_template: jinja2 source, or None.
    begin_ids: what the model saw in front of every text (begin-of-text, or nothing).
  """

  bos_id: int | None
  eos_id: int
  pad_id: int
  stop_ids: tuple[int, ...]
  chat_template: str | None = None
  begin_ids: tuple[int, ...] = ()


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; empty where there is no file."""
  if not path.exists():
    return {}
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError as e:
    raise InputError(f"{path}: not JSON ({e})") from e
  if not isinstance(value, dict):
    raise InputError(f"{path}: want a JSON object, got {type(value).__name__}")
  return value


def read_chat_template(folder: pathlib.Path) -> str | None:
  """Template text of a folder: chat_template.jinja, else tokenizer_config.json."""
  file = folder / "chat_template.jinja"
  if file.exists():
    return file.read_text(encoding="utf-8")
  template = _read_json(folder / "tokenizer_config.json").get("chat_template")
  if isinstance(template, list):
    named = {entry["name"]: entry["template"] for entry in template}
    if "default" not in named:
      raise InputError(
        f"{folder}/tokenizer_config.json: chat_template has {sorted(named)} "
        "but no 'default'; write the one to use into chat_template.jinja"
      )
    return named["default"]
  return template


def _special(
  path: pathlib.Path,
  id_of: Callable[[str], int | None],
  own: Mapping[str, int | None],
  begin: Callable[[int | None], tuple[int, ...]],
) -> Special:
  """Special tokens of the vocabulary in `path`, from the files beside it.

  They are named by tokenizer_config.json, then special_tokens_map.json, then the
  vocabulary itself, then generation_config.json (config.json where that is absent),
  whose list of end tokens adds to `stop_ids`.

  Args:
    id_of: piece -> id, None where there is none.
    own: {"eos", "bos", "pad": id that the vocabulary itself gives, or None}.
    begin: id of the begin token -> `begin_ids`.
  """
  folder = path.parent
  names = _read_json(folder / "tokenizer_config.json")
  spare = _read_json(folder / "special_tokens_map.json")
  generation = _read_json(folder / "generation_config.json") or _read_json(
    folder / "config.json"
  )

  def named(kind: str) -> int | None:
    for source in (names, spare):
      token = source.get(f"{kind}_token")
      if isinstance(token, dict):
        token = token.get("content")
      if token is None:
        continue
      token_id = id_of(token)
      if token_id is None:
        raise InputError(f"{path}: {kind}_token {token!r} is not in the vocabulary")
      return token_id
    if own.get(kind) is not None:
      return own[kind]
    listed = generation.get(f"{kind}_token_id")
    return listed[0] if isinstance(listed, list) else listed

  eos_id, bos_id, pad_id = named("eos"), named("bos"), named("pad")
  if eos_id is None:
    raise InputError(
      f"{path}: no end-of-text token is named; put eos_token into "
      f"{folder}/tokenizer_config.json"
    )
  ends = generation.get("eos_token_id")
  if not isinstance(ends, list):
    ends = [] if ends is None else [ends]
  return Special(
    bos_id=bos_id,
    eos_id=eos_id,
    pad_id=eos_id if pad_id is None else pad_id,
    stop_ids=tuple(dict.fromkeys([eos_id, *ends])),
    chat_template=read_chat_template(folder),
    begin_ids=begin(bos_id),
  )


def _contents(token: Any) -> set[str]:
  """Pieces of a token as the files write it: text, an object, or a list of them."""
  if isinstance(token, list):
    return set().union(*map(_contents, token))
  return {token["content"] if isinstance(token, dict) else token}


def _added_tokens(folder: pathlib.Path) -> dict[int, tokenizers.AddedToken]:
  """{id: token} that added_tokens.json and tokenizer_config.json list.

  Of a token that only the first lists, special_tokens_map.json says if it is special.
  """
  listed = _read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
  special = _contents(list(_read_json(folder / "special_tokens_map.json").values()))
  found = {
    token_id: tokenizers.AddedToken(piece, special=piece in special)
    for piece, token_id in _read_json(folder / "added_tokens.json").items()
  }
  for token_id, fields in listed.items():
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    found[int(token_id)] = tokenizers.AddedToken(
      **{name: fields[name] for name in known if name in fields}
    )
  return dict(sorted(found.items()))


def read_hugging_face(path: pathlib.Path) -> tuple[tokenizers.Tokenizer, Special]:
  """Reads `tokenizer.json` and what lies beside it.

  Raises:
    InputError: the file does not parse, a named token is not in the vocabulary, no
      end-of-text token is named anywhere, or two files disagree.
  """
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as e:  # the library raises nothing narrower
    raise InputError(f"{path}: the tokenizers library cannot read it ({e})") from e
  backend.no_padding()
  backend.no_truncation()
  known = backend.get_added_tokens_decoder()
  for token_id, token in _added_tokens(path.parent).items():
    if token_id not in known:
      backend.add_tokens([token])
    if backend.token_to_id(token.content) != token_id:
      raise InputError(
        f"{path} has {token.content!r} as id {backend.token_to_id(token.content)}, and "
        f"the files beside it as {token_id}: they belong to two vocabularies"
      )

  def begin(bos_id: int | None) -> tuple[int, ...]:
    adds = _read_json(path.parent / "tokenizer_config.json").get("add_bos_token")
    if adds is not None:
      begin_with(backend, bos_id if adds else None)
    return begin_ids(backend)

  return backend, _special(path, backend.token_to_id, {}, begin)


def begin_with(backend: tokenizers.Tokenizer, bos_id: int | None) -> None:
  """Makes a backend put this token, or none, in front of a text, and nothing behind."""
  if begin_ids(backend) == (() if bos_id is None else (bos_id,)):
    return
  backend.post_processor = None
  if bos_id is not None:
    bos = backend.id_to_token(bos_id)
    backend.post_processor = processors.TemplateProcessing(
      single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, bos_id)]
    )


def begin_ids(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
  """What a backend's post-processor puts in front of a text."""
  encoding = backend.encode("a")
  marks = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
  return tuple(token_id for token_id, _ in takewhile(lambda mark: mark[1], marks))


def read_sentencepiece(path: pathlib.Path) -> tuple[bytes, Special, tuple[str, ...]]:
  """Reads a `.model` file and what lies beside it.

  Added tokens become pieces of the model. Text on either side of one is cut there and
  encoded by itself, as transformers does in the way that it calls legacy.

  Returns:
    (serialized model, Special, the added tokens).

  Raises:
    InputError: not a sentencepiece model, added tokens that leave a gap in the ids, are
      other pieces or strip spaces, a named token that is not there, no end-of-text.
  """
  try:
    serialized = path.read_bytes()
    sp = sentencepiece.SentencePieceProcessor(model_proto=serialized)
  except RuntimeError as e:
    raise InputError(f"{path}: not a sentencepiece model ({e})") from e
  config = _read_json(path.parent / "tokenizer_config.json")
  own = {
    kind: token_id if token_id >= 0 else None
    for kind, token_id in (
      ("eos", sp.eos_id()),
      ("bos", sp.bos_id()),
      ("pad", sp.pad_id()),
    )
  }
  model = proto.ModelProto.FromString(serialized)
  if config.get("legacy") is False and model.normalizer_spec.add_dummy_prefix:
    raise InputError(
      f"{path.parent}/tokenizer_config.json: legacy=false is not supported with a "
      "sentencepiece model that puts a space in front of a text; add tokenizer.json"
    )
  added = {
    token_id: token
    for token_id, token in _added_tokens(path.parent).items()
    if not (token_id < len(model.pieces) and sp.is_unknown(token_id))
  }
  kinds = proto.ModelProto.SentencePiece
  for token_id, token in added.items():
    piece = token.content
    if token.lstrip or token.rstrip or token.single_word:
      raise InputError(
        f"{path}: added token {piece!r} strips spaces or matches whole words only; "
        "only tokenizer.json can say that here"
      )
    if token_id == len(model.pieces):
      kind = kinds.CONTROL if token.special else kinds.USER_DEFINED
      model.pieces.add(piece=piece, score=0.0, type=kind)
    elif token_id > len(model.pieces) or model.pieces[token_id].piece != piece:
      raise InputError(
        f"{path}: added token {piece!r} has id {token_id}, but the vocabulary of "
        f"{len(model.pieces)} pieces "
        + (
          "ends before it"
          if token_id > len(model.pieces)
          else f"has {model.pieces[token_id].piece!r} there"
        )
      )
  ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
  # transformers' class for Llama 2 adds begin-of-text where its files do not say.
  is_llama = str(config.get("tokenizer_class", "")).startswith("Llama")

  def begin(bos_id: int | None) -> tuple[int, ...]:
    adds = config.get("add_bos_token", is_llama)
    return (bos_id,) if adds and bos_id is not None else ()

  return (
    serialized if len(ids) == sp.vocab_size() else model.SerializeToString(),
    _special(path, ids.get, own, begin),
    tuple(token.content for token in added.values()),
  )
