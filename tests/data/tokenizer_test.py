"""Tokenizers: exact round trips, special tokens, three kinds of file."""

import json

import gguf
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from r1jax.data.tokenizer import load_tokenizer, train_sentencepiece
from r1jax.errors import InputError

# Whitespace runs, combining marks, CJK, right-to-left, emoji with joiners, markup.
ODD = [
  "",
  " ",
  "\n\n\t \r\n  x",
  "  leading and trailing  ",
  "na\u0131\u0308ve cafe\u0301 caf\u00e9 A\u030a\u00c5\u212b",
  "\u5317\u4eac\uff0c\u6771\u4eac\u3000\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
  "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u0661\u0662\u0663",
  "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f642\U0001f3fd \u00bd \u00b2",
  "x**2  # 12,345.67e-8 <b>&amp;</b>",
  "<think>a\nb</think><answer> 7 </answer>",
]
IN_CORPUS = pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))


def byte_level(path, **beside):
  """A byte-level BPE with <|end|>, <|user|> (special) and <think> (not), on disk."""
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator(
    ODD + ["the answer is 12 and the other is 21"] * 4,
    trainers.BpeTrainer(
      vocab_size=420,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=["<|end|>", "<|user|>"],
      show_progress=False,
    ),
  )
  backend.add_tokens(["<think>", "</think>"])
  path.mkdir(exist_ok=True)
  backend.save(str(path / "tokenizer.json"))
  for name, value in beside.items():
    (path / f"{name}.json").write_text(json.dumps(value))
  return path


def hugging_face(path):
  return load_tokenizer(
    byte_level(
      path,
      tokenizer_config={
        "eos_token": "<|end|>",
        "pad_token": {"content": "<|user|>", "special": True},
        "chat_template": "{{ messages[0]['content'] }}",
      },
    )
  )


def write_gguf(path, **changes):
  """A vocabulary of bytes, two merges and two added tokens, as GGUF metadata."""
  pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "ab"]
  types = [gguf.TokenType.NORMAL] * len(pieces)
  pieces += ["<|end|>", "<think>"]
  types += [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED]
  fields = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": pieces,
    "token_type": types,
    "merges": ["Ġ a", "a b"],
    "eos_token_id": pieces.index("<|end|>"),
  } | changes
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tokenizer_model(fields["model"])
  writer.add_tokenizer_pre(fields["pre"])
  writer.add_token_list(fields["tokens"])
  writer.add_token_types(fields["token_type"])
  writer.add_token_merges(fields["merges"])
  if fields["eos_token_id"] is not None:
    writer.add_eos_token_id(fields["eos_token_id"])
  if "add_space_prefix" in fields:
    writer.add_add_space_prefix(fields["add_space_prefix"])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope="module")
def char(tmp_path_factory):
  return train_sentencepiece(ODD, path=tmp_path_factory.mktemp("char") / "a.model")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
  return hugging_face(tmp_path_factory.mktemp("bpe"))


@IN_CORPUS
def test_char_round_trip(char, text):
  """R7: with nothing normalised, text survives as it is, newlines too."""
  assert char.decode(char.encode(text)) == text


@IN_CORPUS
def test_byte_level_round_trip(bpe, text):
  """R7: the same over a vocabulary whose merges cut characters in the middle."""
  assert bpe.decode(bpe.encode(text)) == text


def test_ids_are_kept_where_text_would_drift(bpe):
  """R7: other ids of the same text decode to it, and encoding does not return them."""
  text = "the answer"
  drawn = [bpe.id_of(piece) for piece in text.replace(" ", "Ġ")]
  assert bpe.decode(drawn) == text
  assert bpe.encode(text) != drawn
  assert len(bpe.encode(text)) < len(drawn)


def test_splitting_a_character_over_tokens_joins_again(bpe):
  ids = bpe.encode("\U0001f9ff")  # not in the corpus: bytes
  assert len(ids) > 1
  assert bpe.decode(ids) == "\U0001f9ff"
  assert bpe.decode(ids[:1]) != "\U0001f9ff"


