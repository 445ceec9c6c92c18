"""lm-eval's requests to our models: what is scored, drawn and refused.

Tests that need lm-eval itself are skipped where it is not installed.
"""

import functools
import io
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from r1jax import sharding
from r1jax.data.tokenizer import load_tokenizer, train_sentencepiece
from r1jax.errors import InputError
from r1jax.lm_eval import __main__ as command
from r1jax.lm_eval.engine import Drawing, Engine
from r1jax.models import transformer
from r1jax.sharding import SAMPLE_RULES, Partition
from tests import tiny
from tests.data.vocabularies import byte_level

TEXT = "abcdefghij 0123456789+=?.\n"
C = tiny.config(vocab=40, max_length=60)
UNTIL = {"until": ["@", "no such"], "max_gen_toks": 16}


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "t.model"
  return train_sentencepiece([TEXT, "<think>@</think>"], path=path)


@pytest.fixture(scope="module", name="engine")
def _engine(tokenizer):
  return make(tokenizer)


def make(tokenizer, **settings):
  partition = Partition(sharding.single_device().mesh, SAMPLE_RULES)
  params = tiny.params(C)
  return Engine(C, params, tokenizer, partition, **{"batch": 4, **settings})


@functools.cache
def plain_forward():
  @jax.jit
  def logp(tokens_BL):
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    hidden_BLD, _, _ = transformer.forward(C, tiny.params(C), tokens_BL, positions_BL)
    return jax.nn.log_softmax(hidden_BLD @ tiny.params(C)["embed"].T)

  return logp


def plainly(context, continuation):
  """(log-prob, whether each token is the likeliest) of one sequence in its own row."""
  whole = [*context, *continuation]
  row_L = np.zeros((1, C.max_length + 1), np.int32)
  row_L[0, : len(whole)] = whole
  logp_LV = np.asarray(plain_forward()(row_L)[0], np.float64)
  places = np.arange(len(context) - 1, len(whole) - 1)
  total = logp_LV[places, continuation].sum()
  return total, logp_LV[places].argmax(axis=1).tolist() == list(continuation)


def likeliest(context, count):
  """The ids that a greedy draw gives."""
  ids = list(context)
  for _ in range(count):
    row_L = np.zeros((1, C.max_length + 1), np.int32)
    row_L[0, : len(ids)] = ids
    ids.append(int(plain_forward()(row_L)[0, len(ids) - 1].argmax()))
  return ids[len(context) :]


def test_scores_are_those_of_a_plain_forward(engine):
  """Contexts in common or not, in more than one batch of rows."""
  rng = np.random.default_rng(0)
  pairs = []
  for _ in range(14):
    context = rng.integers(3, 30, rng.integers(1, 40)).tolist()
    pairs += [
      (context, rng.integers(3, 30, rng.integers(1, 12)).tolist()) for _ in range(4)
    ]
  pairs.append((context, likeliest(context, 3)))
  pairs.append((context, []))
  order = rng.permutation(len(pairs))
  pairs = [pairs[i] for i in order]
  found = engine.scores(pairs)
  want = [plainly(*pair) for pair in pairs]
  np.testing.assert_allclose(
    [logp for logp, _ in found], [logp for logp, _ in want], atol=2e-4
  )
  assert [is_best for _, is_best in found] == [is_best for _, is_best in want]
  assert found[[*order].index(56)][1]
  assert found[[*order].index(57)] == (0.0, True)


def test_a_long_context_loses_its_beginning(engine, monkeypatch):
  said = io.StringIO()
  monkeypatch.setattr(engine, "_console", Console(file=said, width=200))
  context, rest = [5, 6, 7] * 30, [8, 9]
  [(logp, _)] = engine.scores([(context, rest)])
  kept = context[len(context) + len(rest) - C.max_length - 1 :]
  np.testing.assert_allclose(logp, plainly(kept, rest)[0], atol=2e-4)
  assert "1 of 1 prompts lose their beginning" in said.getvalue()
  for pair in (([], [1]), ([1], [2] * 61)):
    with pytest.raises(InputError, match="cannot be scored by a model of 60 positions"):
      engine.scores([pair])


