"""Tokens handed out while they are drawn are the rollout's, however one looks."""

import functools

import numpy as np
import pytest

from r1jax import prng, sharding
from r1jax.sampling import logits, streaming
from tests import tiny

C = tiny.config(max_length=200)
KEY = prng.at(prng.root(0), "chat", 1)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(name="said", scope="module")
def _said():
  return []


@pytest.fixture(name="stream", scope="module")
def _stream(said):
  partition = sharding.single_device()
  return streaming.Streamer(C, tiny.params(C), tiny.STOP, partition, say=said.append)


def drawn(stream, prompt=PROMPT, *, key=KEY, part=0, max_tokens=40, **controls):
  controls = {"temperature": 1.0, "top_p": 0.9} | controls
  chunks = stream(
    prompt, key, part=part, max_tokens=max_tokens, capacity=40, **controls
  )
  return [token_id for chunk in chunks for token_id in chunk]


@functools.cache
def rolled_out(part=0, max_tokens=40):
  rollout = tiny.generator(C, samples=1, max_tokens=64, stop_ids=tiny.STOP)(
    tiny.params(C),
    tiny.prompts([PROMPT], ids=[part]),
    logits.controls(1, temperature=1.0, top_p=0.9, max_tokens=max_tokens),
    KEY,
  )
  return rollout.tokens_BT[0, : int(rollout.length_B[0])].tolist()


def test_it_is_the_rollout(stream):
  for part in range(3):
    assert drawn(stream, part=part) == rolled_out(part)
  assert len({tuple(rolled_out(part)) for part in range(3)}) == 3
  assert drawn(stream, max_tokens=2) == rolled_out()[:2]


def test_looking_more_often_changes_nothing(stream, monkeypatch):
  want = drawn(stream)
  monkeypatch.setattr(streaming, "_MOST_STEPS", 1)
  assert drawn(stream) == want


def test_an_answer_that_nobody_waits_for(stream):
  chunks = stream(
    PROMPT, KEY, part=0, temperature=1.0, top_p=0.9, max_tokens=40, capacity=40
  )
  first = next(chunks)
  assert first == rolled_out()[:1]
  chunks.close()
  assert drawn(stream) == rolled_out()


def test_prompts_of_a_length_share_a_program(stream, said):
  said.clear()
  for length in (1, 8, 128):
    drawn(stream, PROMPT[:1] * length, temperature=0.0)
  assert not said
  drawn(stream, PROMPT[:1] * 129, temperature=0.0)
  drawn(stream, PROMPT[:1] * 150, temperature=0.7)
  assert said == ["compiling for prompts of up to 200 tokens"]  # the model has no more


@pytest.mark.parametrize(
  ("count", "want"), [(0, 4), (4, 4), (5, 8), (8, 8), (9, 16), (17, 20), (99, 20)]
)
def test_powers_of_two(count, want):
  assert streaming._power_of_two(count, 4, 20) == want


def test_greedy_is_the_same_for_every_question(stream):
  other = prng.at(prng.root(0), "chat", 2)
  greedy = drawn(stream, temperature=0.0)
  assert drawn(stream, key=other, temperature=0.0) == greedy
  assert np.all(np.asarray(greedy) < C.vocab)