@pytest.mark.parametrize(
  ("model_type", "vocab_size"), [("char", None), ("bpe", 120), ("unigram", 120)]
)
def test_training_is_deterministic_and_keeps_symbols(tmp_path, model_type, vocab_size):
  lines = [*ODD, *(f"{i} plus {i} is {2 * i}" for i in range(40))]
  one, two = (
    train_sentencepiece(
      iter(lines), vocab_size=vocab_size, model_type=model_type, path=tmp_path / name
    )
    for name in ("a.model", "b.model")
  )
  assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
  assert one.fingerprint == two.fingerprint
  assert one.vocab_size <= (vocab_size or 1000)
  text = "<think>1 plus 2\n</think> <answer>3</answer>"
  ids = one.encode(text)
  assert one.decode(ids) == text
  for symbol in ("<think>", "</think>", "<answer>", "</answer>", "\n"):
    assert ids.count(one.id_of(symbol)) == 1


def test_char_ids_are_one_a_character(char):
  assert (char.pad_id, char.eos_id, char.bos_id) == (0, 1, None)
  assert char.stop_ids == (1,)
  assert char.encode("x  x") == [char.id_of(p) for p in "x▁▁x"]
  assert char.encode("Ω") == [char.id_of("<unk>")]


def test_sentencepiece_reads_and_skips_control_tokens(char):
  ids = char.encode("x</s>\n<think>")
  assert ids == [char.id_of(p) for p in ("x", "</s>", "\n", "<think>")]
  assert char.decode(ids) == "x</s>\n<think>"
  assert char.decode(ids, skip_special=True) == "x\n<think>"


def test_byte_level_reads_and_skips_special_tokens(bpe):
  ids = bpe.encode("<|user|>x<think><|end|>")
  assert ids == [bpe.id_of(p) for p in ("<|user|>", "x", "<think>", "<|end|>")]
  assert bpe.decode(ids) == "<|user|>x<think><|end|>"
  assert bpe.decode(ids, skip_special=True) == "x<think>"


def test_ids_past_the_vocabulary_have_no_text(char, bpe):
  for tokenizer in (char, bpe):
    ids = [*tokenizer.encode("x"), tokenizer.vocab_size + 7]
    assert tokenizer.decode(ids) == "x"


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_save_and_load_give_an_equal_tokenizer(tmp_path, request, kind):
  before = request.getfixturevalue(kind)
  before.save(tmp_path / "new")
  after = load_tokenizer(tmp_path / "new")
  names = (
    "vocab_size", "bos_id", "eos_id", "pad_id", "stop_ids", "fingerprint",
    "chat_template",
  )  # fmt: skip
  for name in names:
    assert getattr(after, name) == getattr(before, name), name
  assert [after.encode(t) for t in ODD] == [before.encode(t) for t in ODD]


def test_fingerprint_tells_vocabularies_apart(tmp_path, char, bpe):
  other = train_sentencepiece([*ODD, "Ω"], path=tmp_path / "other.model")
  assert len({char.fingerprint, bpe.fingerprint, other.fingerprint}) == 3


def test_special_ids_from_the_files_beside(tmp_path):
  folder = byte_level(
    tmp_path,
    tokenizer_config={"chat_template": [{"name": "default", "template": "hi"}]},
    special_tokens_map={"eos_token": {"content": "<|end|>"}},
    generation_config={"eos_token_id": [0, 1], "bos_token_id": 1},
  )
  tokenizer = load_tokenizer(folder / "tokenizer.json")
  assert tokenizer.eos_id == tokenizer.id_of("<|end|>") == 0
  assert tokenizer.pad_id == tokenizer.eos_id
  assert tokenizer.bos_id == 1
  assert tokenizer.stop_ids == (0, 1)
  assert tokenizer.chat_template == "hi"


def test_tokenizer_json_adds_nothing_and_cuts_nothing(tmp_path):
  folder = byte_level(tmp_path, tokenizer_config={"eos_token": "<|end|>"})
  backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  backend.enable_truncation(3)
  backend.enable_padding(length=64)
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="<|user|> $A", special_tokens=[("<|user|>", 1)]
  )
  backend.save(str(folder / "tokenizer.json"))
  tokenizer = load_tokenizer(folder)
  ids = tokenizer.encode("x y z 1 2 3 4 5")
  assert tokenizer.id_of("<|user|>") not in ids
  assert tokenizer.decode(ids) == "x y z 1 2 3 4 5"