def test_greedy_answers(engine, tokenizer):
  """Each is what a plain forward draws, up to the end token, the limit or a text."""
  texts = ["ab 12", "1+1=", "j", "7", "a?"]
  answers = engine.answers([(text, Drawing.of(UNTIL)) for text in texts])
  for text, answer in zip(texts, answers, strict=True):
    ids = likeliest(tokenizer.encode(text), 16)
    ends = [i for i, token in enumerate(ids) if token in tokenizer.stop_ids]
    want = tokenizer.decode(ids[: min(ends, default=16)], skip_special=True)
    assert answer == want.partition("@")[0]
  longest = max(answers, key=len)
  text = texts[answers.index(longest)]
  assert len(longest) > 4
  # The second text ends it: it comes first, though the other may come too.
  until = [longest[4:], longest[2:4]]
  drawing = Drawing.of(UNTIL | {"until": until})
  want = longest[: longest.index(until[1])]
  assert engine.answers([(text, drawing)]) == [want]


def test_samples_depend_on_text_and_repetition_alone(engine, tokenizer, monkeypatch):
  drawing = Drawing.of(UNTIL | {"temperature": 1.0, "top_p": 0.9})
  asked = [(text, drawing) for text in ("ab", "cd", "ab", "e", "ab", "f")]
  found = engine.answers(asked)
  assert len({found[0], found[2], found[4]}) == 3
  assert engine.answers(asked[4:5]) == found[:1]
  assert engine.answers(asked[::-1])[::-1][1] == found[1]
  monkeypatch.setattr(engine, "_key", make(tokenizer, seed=1)._key)
  assert engine.answers(asked) != found


def test_an_answer_may_begin_behind_a_thought(tokenizer):
  engine = make(tokenizer, think_end="</think>")
  for text, want in (
    ("a.b</think>\n c. d", "c"),
    ("a</think>b</think>c", "c"),
    ("ab. c", "ab"),
  ):
    assert engine._cut_off(text, (".",)) == want


def test_no_room_for_a_prompt(engine):
  drawing = Drawing.of({"max_gen_toks": 60})
  with pytest.raises(
    InputError, match=r"max_gen_toks=60 leaves no room .*--gen_kwargs"
  ):
    engine.answers([("a", drawing)])


@pytest.mark.parametrize(
  ("given", "want"),
  [
    ({}, ((), 256, {"temperature": 0.0})),
    ({"until": "\n"}, (("\n",), 256, {"temperature": 0.0})),
    ({"until": ["a", ""], "max_tokens": 3}, (("a",), 3, {"temperature": 0.0})),
    ({"max_new_tokens": 3, "max_gen_toks": 4}, ((), 4, {"temperature": 0.0})),
    ({"temperature": 0.5, "top_p": 0.9}, ((), 256, {"temperature": 0.5, "top_p": 0.9})),
    ({"do_sample": True}, ((), 256, {"temperature": 1.0})),
    ({"do_sample": False, "temperature": 0.7}, ((), 256, {"temperature": 0.0})),
    ({"do_sample": False, "top_k": 5, "num_beams": 1}, ((), 256, {"temperature": 0.0})),
  ],
)
def test_generation_settings(given, want):
  drawing = Drawing.of(given)
  assert (drawing.until, drawing.max_tokens, dict(drawing.controls)) == want


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"do_sample": True, "temperature": 0.0}, "do not go together"),
    ({"temperature": -1.0}, "do not go together"),
    ({"num_beams": 4}, "num_beams=4: there is no beam search"),
    ({"temprature": 1.0}, "temprature=1.0 is not known .*'temperature'"),
    ({"max_gen_toks": 0}, "max_gen_toks=0: must be 1 or more"),
  ],
)
def test_generation_settings_that_are_refused(given, message):
  with pytest.raises(InputError, match=message):
    Drawing.of(given)


def test_without_lm_eval_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  with pytest.raises(InputError, match=r"pip install -e .\.\[lm_eval\]. is needed"):
    command.evaluate(types.SimpleNamespace())


# ------------------------------------------------------------------ lm-eval itself


CHOICES = [
  {"question": f"{a}+{b}=", "options": [str(a + b), str(a), "77"], "gold": 0}
  for a, b in ((1, 2), (3, 4), (5, 1), (2, 2))
]


