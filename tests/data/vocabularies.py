"""Small vocabularies of each kind, and texts that are easy to get wrong."""

import json
import random

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

# Whitespace runs, combining marks, CJK, right-to-left, emoji with joiners, markup.
ODD = [
  "",
  " ",
  "\n\n\t \r\n  x",
  "  leading and trailing  ",
  "no\u00a0break\u2009thin\u3000wide \u200bzero\u2028line",
  "na\u0131\u0308ve cafe\u0301 caf\u00e9 A\u030a\u00c5\u212b",
  "\u5317\u4eac\uff0c\u6771\u4eac\u3000\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
  "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u0661\u0662\u0663",
  "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f642\U0001f3fd \u00bd \u00b2",
  "\U0001f1e9\U0001f1ea \U0001f3f4\U000e0067\U000e007f",
  "x**2  # 12,345.67e-8 <b>&amp;</b>",
  "<think>a\nb</think><answer> 7 </answer>",
]
LINES = [*ODD, *["the answer is 12 and the other is 21"] * 4]


def random_texts(count: int, seed: int = 0) -> list[str]:
  """Strings of characters from `ODD` and others."""
  rng = random.Random(seed)
  characters = sorted({*"".join(ODD), *"ab c'S\u0416\u1e9b\u0323\u2581\ufffd"})
  return [
    "".join(rng.choices(characters, k=rng.randrange(1, 30))) for _ in range(count)
  ]


def byte_level(path, **beside):
  """A byte-level BPE with <|end|>, <|user|> (special) and <think> (not), on disk.

  Args:
    beside: name -> object of a JSON file.
  """
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator(
    LINES,
    trainers.BpeTrainer(
      vocab_size=420,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=["<|end|>", "<|user|>"],
      show_progress=False,
    ),
  )
  backend.add_tokens(["<think>", "</think>"])
  return write_json(path, backend, **beside)


def byte_fallback(path, **beside):
  """A tokenizer.json like Llama 2's: spaces as U+2581, one in front, bytes spelled."""
  vocab = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>"])}
  characters = sorted(
    {*"".join(ODD).replace(" ", "\u2581"), "\u2581"} - {*"\u5317\u4eac"}
  )
  for piece in [f"<0x{byte:02X}>" for byte in range(256)] + characters:
    vocab[piece] = len(vocab)
  merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("\u2581", "\u2581")]
  for merge in merges:
    vocab["".join(merge)] = len(vocab)
  backend = tokenizers.Tokenizer(
    models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
  )
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace("\u2581", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  backend.add_special_tokens(["<unk>", "<s>", "</s>"])
  return write_json(path, backend, **beside)


def write_json(path, backend, **beside):
  path.mkdir(parents=True, exist_ok=True)
  backend.save(str(path / "tokenizer.json"))
  for name, value in beside.items():
    (path / f"{name}.json").write_text(json.dumps(value))
  return path


def write_gguf(path, **changes):
  """A vocabulary of bytes, two merges and two added tokens, as GGUF metadata.

  Args:
    changes: keys below tokenizer.ggml; None leaves one out.
  """
  pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "\u0120a", "ab"]
  types = [gguf.TokenType.NORMAL] * len(pieces)
  pieces += ["<|end|>", "<think>"]
  types += [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED]
  fields = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": pieces,
    "token_type": types,
    "merges": ["\u0120 a", "a b"],
    "eos_token_id": pieces.index("<|end|>"),
  } | changes
  writer = gguf.GGUFWriter(path, "llama")
  for name, value in fields.items():
    if value is None:
      continue
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}
    add.get(type(value), writer.add_array)(f"tokenizer.ggml.{name}", value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
