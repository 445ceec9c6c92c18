"""The vocabulary in a GGUF file's metadata.

The byte-level kind ("gpt2") ends as a `tokenizers.Tokenizer`, the kind with scores and
byte fallback ("llama") as the bytes of a sentencepiece model.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import gguf
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import decoders, models, normalizers, pre_tokenizers

from r1jax import gguf_files
from r1jax.data import tokenizer_files
from r1jax.data.tokenizer_files import Special
from r1jax.errors import InputError, one_of

Get = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class _Words:
  """How a text is cut into words before the merges.

  Attributes:
    patterns: what matches stands alone, one pattern after the other.
    gpt2: GPT-2's own pattern cuts what is left.
    nfc: the text is composed first.
    whole: a word that is a piece is taken whole, whatever the merges.
    begins: begin-of-text goes in front where the file does not say.
  """

  patterns: tuple[str, ...] = ()
  gpt2: bool = False
  nfc: bool = False
  whole: bool = False
  begins: bool = False

  def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
    splits = [
      pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
      for pattern in self.patterns
    ]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)
    return pre_tokenizers.Sequence([*splits, last])


def _like_gpt4(digits: str) -> str:
  """Contractions, words with the sign before them, numbers, signs, lines, spaces."""
  return (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  )


# Letters with case as DeepSeek-LLM counts them (an old Unicode's, not all of them);
# hexadecimal, since several change when an editor composes them.
_CASED = (
  "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D "
  "37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 "
  "13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D "
  "1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE "
  "1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 "
  "210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F "
  "2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D "
  "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A "
  "FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF "
  "1E900-1E943"
)


def _class_of(ranges: str) -> str:
  """A regex class from hexadecimal ranges."""
  ends = [
    [f"\\x{{{end}}}" for end in part.split("-")] for part in ranges.split(" ") if part
  ]
  return f"[{''.join('-'.join(pair) for pair in ends)}]"


_QWEN2 = _Words((_like_gpt4(r"\p{N}"),), nfc=True)
# By llama.cpp's names (tokenizer.ggml.pre). The patterns are those of the
# tokenizer.json that the models came with; llama.cpp follows them but for two. Of a run
# of digits, deepseek-llm takes one at a time where llama.cpp takes all. For smollm,
# llama.cpp isolates every numeric character as the model's tokenizer.json does.
# Departs: here smollm isolates only decimal digits, which differs on the likes of " ½";
# there this agrees with what transformers makes of the same GGUF file, the reference
# that the ids are held to.
# "default" is llama.cpp's own, for files of which no model's name is known.
_WORDS = {
  "default": _Words(
    (
      r"[\p{P}\$\+<=>\^~\|]+",
      r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
      r"\p{N}+",
      r"[0-9][0-9][0-9]",
    )
  ),
  "gpt-2": _Words(gpt2=True),
  "smollm": _Words((r"\p{Nd}",), gpt2=True),
  "llama-bpe": _Words((_like_gpt4(r"\p{N}{1,3}"),), whole=True, begins=True),
  "qwen2": _QWEN2,
  "deepseek-r1-qwen": _QWEN2,
  "deepseek-llm": _Words(
    (
      r"[\r\n]",
      r"\s?" + _class_of(_CASED) + "+",
      r"\s?" + _class_of("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002") + "+",
      r"\s+$",
      _class_of("4E00-9FA5 800-4E00 AC00-D7FF") + "+",
      r"\p{N}",
    )
  ),
  "deepseek-v3": _Words(
    (
      r"\p{N}{1,3}",
      _class_of("4E00-9FA5 3040-309F 30A0-30FF") + "+",
      r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
      r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
      r"|\s+(?!\S)|\s+",
    )
  ),
}


def read_gguf(
  path: pathlib.Path,
) -> tuple[tokenizers.Tokenizer, Special] | tuple[bytes, Special, tuple[str, ...]]:
  """Reads a vocabulary.

  Returns:
    (backend, Special), or (serialized sentencepiece model, Special, added tokens).

  Raises:
    InputError: not a GGUF file, or a vocabulary of another kind, or a pre-tokenizer
      or token type that is not known; the message names it.
  """
  reader = gguf_files.read(path)

  def get(name: str, default: Any = None) -> Any:
    field = reader.fields.get(f"tokenizer.{name}")
    return default if field is None else field.contents()

  kind = one_of(
    str(get("ggml.model")), ["gpt2", "llama"], key=f"{path}: tokenizer.ggml.model"
  )
  pieces, types = get("ggml.tokens", []), get("ggml.token_type")
  for name, bad in (
    ("tokens is empty", not pieces),
    ("tokens has duplicates", len(set(pieces)) != len(pieces)),
    ("token_type must have one entry a token", len(types or []) != len(pieces)),
    ("eos_token_id is missing", get("ggml.eos_token_id") is None),
  ):
    if bad:
      raise InputError(f"{path}: tokenizer.ggml.{name}")
  build = _byte_level if kind == "gpt2" else _with_scores
  return build(path, get, pieces, types)


def _special(get: Get, *, begins: bool) -> Special:
  bos_id, eos_id, pad_id = (
    get(f"ggml.{kind}_token_id") for kind in ("bos", "eos", "padding")
  )
  ends = [get(f"ggml.{kind}_token_id") for kind in ("eot", "eom")]
  begins = get("ggml.add_bos_token", begins) and bos_id is not None
  return Special(
    bos_id=bos_id,
    eos_id=eos_id,
    pad_id=eos_id if pad_id is None else pad_id,
    stop_ids=tuple(dict.fromkeys([eos_id, *(i for i in ends if i is not None)])),
    chat_template=get("chat_template"),
    begin_ids=(bos_id,) if begins else (),
  )


def _byte_level(
  path: pathlib.Path, get: Get, pieces: list[str], types: list[int]
) -> tuple[tokenizers.Tokenizer, Special]:
  name = str(get("ggml.pre"))
  words = _WORDS[one_of(name, _WORDS, key=f"{path}: tokenizer.ggml.pre")]
  if get("ggml.add_space_prefix", False):
    raise InputError(f"{path}: tokenizer.ggml.add_space_prefix=True is not supported")
  merges = [tuple(merge.split(" ")) for merge in get("ggml.merges", [])]
  if any(len(merge) != 2 for merge in merges):
    raise InputError(f"{path}: tokenizer.ggml.merges must be pairs")
  vocab = {piece: i for i, piece in enumerate(pieces)}
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocab, merges=merges, ignore_merges=words.whole)
  )
  if words.nfc:
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = words.pre_tokenizer()
  backend.decoder = decoders.ByteLevel()
  kind = gguf.TokenType
  special = {kind.CONTROL, kind.UNKNOWN}
  for piece, type_ in zip(pieces, types, strict=True):
    if type_ not in special | {kind.NORMAL, kind.UNUSED, kind.USER_DEFINED}:
      raise InputError(
        f"{path}: token {piece!r} has tokenizer.ggml.token_type {type_}, "
        "which a byte-level vocabulary does not have"
      )
  # The pieces that are matched whole in a text, before any cutting.
  backend.add_tokens(
    [
      tokenizers.AddedToken(piece, special=type_ in special, normalized=False)
      for piece, type_ in zip(pieces, types, strict=True)
      if type_ in special | {kind.USER_DEFINED}
    ]
  )
  found = _special(get, begins=words.begins)
  tokenizer_files.begin_with(backend, found.bos_id if found.begin_ids else None)
  return backend, found


def _with_scores(
  path: pathlib.Path, get: Get, pieces: list[str], types: list[int]
) -> tuple[bytes, Special, tuple[str, ...]]:
  """A sentencepiece BPE model: the pair of the best score is merged first.

  Text on either side of a control or added token is cut there and encoded by itself, as
  llama.cpp does.
  """
  scores = get("ggml.scores", [])
  if len(scores) != len(pieces):
    raise InputError(f"{path}: tokenizer.ggml.scores must have one entry a token")
  if get("ggml.precompiled_charsmap"):
    raise InputError(f"{path}: tokenizer.ggml.precompiled_charsmap is not supported")
  model = proto.ModelProto()
  kind = proto.ModelProto.SentencePiece
  for piece, score, type_ in zip(pieces, scores, types, strict=True):
    if type_ not in kind.Type.values():
      raise InputError(f"{path}: token {piece!r} has tokenizer.ggml.token_type {type_}")
    # GGUF numbers the types as sentencepiece does.
    model.pieces.add(piece=piece, score=score, type=type_)
  found = _special(get, begins=True)
  model.trainer_spec.model_type = proto.TrainerSpec.BPE
  model.trainer_spec.byte_fallback = kind.BYTE in types
  for name, token_id in (("bos", found.bos_id), ("eos", found.eos_id), ("pad", None)):
    setattr(model.trainer_spec, f"{name}_id", -1 if token_id is None else token_id)
  model.normalizer_spec.name = "identity"
  model.normalizer_spec.add_dummy_prefix = get("ggml.add_space_prefix", True)
  model.normalizer_spec.remove_extra_whitespaces = get(
    "ggml.remove_extra_whitespaces", False
  )
  model.normalizer_spec.escape_whitespaces = True
  serialized = model.SerializeToString()
  try:
    sentencepiece.SentencePieceProcessor(model_proto=serialized)
  except RuntimeError as e:
    raise InputError(f"{path}: sentencepiece cannot use its vocabulary ({e})") from e
  added = (kind.CONTROL, kind.USER_DEFINED)
  return (
    serialized,
    found,
    tuple(p for p, type_ in zip(pieces, types, strict=True) if type_ in added),
  )
