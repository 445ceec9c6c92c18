"""Vocabularies in GGUF files: how text is cut, and scores against sentencepiece."""

import io
import random
import unicodedata

import pytest
import sentencepiece
from gguf import TokenType
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import pre_tokenizers

from r1jax.data import tokenizer_gguf
from r1jax.data.tokenizer import load_tokenizer
from r1jax.errors import InputError
from tests.data.vocabularies import LINES, ODD, random_texts, write_gguf

TEXT = "I'LL  pay 12345\u00bd for\r\n\n \u5317\u4eac\u3072 e\u0301t\u00e9!\nno.\t x's "
HAN = "\u5317\u4eac\u3072"
# By hand from the patterns of the models' own tokenizer.json; "|" stands between words.
GPT4 = (
  "I|'LL| | pay| |{digits}| for|\r\n\n| "
  + HAN
  + "| e|\u0301t\u00e9|!\n|no|.|\t| x|'s| "
)
CUT = {
  "default": (
    "I|'|LL| | pay| |123|45\u00bd| for|\r\n\n| "
    + HAN
    + "| e|\u0301|t\u00e9|!|\n|no|.|\t| x|'|s| "
  ),
  "gpt-2": (
    "I|'|LL| | pay| 12345\u00bd| for|\r\n\n| "
    + HAN
    + "| e|\u0301|t\u00e9|!|\n|no|.|\t| x|'s| "
  ),
  "smollm": (
    "I|'|LL| | pay| |1|2|3|4|5|\u00bd| for|\r\n\n| "
    + HAN
    + "| e|\u0301|t\u00e9|!|\n|no|.|\t| x|'s| "
  ),
  "llama-bpe": GPT4.format(digits="123|45\u00bd"),
  "qwen2": GPT4.format(digits="1|2|3|4|5|\u00bd"),
  "deepseek-r1-qwen": GPT4.format(digits="1|2|3|4|5|\u00bd"),
  # Its class of signs runs from ":" to "~", so it also parts ASCII from other letters.
  "deepseek-llm": (
    "I|'|LL| | pay| |1|2|3|4|5|\u00bd| for|\r|\n|\n| |"
    + HAN
    + "| e|\u0301|t|\u00e9|!|\n|no|.|\t| x|'|s| "
  ),
  "deepseek-v3": (
    "I|'LL| | pay| |123|45\u00bd| for|\r\n\n| |"
    + HAN
    + "| e\u0301t\u00e9|!\n|no|.|\t| x|'s| "
  ),
}


# ---------------------------------------------------------------- byte-level


@pytest.mark.parametrize("pre", CUT)
def test_words_before_the_merges(tmp_path, pre):
  backend, _ = tokenizer_gguf.read_gguf(write_gguf(tmp_path / "v.gguf", pre=pre))
  spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(TEXT)]
  assert [TEXT[start:end] for start, end in spans] == CUT[pre].split("|")


@pytest.mark.parametrize("pre", CUT)
def test_text_survives(tmp_path, pre):
  """But for Qwen's, which composes: there the composed text does."""
  tokenizer = load_tokenizer(write_gguf(tmp_path / "v.gguf", pre=pre))
  for text in [*ODD, *random_texts(100)]:
    want = unicodedata.normalize("NFC", text) if "qwen" in pre else text
    assert tokenizer.decode(tokenizer.encode(text)) == want


def test_whole_words_of_llama_3(tmp_path):
  """A piece that no merges lead to is found by Llama 3's tokenizer alone."""
  pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "abc", "<e>"]
  changes = {"tokens": pieces, "token_type": [1] * len(pieces), "merges": []}
  changes |= {"eos_token_id": len(pieces) - 1}
  ids = {}
  for pre in ("llama-bpe", "qwen2"):
    path = write_gguf(tmp_path / f"{pre}.gguf", pre=pre, **changes)
    ids[pre] = load_tokenizer(path).encode("abc")
  assert ids == {
    "llama-bpe": [pieces.index("abc")],
    "qwen2": [*map(pieces.index, "abc")],
  }


def test_pieces_and_ids(tmp_path):
  tokenizer = load_tokenizer(write_gguf(tmp_path / "v.gguf"))
  pieces = [tokenizer.pieces[i] for i in tokenizer.encode("ab a  12<think>7<|end|>")]
  assert pieces == ["ab", "Ġa", "Ġ", "Ġ", "1", "2", "<think>", "7", "<|end|>"]
  assert tokenizer.pad_id == tokenizer.eos_id == tokenizer.id_of("<|end|>")
  assert tokenizer.added == {"<|end|>": True, "<think>": False}


@pytest.mark.parametrize(
  ("changes", "begins"),
  [
    ({"bos_token_id": 258}, False),
    ({"bos_token_id": 258, "add_bos_token": True}, True),
    ({"bos_token_id": 258, "pre": "llama-bpe"}, True),
    ({"bos_token_id": 258, "pre": "llama-bpe", "add_bos_token": False}, False),
    ({"add_bos_token": True}, False),
  ],
)
def test_begin_of_text_as_the_file_says(tmp_path, changes, begins):
  tokenizer = load_tokenizer(write_gguf(tmp_path / "v.gguf", **changes))
  assert tokenizer.begin_ids == ((258,) if begins else ())
  tokenizer.save(tmp_path / "json")
  assert load_tokenizer(tmp_path / "json").begin_ids == tokenizer.begin_ids


