"""SmolLM2-135M-Instruct from its GGUF file against transformers in float32."""

import functools
import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.data import templates
from r1jax.data.tokenizer import load_tokenizer
from r1jax.models import transformer
from r1jax.sampling import decode, logits, loop_state
from r1jax.types import Problem
from r1jax.weights import hf

PROMPTS = ("plain", "math", "chat", "odd_text")
TOLERANCE = 2e-3  # of a logit, float32; 1.4e-4 was seen on CPU
NUM_GREEDY = 64

RECORDED = json.loads(
  (pathlib.Path(__file__).parent / "smollm2_135m.json").read_text(encoding="utf-8")
)


def logits_of(model, ids):
  """[n, V] of one sequence."""
  c, params = model
  tokens_1L = jnp.asarray(ids, jnp.int32)[None]

  @jax.jit
  def run(params, tokens_1L):
    positions_1L = jnp.arange(tokens_1L.shape[1])[None]
    hidden_1LD, _, _ = transformer.forward(c, params, tokens_1L, positions_1L)
    return transformer.unembed(params, hidden_1LD)[0]

  return np.asarray(run(params, tokens_1L))


def greedy(model, prompts, stop_ids):
  """Greedy completions of prompts of any length, by the sampler."""
  c, params = model
  tokens_QP = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
  for row, ids in zip(tokens_QP, prompts, strict=True):
    row[: len(ids)] = ids
  plan = loop_state.Plan(samples=1, max_tokens=NUM_GREEDY)
  generate = functools.partial(decode.generate, c, plan=plan)
  rollout = jax.jit(generate)(
    params,
    loop_state.Prompts(
      tokens_QP=jnp.asarray(tokens_QP),
      length_Q=jnp.asarray([len(ids) for ids in prompts], jnp.int32),
      problem_Q=jnp.arange(len(prompts)),
    ),
    logits.controls(
      len(prompts), temperature=0.0, max_tokens=NUM_GREEDY, stop_ids=stop_ids
    ),
    jax.random.key(0),
  )
  tokens_BT, length_B = np.asarray(rollout.tokens_BT), np.asarray(rollout.length_B)
  return [tokens[:n].tolist() for tokens, n in zip(tokens_BT, length_B, strict=True)]


def assert_same_greedy(model, prompt, got, want, name):
  """Equal, or turned by a near tie: then the two logits are within the tolerance."""
  got, want = list(got), np.asarray(want).tolist()
  if got == want:
    return
  length = min(len(got), len(want))
  at = next((i for i in range(length) if got[i] != want[i]), length)
  assert at < length, f"{name}: one continuation ends at {at}: {got} and {want}"
  row = logits_of(model, [*prompt, *want[:at]])[-1]
  gap = float(row[got[at]] - row[want[at]])
  report = f"{name}: token {at} is {got[at]}, not {want[at]}; logit gap {gap:.2g}"
  assert abs(gap) < TOLERANCE, report
  warnings.warn(f"near tie, {report}", stacklevel=2)


def test_recorded_outputs(smollm2, smollm2_tokenizer):
  """The part of the reference that is kept here; record_smollm2.py made it."""
  for name, want in RECORDED.items():
    assert smollm2_tokenizer.encode(want["text"]) == want["ids"], name
    row = logits_of(smollm2, want["ids"])
    logsumexp = np.asarray(jax.nn.logsumexp(row, axis=-1))
    np.testing.assert_allclose(logsumexp, want["logsumexp"], atol=TOLERANCE)
    assert row.argmax(-1).tolist() == want["argmax"], name
    for position, entries in want["logits"].items():
      got = row[int(position)][[int(v) for v in entries]]
      np.testing.assert_allclose(got, list(entries.values()), rtol=0, atol=TOLERANCE)
  prompts = [want["ids"] for want in RECORDED.values()]
  drawn = greedy(smollm2, prompts, smollm2_tokenizer.stop_ids)
  for got, (name, want) in zip(drawn, RECORDED.items(), strict=True):
    assert_same_greedy(smollm2, want["ids"], got, want["greedy64"], name)
    assert smollm2_tokenizer.decode(want["greedy64"]) == want["greedy_text"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTS)