def write_tasks(folder):
  """Tasks of each kind of request, on local lines. Returns their files."""
  lines = folder / "lines.jsonl"
  lines.write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
  data = {
    "dataset_path": "json",
    "dataset_kwargs": {
      "data_files": {"test": str(lines)},
      "cache_dir": str(folder / "cache"),
    },
    "test_split": "test",
    "num_fewshot": 0,
  }
  tasks = {
    "sums_choice": {
      "output_type": "multiple_choice",
      "doc_to_text": "{{question}}",
      "doc_to_choice": "{{options}}",
      "doc_to_target": "gold",
      "target_delimiter": "",
      "metric_list": [{"metric": "acc"}],
    },
    "sums_drawn": {
      "output_type": "generate_until",
      "doc_to_text": "{{question}}",
      "doc_to_target": "{{options[0]}}",
      "generation_kwargs": {**UNTIL, "do_sample": False},
      "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
      ],
    },
    "sums_whole": {
      "output_type": "loglikelihood_rolling",
      "doc_to_text": "",
      "doc_to_target": "{{(question + options[0] + ' ') * 20}}",
      "metric_list": [{"metric": "byte_perplexity"}],
    },
  }
  files = []
  for name, task in tasks.items():
    files.append(folder / f"{name}.yaml")
    # JSON is YAML too.
    files[-1].write_text(json.dumps({"task": name, **data, **task}))
  return files


@pytest.mark.slow
def test_tasks_of_lm_eval(engine, tokenizer, tmp_path):
  theirs = pytest.importorskip("lm_eval")
  names, index = command.known_tasks(list(map(str, write_tasks(tmp_path))), None)
  results = theirs.simple_evaluate(
    command.as_lm(engine, {"checkpoint": "a run"}),
    tasks=names,
    task_manager=index,
    bootstrap_iters=0,
  )
  encode = tokenizer.encode
  right = 0
  for sample, row in zip(results["samples"]["sums_choice"], CHOICES, strict=True):
    found = [response[0] for [response] in sample["resps"]]
    context = encode(row["question"])
    want = [plainly(context, encode(option))[0] for option in row["options"]]
    np.testing.assert_allclose(found, want, atol=2e-4)
    right += np.argmax(want) == 0
  assert results["results"]["sums_choice"]["acc,none"] == right / len(CHOICES)
  drawing = Drawing.of(UNTIL)
  answers = engine.answers([(row["question"], drawing) for row in CHOICES])
  drawn = results["samples"]["sums_drawn"]
  assert [sample["resps"][0][0] for sample in drawn] == answers
  # 60 tokens behind end-of-text, the rest behind as much as the model reaches.
  ids = encode((CHOICES[0]["question"] + "3 ") * 20)
  assert 60 < len(ids) <= 120
  end = tokenizer.eos_id
  want = plainly([end], ids[:60])[0] + plainly(ids[-61:60], ids[60:])[0]
  [[total]] = results["samples"]["sums_whole"][0]["resps"]
  np.testing.assert_allclose(total, want, atol=1e-3)
  assert results["config"]["checkpoint"] == "a run"
  with pytest.raises(InputError, match="--tasks=sums_chioce: lm-eval knows no such"):
    command.known_tasks(["sums_chioce"], str(tmp_path))


@pytest.mark.slow
def test_conversations_go_through_the_model_s_chat_template(tmp_path):
  pytest.importorskip("lm_eval")
  template = (
    "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<think>{% endif %}"
  )
  config = {"eos_token": "<|end|>", "chat_template": template}
  chatty = load_tokenizer(byte_level(tmp_path, tokenizer_config=config))
  lm = command.as_lm(types.SimpleNamespace(c=C, tokenizer=chatty), {})
  asked = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It "}]
  assert lm.apply_chat_template(asked[:1]) == "<|user|>1+1?<|end|><think>"
  # An answer that is begun is gone on with.
  begun = lm.apply_chat_template(asked, add_generation_prompt=False)
  assert begun == "<|user|>1+1?<|end|><|user|>It "
  assert lm.chat_template(True) == template


@pytest.mark.slow
def test_the_command(train, small_run, tmp_path):
  pytest.importorskip("lm_eval")
  files = write_tasks(tmp_path)
  out = tmp_path / "results.json"
  process = train(
    f"--checkpoint={small_run}",
    f"--tasks={files[0]},sums_drawn",
    f"--include_path={tmp_path}",
    "--gen_kwargs=max_gen_toks=8",
    f"--output_path={out}",
    config=None,
    program=("-m", "r1jax.lm_eval"),
  )
  said, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  assert "sums_choice" in said
  assert "exact_match" in said
  results = json.loads(out.read_text())
  assert results["config"]["stage"] == "zero"
  assert len(results["samples"]["sums_drawn"]) == len(CHOICES)
  process = train(
    f"--checkpoint={small_run}",
    "--tasks=no_such_task",
    config=None,
    program=("-m", "r1jax.lm_eval"),
  )
  said, errors = process.communicate(timeout=300)
  assert (process.returncode, said) == (2, "")
  assert "--tasks=no_such_task: lm-eval knows no such task" in errors
