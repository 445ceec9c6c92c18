"""A real model talks: what is printed is what was drawn."""

import io
import re

import pytest

from r1jax import sharding
from r1jax.chat.conversation import Conversation, Settings
from r1jax.data.tokenizer import TextStream
from r1jax.sampling.streaming import Streamer
from tests.parity.smollm2_test import assert_same_greedy


@pytest.mark.slow
def test_streams_of_a_real_vocabulary(smollm2_tokenizer, golden):
  for want in golden.values():
    for ids in (want["ids"], want["greedy64"], range(0, 49152, 7)):
      stream = TextStream(smollm2_tokenizer)
      parts = [stream.push([token_id]) for token_id in ids]
      assert "".join([*parts, stream.end()]) == smollm2_tokenizer.decode(ids)


@pytest.mark.slow
def test_smollm2_answers(smollm2, smollm2_tokenizer, golden):
  """The reference's own answer to its own question, on the way to a second one."""
  c, params = smollm2
  printed, notes = io.StringIO(), []
  talk = Conversation(
    Streamer(
      c, params, smollm2_tokenizer.stop_ids, sharding.single_device(), say=notes.append
    ),
    smollm2_tokenizer,
    Settings(temperature=0.0, max_tokens=64),
    template="chat",
    seed=0,
    out=printed,
    style=str.upper,
    say=notes.append,
    stop_asked=lambda: False,
  )
  answer = talk.ask("Write one sentence about the sea.")
  want = golden["chat"]
  drawn = [*answer.ids, smollm2_tokenizer.eos_id]
  assert_same_greedy(smollm2, want["ids"], drawn, want["greedy64"], "chat")
  assert answer.text == smollm2_tokenizer.decode(answer.ids, skip_special=True)
  assert printed.getvalue() == answer.text + "\n" != "\n"
  talk.ask("And one about caf\u00e9s in \u5317\u4eac \U0001f642.")
  assert printed.getvalue().startswith(answer.text + "\n")
  assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2
  assert sum("compiling" in text for text in notes) == 1
  assert re.search(r"[\d.]+ tokens/s", notes[-1])