def test_logits(smollm2, golden, name):
  want = golden[name]
  got = logits_of(smollm2, want["ids"])
  rows = len(want["logits"])
  worst = np.abs(got[-rows:] - want["logits"]).max()
  assert worst < TOLERANCE, f"worst absolute difference {worst:.2g}"
  logsumexp = np.asarray(jax.nn.logsumexp(got, axis=-1))
  np.testing.assert_allclose(logsumexp, want["logsumexp"], rtol=0, atol=TOLERANCE)
  np.testing.assert_array_equal(got.argmax(-1), want["argmax"])


@pytest.mark.slow
def test_greedy_continuations(smollm2, smollm2_tokenizer, golden):
  """By the sampler, all prompts in one batch, with cache, padding and early stops."""
  prompts = [golden[name]["ids"].tolist() for name in PROMPTS]
  drawn = greedy(smollm2, prompts, smollm2_tokenizer.stop_ids)
  for name, prompt, got in zip(PROMPTS, prompts, drawn, strict=True):
    assert_same_greedy(smollm2, prompt, got, golden[name]["greedy64"], name)


@pytest.mark.slow
def test_greedy_continuations_teacher_forced(smollm2, golden):
  """Every reference token is the best one after those before it, or ties with it."""
  for name in PROMPTS:
    prompt, drawn = golden[name]["ids"], golden[name]["greedy64"]
    row = logits_of(smollm2, [*prompt, *drawn])[len(prompt) - 1 : -1]
    gap = row.max(-1) - np.take_along_axis(row, drawn[:, None], axis=-1)[:, 0]
    assert gap.max() < TOLERANCE, f"{name}: gap {gap.max():.2g} at {gap.argmax()}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTS)
def test_token_ids(smollm2_tokenizer, golden, name):
  """R7: the reference ids, and the text back from them."""
  want = golden[name]
  assert smollm2_tokenizer.encode(want["text"]) == want["ids"].tolist()
  assert smollm2_tokenizer.decode(want["ids"]) == want["text"]


@pytest.mark.slow
def test_tokenizer_survives_tokenizer_json(smollm2_tokenizer, golden, tmp_path):
  smollm2_tokenizer.save(tmp_path)
  loaded = load_tokenizer(tmp_path)
  assert loaded.fingerprint == smollm2_tokenizer.fingerprint
  for want in golden.values():
    assert loaded.encode(want["text"]) == want["ids"].tolist()


@pytest.mark.slow
def test_chat_template(smollm2_tokenizer, golden):
  question = "Write one sentence about the sea."
  problem = Problem(id="sea", prompt=question, answer="", verifier="none")
  assert templates.render("chat", problem, smollm2_tokenizer) == golden["chat"]["text"]


@pytest.mark.slow
def test_vocabulary_and_end_tokens(smollm2, smollm2_tokenizer):
  tokenizer = smollm2_tokenizer
  assert tokenizer.vocab_size == smollm2[0].vocab == 49152
  assert tokenizer.eos_id == tokenizer.id_of("<|im_end|>")
  assert tokenizer.bos_id == tokenizer.id_of("<|im_start|>")
  assert tokenizer.decode([tokenizer.eos_id], skip_special=True) == ""


@pytest.mark.slow
def test_through_a_hugging_face_folder(smollm2, smollm2_tokenizer, golden, tmp_path):
  """GGUF -> safetensors -> the same parameters, so the same logits."""
  c, params = smollm2
  hf.save_hf(tmp_path, c, params, smollm2_tokenizer)
  loaded = hf.load_hf(tmp_path)
  assert loaded[0] == c
  jax.tree.map(np.testing.assert_array_equal, loaded[1], params)
  np.testing.assert_array_equal(
    logits_of(loaded, golden["math"]["ids"]), logits_of(smollm2, golden["math"]["ids"])
  )
