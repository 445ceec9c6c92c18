"""Vocabularies as others store them: `tokenizer.json` folders and GGUF metadata.

Both end as a `tokenizers.Tokenizer` and a `Special`; `tokenizer.py` wraps the two.
"""

import dataclasses
import json
import pathlib
from typing import Any

import gguf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from r1jax.errors import InputError, one_of


@dataclasses.dataclass(frozen=True)
class Special:
  """The ids and the template that a vocabulary does not say by itself.

  Attributes:
    stop_ids: every id that ends an answer; `eos_id` is the first.
    pad_id: may equal `eos_id`; masks never come from token values.
    chat_template: jinja2 source, or None.
  """

  bos_id: int | None
  eos_id: int
  pad_id: int
  stop_ids: tuple[int, ...]
  chat_template: str | None = None


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


def read_hugging_face(path: pathlib.Path) -> tuple[tokenizers.Tokenizer, Special]:
  """Reads `tokenizer.json` and what lies beside it.

  Special tokens come from tokenizer_config.json, then special_tokens_map.json, then
  generation_config.json (whose list of end tokens adds to `stop_ids`).

  Raises:
    InputError: the file does not parse, a named token is not in the vocabulary, or
      no end-of-text token is named anywhere.
  """
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as e:  # the library raises nothing narrower
    raise InputError(f"{path}: the tokenizers library cannot read it ({e})") from e
  backend.no_padding()
  backend.no_truncation()
  names = _read_json(path.parent / "tokenizer_config.json")
  spare = _read_json(path.parent / "special_tokens_map.json")
  generation = _read_json(path.parent / "generation_config.json")

  def named(kind: str) -> int | None:
    for source in (names, spare):
      token = source.get(f"{kind}_token")
      if isinstance(token, dict):
        token = token.get("content")
      if token is None:
        continue
      token_id = backend.token_to_id(token)
      if token_id is None:
        raise InputError(f"{path}: {kind}_token {token!r} is not in the vocabulary")
      return token_id
    listed = generation.get(f"{kind}_token_id")
    return listed[0] if isinstance(listed, list) else listed

  eos_id = named("eos")
  if eos_id is None:
    raise InputError(
      f"{path}: no end-of-text token is named; put eos_token into "
      f"{path.parent}/tokenizer_config.json"
    )
  pad_id = named("pad")
  ends = generation.get("eos_token_id")
  if not isinstance(ends, list):
    ends = [] if ends is None else [ends]
  return backend, Special(
    bos_id=named("bos"),
    eos_id=eos_id,
    pad_id=eos_id if pad_id is None else pad_id,
    stop_ids=tuple(dict.fromkeys([eos_id, *ends])),
    chat_template=read_chat_template(path.parent),
  )


# llama.cpp's names (tokenizer.ggml.pre) for how text is cut before the merges.
# Departs: for smollm, llama.cpp isolates every numeric character (\p{N}), here only
# decimal digits are. The two differ on the likes of " ½"; there this agrees with what
# transformers makes of the same GGUF file, the reference that the ids are held to.
_PRE_TOKENIZERS = {
  "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
  "smollm": lambda: pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(r"\p{Nd}"), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  ),
}


def read_gguf(path: pathlib.Path) -> tuple[tokenizers.Tokenizer, Special]:
  """Reads the byte-level BPE vocabulary in a GGUF file's metadata.

  Raises:
    InputError: not a GGUF file, or a vocabulary of another kind, or a pre-tokenizer
      or token type that is not known; the message names it.
  """
  try:
    reader = gguf.GGUFReader(path)
  except (ValueError, OSError) as e:
    raise InputError(f"{path}: not a GGUF file ({e})") from e
  prefix = "tokenizer.ggml."

  def get(name: str, default: Any = None) -> Any:
    field = reader.fields.get(name)
    return default if field is None else field.contents()

  one_of(str(get(f"{prefix}model")), ["gpt2"], key=f"{path}: {prefix}model")
  pre = one_of(
    str(get(f"{prefix}pre")), list(_PRE_TOKENIZERS), key=f"{path}: {prefix}pre"
  )
  if get(f"{prefix}add_space_prefix", False):
    raise InputError(f"{path}: {prefix}add_space_prefix=True is not supported")
  pieces = get(f"{prefix}tokens", [])
  merges = [tuple(merge.split(" ")) for merge in get(f"{prefix}merges", [])]
  vocab = {piece: i for i, piece in enumerate(pieces)}
  eos_id = get(f"{prefix}eos_token_id")
  for name, bad in (
    ("tokens is empty", not pieces),
    ("tokens has duplicates", len(vocab) != len(pieces)),
    ("merges must be pairs", any(len(merge) != 2 for merge in merges)),
    ("eos_token_id is missing", eos_id is None),
  ):
    if bad:
      raise InputError(f"{path}: {prefix}{name}")

  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
  backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()
  backend.decoder = decoders.ByteLevel()
  backend.add_tokens(_added_tokens(path, pieces, get(f"{prefix}token_type")))
  pad_id = get(f"{prefix}padding_token_id")
  ends = [get(f"{prefix}{name}_token_id") for name in ("eot", "eom")]
  return backend, Special(
    bos_id=get(f"{prefix}bos_token_id"),
    eos_id=eos_id,
    pad_id=eos_id if pad_id is None else pad_id,
    stop_ids=tuple(dict.fromkeys([eos_id, *(i for i in ends if i is not None)])),
    chat_template=get("tokenizer.chat_template"),
  )


def _added_tokens(
  path: pathlib.Path, pieces: list[str], types: list[int] | None
) -> list[tokenizers.AddedToken]:
  """The pieces that are matched whole in a text, before any cutting."""
  if types is None or len(types) != len(pieces):
    raise InputError(f"{path}: tokenizer.ggml.token_type must have one entry a token")
  kind = gguf.TokenType
  plain = {kind.NORMAL, kind.UNUSED}
  special = {kind.CONTROL, kind.UNKNOWN}
  added = []
  for piece, type_ in zip(pieces, types, strict=True):
    if type_ in plain:
      continue
    if type_ not in special and type_ != kind.USER_DEFINED:
      raise InputError(
        f"{path}: token {piece!r} has tokenizer.ggml.token_type {type_}, "
        "which a byte-level vocabulary does not have"
      )
    added.append(
      tokenizers.AddedToken(piece, special=type_ in special, normalized=False)
    )
  return added
