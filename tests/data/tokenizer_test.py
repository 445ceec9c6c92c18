"""Tokenizers: exact round trips, special tokens, streams, what folders say."""

import json
import random

import pytest
import sentencepiece
import tokenizers

from r1jax.data.tokenizer import TextStream, load_tokenizer, train_sentencepiece
from r1jax.errors import InputError
from tests.data.vocabularies import (
  LINES,
  ODD,
  byte_fallback,
  byte_level,
  random_texts,
  write_gguf,
)

KINDS = ("char", "bpe", "fallback", "scores", "from_gguf")
IN_CORPUS = pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))


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


@pytest.fixture(scope="module")
def char(tmp_path_factory):
  return train_sentencepiece(ODD, path=tmp_path_factory.mktemp("char") / "a.model")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
  return hugging_face(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def fallback(tmp_path_factory):
  folder = tmp_path_factory.mktemp("fallback")
  beside = {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": True}
  return load_tokenizer(byte_fallback(folder, tokenizer_config=beside))


def llama_2(folder, **beside):
  """A folder with a sentencepiece model like Llama 2's, and these JSON files.

  A space goes in front, characters that are not in it are spelled in bytes.
  """
  folder.mkdir(exist_ok=True)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES),
    model_prefix=str(folder / "tokenizer"),
    model_type="bpe",
    vocab_size=420,
    byte_fallback=True,
    character_coverage=0.98,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  for name, value in beside.items():
    (folder / f"{name}.json").write_text(json.dumps(value))
  return folder


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
  folder = tmp_path_factory.mktemp("scores")
  added = {"<think>": 420, "</think>": 421}
  return load_tokenizer(llama_2(folder, added_tokens=added))


@pytest.fixture(scope="module")
def from_gguf(tmp_path_factory):
  path = tmp_path_factory.mktemp("gguf") / "v.gguf"
  return load_tokenizer(write_gguf(path, pre="deepseek-v3"))


@IN_CORPUS
def test_char_round_trip(char, text):
  """R7: with nothing normalised, text survives as it is, newlines too."""
  assert char.decode(char.encode(text)) == text


@IN_CORPUS
def test_byte_level_round_trip(bpe, text):
  """R7: the same over a vocabulary whose merges cut characters in the middle."""
  assert bpe.decode(bpe.encode(text)) == text


@IN_CORPUS
@pytest.mark.parametrize("kind", ["fallback", "scores"])
def test_round_trip_of_characters_in_bytes(request, kind, text):
  """R7: a space in front is put there and taken off again."""
  tokenizer = request.getfixturevalue(kind)
  assert tokenizer.decode(tokenizer.encode(text)) == text


# ------------------------------------------------------------ bytes of tokens


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_tokens_spell_the_text(request, kind):
  """With a space in front of them where the vocabulary puts one there."""
  tokenizer = request.getfixturevalue(kind)
  for text in [*ODD, *random_texts(20)]:
    ids = tokenizer.encode(text)
    if kind == "scores" and not tokenizer.added.keys().isdisjoint(
      tokenizer.pieces[i] for i in ids
    ):
      continue  # a space in front of each stretch between added tokens
    got = b"".join(map(tokenizer.token_bytes, ids)).decode()
    space = " " * (kind in ("fallback", "scores") and bool(ids))
    assert got == space + tokenizer.decode(ids)


def test_bytes_of_any_token(bpe, fallback, char):
  assert bpe.token_bytes(bpe.id_of("<|end|>")) == b""
  assert bpe.token_bytes(bpe.id_of("<think>")) == b"<think>"
  assert bpe.token_bytes(bpe.vocab_size) == bpe.token_bytes(-1) == b""
  assert fallback.token_bytes(fallback.id_of("<0x0A>")) == b"\n"
  assert char.token_bytes(char.id_of("<unk>")).decode() == char.decode(
    [char.id_of("<unk>")]
  )
  alone = [bpe.token_bytes(i) for i in range(bpe.vocab_size)]
  assert {bytes([byte]) for byte in range(256)} <= {*alone}


def test_bytes_where_the_decoder_is_another(tmp_path):
  path = byte_level(tmp_path, tokenizer_config={"eos_token": "<|end|>"})
  backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
  backend.decoder = tokenizers.decoders.WordPiece()
  backend.save(str(path / "tokenizer.json"))
  with pytest.raises(InputError, match=r"decoder is.*WordPiece.*stop_strings"):
    load_tokenizer(path).token_bytes(40)


# ------------------------------------------------------------------- streams


def streamed(tokenizer, ids, rng, **options):
  """Increments for ids that come in random numbers at a time."""
  stream = TextStream(tokenizer, **options)
  parts = []
  while ids:
    count = rng.randrange(0, 4)
    parts.append(stream.push(ids[:count]))
    ids = ids[count:]
  return [*parts, stream.end()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip_special", [False, True])
def test_stream_is_the_text_in_whole_characters(request, kind, skip_special):
  tokenizer = request.getfixturevalue(kind)
  rng = random.Random(1)
  end = tokenizer.pieces[tokenizer.eos_id]
  for text in [*ODD, *random_texts(60), f"a{end} {end}\U0001f642 b"]:
    for ids in (tokenizer.encode(text), [tokenizer.eos_id, *tokenizer.encode(text)]):
      parts = streamed(tokenizer, ids, rng, skip_special=skip_special)
      want = tokenizer.decode(ids, skip_special=skip_special)
      assert "".join(parts) == want
      assert sum(part.count("\ufffd") for part in parts) == want.count("\ufffd")


@pytest.mark.parametrize("kind", KINDS)
def test_stream_of_any_ids(request, kind):
  """Bytes that are no characters, ids past the vocabulary, an end in the middle."""
  tokenizer = request.getfixturevalue(kind)
  rng = random.Random(2)
  for length in range(40):
    ids = rng.choices(range(tokenizer.vocab_size + 2), k=length)
    assert "".join(streamed(tokenizer, ids, rng)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bpe", "fallback", "scores", "from_gguf"])
def test_stream_waits_for_the_last_byte(request, kind):
  tokenizer = request.getfixturevalue(kind)
  *ids, last = tokenizer.encode("x\U0001f9ff")  # not in any corpus: bytes
  stream = TextStream(tokenizer)
  assert "".join(stream.push([i]) for i in ids) == "x"
  assert stream.push([last, tokenizer.encode("x2")[-1]]) == "\U0001f9ff2"
  assert stream.push(ids[-1:]) == ""
  assert stream.end().startswith("\ufffd")  # cut off: said, not dropped
  assert stream.end() == ""


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


# ------------------------------------------------------------- what folders say


def adds(*pieces, end=()):
  """A post-processor that puts pieces in front of a text and behind it."""
  return tokenizers.processors.TemplateProcessing(
    single=[*pieces, "$A", *end],
    special_tokens=[("<|end|>", 0), ("<|user|>", 1)],
  )


def with_post_processor(folder, post_processor):
  backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  backend.enable_truncation(3)
  backend.enable_padding(length=64)
  backend.post_processor = post_processor
  backend.save(str(folder / "tokenizer.json"))
  return folder


BEGIN = {"eos_token": "<|end|>", "bos_token": "<|user|>"}


@pytest.mark.parametrize(
  ("post_processor", "config", "begins"),
  [
    (None, {}, False),
    (None, {"add_bos_token": True}, True),
    (adds("<|user|>"), {}, True),
    (adds("<|user|>", end=["<|end|>"]), {"add_eos_token": True}, True),
    (adds("<|user|>"), {"add_bos_token": False}, False),
    (adds("<|user|>"), {"add_bos_token": True}, True),
  ],
)
def test_begin_of_text_stands_once(tmp_path, post_processor, config, begins):
  config = BEGIN | config
  folder = byte_level(tmp_path / "a", tokenizer_config=config)
  tokenizer = load_tokenizer(with_post_processor(folder, post_processor))
  plain = tokenizer.encode("x y z 1 2 3 4 5")
  assert tokenizer.decode(plain) == "x y z 1 2 3 4 5"
  begin = [tokenizer.id_of("<|user|>")] * begins
  assert tokenizer.encode("x y z 1 2 3 4 5", begin=True) == begin + plain
  assert tokenizer.encode("", begin=True) == begin
  spelled = tokenizer.encode("<|user|>x")
  assert tokenizer.encode("<|user|>x", begin=True) == spelled
  tokenizer.save(tmp_path / "b")
  assert load_tokenizer(tmp_path / "b").begin_ids == tuple(begin)


def test_begin_of_text_of_sentencepiece_folders(tmp_path):
  def begin_ids(name, **beside):
    return load_tokenizer(llama_2(tmp_path / name, **beside)).begin_ids

  assert begin_ids("bare") == ()
  llama = {"tokenizer_class": "LlamaTokenizer"}
  assert begin_ids("llama", tokenizer_config=llama) == (1,)
  without = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
  assert begin_ids("without", tokenizer_config=without) == ()


def test_added_tokens_that_only_the_config_lists(tmp_path):
  size = load_tokenizer(byte_level(tmp_path / "a", tokenizer_config=BEGIN)).vocab_size
  listed = {
    str(size + 1): {"content": "<tool>", "special": False},
    str(size): {"content": "<|call|>", "special": True},
  }
  config = BEGIN | {"added_tokens_decoder": listed}
  tokenizer = load_tokenizer(byte_level(tmp_path / "b", tokenizer_config=config))
  ids = tokenizer.encode("a<|call|>b<tool>")
  assert [ids[1], ids[3]] == [size, size + 1]
  assert tokenizer.decode(ids, skip_special=True) == "ab<tool>"
  assert tokenizer.added["<|call|>"]
  assert not tokenizer.added["<tool>"]
  listed[str(size + 7)] = {"content": "<far>"}
  with pytest.raises(InputError, match=r"'<far>' as id.*they belong to two"):
    load_tokenizer(byte_level(tmp_path / "c", tokenizer_config=config))


def test_end_tokens_of_the_model_where_no_generation_config_is(tmp_path):
  tokenizer = load_tokenizer(
    byte_level(tmp_path, tokenizer_config=BEGIN, config={"eos_token_id": [1, 0]})
  )
  assert tokenizer.stop_ids == (0, 1)


def test_tokens_added_to_a_sentencepiece_model(tmp_path):
  """As special ones or not; the text between is encoded by itself."""
  folder = llama_2(
    tmp_path / "a",
    added_tokens={"<think>": 421, "<|im_end|>": 420},
    special_tokens_map={"eos_token": {"content": "<|im_end|>"}, "bos_token": "<s>"},
    generation_config={"eos_token_id": [420, 2], "pad_token_id": 0},
  )
  tokenizer = load_tokenizer(folder)
  ids = tokenizer.encode("the answer<think>the other<|im_end|>")
  assert ids[-1] == tokenizer.eos_id == 420
  assert ids.index(421) == len(tokenizer.encode("the answer"))
  assert tokenizer.decode(ids) == "the answer<think>the other<|im_end|>"
  assert tokenizer.decode(ids, skip_special=True) == "the answer<think>the other"
  assert (tokenizer.stop_ids, tokenizer.pad_id) == ((420, 2), 0)
  tokenizer.save(tmp_path / "b")
  loaded = load_tokenizer(tmp_path / "b")
  assert loaded.pieces == tokenizer.pieces
  assert loaded.added == tokenizer.added == {
    "<s>": True, "</s>": True, "<think>": False, "<|im_end|>": True
  }  # fmt: skip
  assert loaded.encode("a<think> b") == tokenizer.encode("a<think> b")


@pytest.mark.parametrize(
  ("beside", "message"),
  [
    ({"added_tokens": {"<far>": 500}}, "'<far>' has id 500.*ends before it"),
    ({"added_tokens": {"<x>": 5}}, "'<x>' has id 5.*has '<0x02>' there"),
    (
      {"tokenizer_config": {"added_tokens_decoder": {"420": {
        "content": "<x>", "rstrip": True}}}},
      "'<x>' strips spaces",
    ),
    ({"tokenizer_config": {"legacy": False}}, "legacy=false is not supported"),
    ({"tokenizer_config": {"eos_token": "<e>"}}, "'<e>' is not in the vocabulary"),
  ],
)  # fmt: skip
def test_sentencepiece_folders_that_are_refused(tmp_path, beside, message):
  with pytest.raises(InputError, match=message):
    load_tokenizer(llama_2(tmp_path / "a", **beside))


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
