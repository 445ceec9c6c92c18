"""Stop strings over the vocabulary of SmolLM2: bytes of tokens, where they match."""

import random

import pytest

from r1jax.sampling import stops

TEXT = (
  "So 12 + 30 = 42.\n\n"
  "The answer is <answer>42</answer>, caf\u00e9 \u5317\u4eac \U0001f9ff\n"
)


@pytest.fixture(scope="module", name="token_bytes")
def _token_bytes(smollm2_tokenizer):
  count = smollm2_tokenizer.vocab_size
  return [smollm2_tokenizer.token_bytes(token_id) for token_id in range(count)]


def test_bytes_are_what_each_token_decodes_to(smollm2_tokenizer, token_bytes):
  for token_id in range(0, len(token_bytes), 7):
    decoded = smollm2_tokenizer.decode([token_id], skip_special=True)
    assert token_bytes[token_id].decode(errors="replace") == decoded
  ids = smollm2_tokenizer.encode(TEXT)
  assert b"".join(token_bytes[token_id] for token_id in ids) == TEXT.encode()


@pytest.mark.parametrize(
  "strings",
  [["</answer>"], [".\n\n"], ["2</", "\u5317"], ["\U0001f9ff"], ["absent", "42."]],
  ids=str,
)
def test_rows_end_at_the_token_that_completes_a_string(
  smollm2_tokenizer, token_bytes, strings
):
  """However the text is cut into tokens."""
  table = stops.table(strings, token_bytes)
  rng = random.Random(0)
  for _ in range(5):
    cuts = sorted(rng.sample(range(1, len(TEXT)), 9))
    parts = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    ids = [token_id for part in parts for token_id in smollm2_tokenizer.encode(part)]
    state, text = stops.START, b""
    for token_id in ids:
      state = table[state, token_id]
      text += token_bytes[token_id]
      found = any(string.encode() in text for string in strings)
      assert (state == stops.MATCHED) == found
    assert state == stops.MATCHED