def test_end_tokens(tmp_path):
  changes = {"eot_token_id": 7, "eom_token_id": 5, "padding_token_id": 9}
  tokenizer = load_tokenizer(write_gguf(tmp_path / "v.gguf", **changes))
  assert tokenizer.stop_ids == (tokenizer.eos_id, 7, 5)
  assert tokenizer.pad_id == 9


def test_gguf_and_json_of_one_vocabulary_agree(tmp_path):
  from_gguf = load_tokenizer(write_gguf(tmp_path / "v.gguf", pre="deepseek-v3"))
  from_gguf.save(tmp_path / "json")
  from_json = load_tokenizer(tmp_path / "json")
  assert from_json.fingerprint == from_gguf.fingerprint
  texts = [*ODD, *random_texts(50)]
  assert [from_json.encode(t) for t in texts] == [from_gguf.encode(t) for t in texts]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"pre": "gpt-4o"}, "pre='gpt-4o' is not known.*deepseek-v3"),
    ({"pre": None}, "pre='None' is not known"),
    ({"model": "bert"}, "model='bert' is not known"),
    ({"add_space_prefix": True}, "add_space_prefix=True is not supported"),
    ({"eos_token_id": None}, "eos_token_id is missing"),
    ({"eos_token_id": 999}, "end token id 999 is not in the vocabulary"),
    ({"token_type": [6] * 260}, "token_type 6"),
    ({"token_type": [1] * 3}, "token_type must have one entry a token"),
    ({"tokens": ["a"] * 260}, "duplicates"),
    ({"merges": ["a b c"]}, "merges must be pairs"),
  ],
)
def test_refuses_what_it_does_not_know(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    load_tokenizer(write_gguf(tmp_path / "v.gguf", **changes))


# ---------------------------------------------------------------- with scores


@pytest.fixture(scope="module", name="trained", params=[True, False], ids=["▁", "no ▁"])
def _trained(request):
  """A sentencepiece model like Llama 2's, with and without the space in front."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES),
    model_writer=model,
    model_type="bpe",
    vocab_size=420,
    byte_fallback=True,
    character_coverage=0.98,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=request.param,
    control_symbols=["<|user|>"],
    minloglevel=2,
  )
  return proto.ModelProto.FromString(model.getvalue())


def write_scores(path, model, **changes):
  """The same vocabulary as a GGUF file."""
  fields = {
    "model": "llama",
    "pre": "default",
    "tokens": [piece.piece for piece in model.pieces],
    "scores": [piece.score for piece in model.pieces],
    "token_type": [piece.type for piece in model.pieces],
    "merges": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
  }
  if not model.normalizer_spec.add_dummy_prefix:
    fields["add_space_prefix"] = False
  return write_gguf(path, **fields | changes)


def test_scores_give_what_sentencepiece_gives(trained, tmp_path):
  sp = sentencepiece.SentencePieceProcessor(model_proto=trained.SerializeToString())
  tokenizer = load_tokenizer(write_scores(tmp_path / "v.gguf", trained))
  texts = [*ODD, *LINES, *random_texts(300)]
  for text in texts:
    ids = tokenizer.encode(text)
    assert ids == sp.encode(text)
    assert tokenizer.decode(ids) == sp.decode(ids) == text.replace("\u2581", " ")
  rng = random.Random(0)
  for _ in range(100):
    ids = rng.choices(range(4, sp.vocab_size()), k=12)
    assert tokenizer.decode(ids) == sp.decode(ids)


def test_byte_fallback_spells_any_character(trained, tmp_path):
  tokenizer = load_tokenizer(write_scores(tmp_path / "v.gguf", trained))
  pieces = [tokenizer.pieces[i] for i in tokenizer.encode("\U0001f9ff")]
  assert pieces[-4:] == ["<0xF0>", "<0x9F>", "<0xA7>", "<0xBF>"]


def test_control_and_added_tokens_cut_the_text(trained, tmp_path):
  trained = proto.ModelProto.FromString(trained.SerializeToString())
  trained.pieces.add(piece="<think>", score=0.0, type=TokenType.USER_DEFINED)
  tokenizer = load_tokenizer(write_scores(tmp_path / "v.gguf", trained))
  text = "<s><|user|>the one<think>the other</s>"
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert tokenizer.decode(ids, skip_special=True) == "the one<think>the other"
  at = [ids.index(tokenizer.id_of(p)) for p in ("<|user|>", "<think>", "</s>")]
  assert ids[at[0] + 1 : at[1]] == tokenizer.encode("the one")
  assert ids[at[1] + 1 : at[2]] == tokenizer.encode("the other")
  assert tokenizer.begin_ids == (1,)
  assert tokenizer.encode(text, begin=True) == ids
  assert tokenizer.encode("the", begin=True) == [1, *tokenizer.encode("the")]
  tokenizer.save(tmp_path / "saved")
  loaded = load_tokenizer(tmp_path / "saved")
  assert loaded.added == tokenizer.added
  assert loaded.encode(text) == ids
  assert (loaded.begin_ids, loaded.stop_ids, loaded.pad_id) == ((1,), (2,), 2)


def test_scores_that_do_not_fit(trained, tmp_path):
  def refused(message, **changes):
    with pytest.raises(InputError, match=message):
      load_tokenizer(write_scores(tmp_path / "v.gguf", trained, **changes))

  size = len(trained.pieces)
  refused("scores must have one entry a token", scores=[0.0])
  refused("token_type 9", token_type=[9] * size)
  refused("cannot use its vocabulary", token_type=[1] * size)
  refused("precompiled_charsmap is not supported", precompiled_charsmap=[1, 2])