def test_gguf_vocabulary(tmp_path):
  tokenizer = load_tokenizer(write_gguf(tmp_path / "v.gguf"))
  pieces = [tokenizer.pieces[i] for i in tokenizer.encode("ab a  12<think>7<|end|>")]
  assert pieces == ["ab", "Ġa", "Ġ", "Ġ", "1", "2", "<think>", "7", "<|end|>"]
  assert tokenizer.pad_id == tokenizer.eos_id == tokenizer.id_of("<|end|>")
  for text in ODD:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gguf_and_json_of_one_vocabulary_agree(tmp_path):
  from_gguf = load_tokenizer(write_gguf(tmp_path / "v.gguf"))
  from_gguf.save(tmp_path / "json")
  from_json = load_tokenizer(tmp_path / "json")
  assert from_json.fingerprint == from_gguf.fingerprint
  assert [from_json.encode(t) for t in ODD] == [from_gguf.encode(t) for t in ODD]


def test_decimal_digits_stand_alone_in_smollm(tmp_path):
  merges = ["1 2", "Ġ Ġ"]
  pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "ĠĠ", "<e>"]
  changes = {
    "tokens": pieces,
    "token_type": [1] * len(pieces),
    "merges": merges,
    "eos_token_id": len(pieces) - 1,
  }
  smollm = load_tokenizer(write_gguf(tmp_path / "a.gguf", **changes))
  gpt2 = load_tokenizer(write_gguf(tmp_path / "b.gguf", pre="gpt-2", **changes))
  assert [smollm.pieces[i] for i in smollm.encode("  12")] == ["ĠĠ", "1", "2"]
  assert [gpt2.pieces[i] for i in gpt2.encode("  12")] == ["Ġ", "Ġ", "12"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"pre": "gpt-4o"}, "pre='gpt-4o' is not known"),
    ({"model": "llama"}, "model='llama' is not known"),
    ({"add_space_prefix": True}, "add_space_prefix=True is not supported"),
    ({"eos_token_id": None}, "eos_token_id is missing"),
    ({"token_type": [6] * 260}, "token_type 6"),
    ({"tokens": ["a"] * 260}, "duplicates"),
  ],
)
def test_gguf_refuses_what_it_does_not_know(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    load_tokenizer(write_gguf(tmp_path / "v.gguf", **changes))


def test_files_that_cannot_be_read(tmp_path, bpe):
  def fails(path, message):
    with pytest.raises(InputError, match=message):
      load_tokenizer(path)

  for name in ("bad.model", "bad.json", "bad.gguf", "bad.txt"):
    (tmp_path / name).write_text("not that")
  fails(tmp_path / "bad.model", "not a sentencepiece model")
  fails(tmp_path / "bad.json", "cannot read it")
  fails(tmp_path / "bad.gguf", "not a GGUF file")
  fails(tmp_path / "bad.txt", "allowed: .model, .json")
  fails(tmp_path / "absent", "does not exist")
  fails("", "does not exist")
  (tmp_path / "empty").mkdir()
  fails(tmp_path / "empty", "has no tokenizer.json")
  (tmp_path / "two.model").write_text("not that")
  fails(tmp_path, "several: bad.model, two.model")
  fails(byte_level(tmp_path / "no_end"), "no end-of-text token is named")
  config = {"eos_token": "</s>"}
  fails(byte_level(tmp_path / "no_such", tokenizer_config=config), "'</s>' is not in")
  bpe.save(tmp_path / "broken")
  (tmp_path / "broken" / "tokenizer_config.json").write_text("{")
  fails(tmp_path / "broken", "not JSON")


def test_training_refuses_bad_input(tmp_path):
  for lines, options, message in [
    (ODD, {"model_type": "word"}, "model_type='word' is not known"),
    (ODD, {"model_type": "bpe"}, "vocab_size must be given"),
    (ODD, {"model_type": "bpe", "vocab_size": 5}, "vocab_size=5"),
    ([], {}, "corpus is empty"),
    (["", ""], {}, "corpus is empty"),
  ]:
    with pytest.raises(InputError, match=message):
      train_sentencepiece(lines, path=tmp_path / "a.model", **options)
  assert not (tmp_path / "a.model").exists()


def test_id_of_names_the_nearest_piece(bpe):
  with pytest.raises(InputError, match="did you mean '<think>'"):
    bpe.id_of("<thinks>")
