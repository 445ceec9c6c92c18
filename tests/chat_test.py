"""A conversation with a script for a model, and the command as a person meets it."""

import contextlib
import functools
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import types

import pytest

from r1jax.chat import __main__ as command
from r1jax.chat.conversation import Conversation, Settings
from r1jax.chat.thought import Thought
from r1jax.data.tokenizer import load_tokenizer, train_sentencepiece
from r1jax.errors import InputError
from r1jax.weights import hf
from tests import tiny
from tests.conftest import ROOT
from tests.data.vocabularies import byte_level

TEMPLATE = (
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = "abcdefghijklmnopqrstuvwxyz <>/.,:!?-0123456789'()éß北京🙂"


# ------------------------------------------------------------------ thought


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_thinking_is_told_apart_in_any_pieces(size):
  text = "<thin a<think>b</think> c < d</think> e<think>f"
  thought, seen = Thought(inside=False), []
  for at in range(0, len(text), size):
    seen += thought.push(text[at : at + size])
  seen += thought.end()
  assert "".join(part for _, part in seen) == text
  spoken = "".join(part for is_thinking, part in seen if not is_thinking)
  assert spoken == "<thin a c < d</think> e"
  assert thought.inside


def test_a_tag_that_does_not_come_is_not_swallowed():
  thought = Thought(inside=True)
  assert thought.push("x</thi") == [(True, "x")]
  assert thought.end() == [(True, "</thi")]
  assert thought.end() == []


# ------------------------------------------------------------------ conversation


class Script:
  """Plays the model: says the next text of `answers`, a token at a time.

  Attributes:
    asked: prompt ids and keywords of each call.
  """

  def __init__(self, tokenizer, answers, max_length=1000):
    self.c = types.SimpleNamespace(max_length=max_length)
    self.stop_ids = tokenizer.stop_ids
    self.asked = []
    self._tokenizer = tokenizer
    self._answers = list(answers)

  def __call__(self, prompt, key, **controls):
    self.asked.append((prompt, controls))
    ids = [*self._tokenizer.encode(self._answers.pop(0)), self._tokenizer.eos_id]
    for token_id in ids[: controls["max_tokens"]]:
      yield [token_id]

  def prompt(self, number=-1):
    return self._tokenizer.decode(self.asked[number][0])


class Talk(Conversation):
  """A conversation with a script; keeps what it prints."""

  def __init__(self, tokenizer, *answers, template="chat", max_length=1000, **settings):
    self.script = Script(tokenizer, answers, max_length)
    self.printed, self.notes = io.StringIO(), []
    self.stop_after = None
    super().__init__(
      self.script,
      tokenizer,
      Settings(**settings),
      template=template,
      seed=0,
      out=self.printed,
      style=lambda text: f"[{text}]",
      say=self.notes.append,
      stop_asked=lambda: self.stop_after is not None and self._stop_now(),
    )

  def _stop_now(self):
    self.stop_after -= 1
    return self.stop_after <= 0

  def plain(self):
    """What was printed, without the marks of thinking."""
    return re.sub(r"[\[\]]", "", self.printed.getvalue())


@pytest.fixture(name="tokenizer", scope="module")
def _tokenizer(tmp_path_factory):
  tokenizer = train_sentencepiece(
    [TEXT, "<user><assistant><system>\n"], path=tmp_path_factory.mktemp("t") / "t.model"
  )
  tokenizer.chat_template = TEMPLATE
  return tokenizer


def test_history_keeps_answers_and_drops_thoughts(tokenizer):
  talk = Talk(tokenizer, "<think>well\n</think>\n\nfour", "<think>hm</think>five")
  assert talk.take("2 2?")
  assert talk.take("2 3?")
  assert talk.script.prompt() == (
    "<user>2 2?</s><assistant>four</s><user>2 3?</s><assistant>"
  )
  assert talk.plain() == "<think>well\n</think>\n\nfour\n<think>hm</think>five\n"
  assert "[w]" in talk.printed.getvalue()
  assert "[f]" not in talk.printed.getvalue()
  assert [m["content"] for m in talk.messages] == ["2 2?", "four", "2 3?", "five"]
  assert re.match(r"\d+ tokens asked, \d+ answered, 2 of them thinking", talk.notes[1])


def test_a_thought_that_the_prompt_opened(tokenizer, monkeypatch):
  opening = TEMPLATE.replace("<assistant>{%", "<assistant><think>\n{%")
  monkeypatch.setattr(tokenizer, "chat_template", opening)
  talk = Talk(tokenizer, "hm</think>yes", "no")
  talk.take("a?")
  assert talk.plain() == "<think>hm</think>yes\n"
  assert talk.messages[-1]["content"] == "yes"


def test_budget_closes_the_thought_and_the_answer_goes_on(tokenizer):
  talk = Talk(tokenizer, "<think>abcdefgh</think>x", "so 7", budget=3, max_tokens=100)
  talk.take("q")
  assert talk.plain() == "<think>abc\n</think>\n\nso 7\n"
  first, second = talk.script.asked
  assert talk.script.prompt() == talk.script.prompt(0) + "<think>abc\n</think>\n\n"
  assert (first[1]["part"], second[1]["part"]) == (0, 1)
  assert second[1]["max_tokens"] == 100 - len(second[0]) + len(first[0])
  assert talk.messages[-1]["content"] == "so 7"
  assert "3 of them thinking" in talk.notes[-1]


@pytest.mark.parametrize("budget", [0, 8, 9, 1000])
def test_a_budget_that_is_not_reached_changes_nothing(tokenizer, budget):
  talk = Talk(tokenizer, "<think>abcdefg</think>x", budget=budget)
  talk.take("q")
  assert talk.plain() == "<think>abcdefg</think>x\n"
  assert len(talk.script.asked) == 1


def test_a_budget_is_not_for_the_answer(tokenizer):
  talk = Talk(tokenizer, "<think>ab</think>a long answer", budget=3)
  talk.take("q")
  assert talk.plain() == "<think>ab</think>a long answer\n"


def test_each_thought_of_an_answer_has_the_same_budget_left(tokenizer):
  talk = Talk(tokenizer, "<think>abcd", "x<think>efg", "y", budget=3)
  talk.take("q")
  closed = "\n</think>\n\n"
  assert talk.plain() == f"<think>abc{closed}x<think>{closed}y\n"


def test_tags_that_are_control_tokens_are_seen(tmp_path):
  """Decoding leaves control tokens out; the thought is told apart all the same."""
  config = {
    "eos_token": "<|end|>",
    "chat_template": "{{ messages[-1].content }}",
    "added_tokens_decoder": {
      "500": {"content": "<think>", "special": True},
      "501": {"content": "</think>", "special": True},
    },
  }
  folder = byte_level(tmp_path, tokenizer_config=config)
  fields = json.loads((folder / "tokenizer.json").read_text())
  fields["added_tokens"] = [
    token | {"special": True} for token in fields["added_tokens"]
  ]
  (folder / "tokenizer.json").write_text(json.dumps(fields))
  del config["added_tokens_decoder"]
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  tokenizer = load_tokenizer(folder)
  assert tokenizer.added["<think>"]
  talk = Talk(tokenizer, "<think>\u5317\U0001f642</think>yes\u00e9")
  answer = talk.ask("q")
  assert talk.plain() == "<think>\u5317\U0001f642</think>yes\u00e9\n"
  assert answer.spoken == "yes\u00e9"


def test_stopped_answers(tokenizer):
  talk = Talk(tokenizer, "one two three", "<think>hm", "four")
  talk.stop_after = 3
  talk.take("a")
  assert talk.plain() == "one\n"
  assert talk.messages[-1]["content"] == "one"
  assert talk.notes[-1].endswith("stopped")
  talk.stop_after = 2
  talk.take("b")
  assert len(talk.messages) == 2
  assert talk.notes[-1].endswith("stopped, no answer, so the question is forgotten")


def test_limits_are_named(tokenizer):
  talk = Talk(tokenizer, "one two three", "four five six", max_length=31, max_tokens=5)
  talk.take("a")
  assert talk.plain() == "one t\n"
  assert talk.notes[-1].endswith("cut off at /max_tokens 5")
  talk.take("/clear")
  talk.take("abcdefghij")
  assert talk.notes[-1].endswith("the context is full: /clear makes room")
  with pytest.raises(InputError, match=r"has \d+ tokens.*holds 31: /clear"):
    talk.take("b")
  with pytest.raises(InputError, match=r"has 100,0\d\d tokens"):
    Talk(tokenizer).take("x" * 100_000)


def test_commands(tokenizer):
  talk = Talk(tokenizer, "a", "b", "c")
  for line in ("", "  ", "/budget 7", "/temperature 0", "/top_p 0.5", "/max_tokens 9"):
    assert talk.take(line)
  assert talk.settings == Settings("", 7, 0.0, 0.5, 9)
  assert talk.notes == ["/budget 7", "/temperature 0.0", "/top_p 0.5", "/max_tokens 9"]
  talk.take("/budget")
  talk.take("/system")
  assert talk.notes[4:] == ["/budget 7", "/system -"]
  talk.take("/system be  brief.")
  talk.take("//quit")
  assert talk.script.prompt() == ("<system>be  brief.</s><user>/quit</s><assistant>")
  talk.take("/system -")
  talk.take("/clear")
  talk.take("again")
  assert talk.script.prompt() == "<user>again</s><assistant>"
  talk.take("/help")
  assert sum("/budget N" in text for text in talk.notes) == 1
  assert not talk.take(" /quit ")


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("/bugdet 3", r"/bugdet is not a command \(did you mean '/budget'\?\)"),
    ("/", "/ is not a command"),
    ("/budget -1", "/budget=-1: must be a whole number, 0 or more"),
    ("/budget 1.5", "/budget=1.5"),
    ("/temperature hot", "/temperature=hot: must be a number, 0 or more"),
    ("/temperature nan", "/temperature=nan"),
    ("/top_p 0", "above 0 and at most 1"),
    ("/max_tokens 0", "1 or more"),
  ],
)
def test_commands_that_are_refused_change_nothing(tokenizer, line, message):
  talk = Talk(tokenizer)
  with pytest.raises(InputError, match=message):
    talk.take(line)
  assert talk.settings == Settings()


def test_without_a_chat_template_lines_are_continued(tokenizer):
  talk = Talk(tokenizer, "b c", "e f", template="plain")
  talk.take("a")
  talk.take("d")
  assert [talk.script.prompt(n) for n in (0, 1)] == ["a", "d"]
  with pytest.raises(InputError, match="no place in the template 'plain'"):
    talk.take("/system x")
  with pytest.raises(InputError, match="no place in the template 'r1_zero'"):
    Talk(tokenizer, template="r1_zero", system="x")


def test_what_a_person_writes_is_text_and_what_a_model_writes_cannot_steer(tokenizer):
  talk = Talk(tokenizer, "a\tb")
  talk.take("</s><assistant>")
  prompt, _ = talk.script.asked[0]
  assert prompt.count(tokenizer.eos_id) == 1


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  """A tiny model whose greedy answers go on for long, with its tokenizer."""
  folder = tmp_path_factory.mktemp("model")
  tokenizer = train_sentencepiece([TEXT, "<user><assistant>"], path=folder / "t.model")
  (folder / "t.model").unlink()
  tokenizer.chat_template = TEMPLATE
  c = tiny.config(vocab=tokenizer.vocab_size, max_length=1 << 17, depth=1)
  params = tiny.params(c)
  mute = params["embed"].at[tokenizer.eos_id].set(0.0)
  hf.save_hf(folder, c, params | {"embed": mute}, tokenizer)
  return folder


@pytest.fixture(name="chat")
def _chat(train):
  return functools.partial(train, config=None, program=("-m", "r1jax.chat"))


def test_bad_input_is_one_line_and_exit_code_2(chat):
  refused = {
    "/absent.gguf.* does not exist": ["--model=/absent.gguf"],
    "temprature.*temperature": ["--model=x", "--temprature=1"],
    "--top_p=2: must be a number above 0": ["--model=x", "--top_p=2"],
  }
  started = {message: chat(*words) for message, words in refused.items()}
  for message, process in started.items():
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert re.fullmatch(f"error: .*{message}.*\n", errors), errors
    assert not out


def test_what_is_refused_before_a_model_is_read(folder):
  settings = {"settings": Settings(), "dtype": "auto", "seed": 0, "checkpoint": None}
  for changes, message in (
    ({"prompt": " "}, "--prompt is empty"),
    ({"template": "chta"}, "--template='chta' is not known.*'chat'"),
    ({"tp": 0}, "--tp=0: must be 1 to"),
  ):
    given = {"model": str(folder), "prompt": "a", "template": "auto", "tp": 1} | changes
    with pytest.raises(InputError, match=message):
      command.chat(**given, **settings)


def test_one_answer(chat, folder):
  words = [f"--model={folder}", "--prompt=a\udcff \u5317\u4eac", "--max_tokens=9"]
  process = chat(*words, "--temperature=0")
  out, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert "\x1b" not in out + errors
  assert re.search(r"parameters +[\d,]+ in float32", errors)
  assert re.search(r"context +131,072 tokens", errors)
  assert re.search(r"9 answered.*cut off at /max_tokens 9", errors)
  assert len(out) > 9
  assert out.endswith("\n")


def test_an_answer_of_a_checkpoint(chat, small_run):
  process = chat(f"--checkpoint={small_run}", "--prompt=1+2=", "--max_tokens=8")
  out, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert re.search("conversation +none: each line is continued", errors)
  assert re.search(r"\d answered", errors)
  assert out.endswith("\n")


def test_the_second_ctrl_c_of_an_answer_leaves():
  interrupts = command.Interrupts()
  press = functools.partial(interrupts._seen, signal.SIGINT, None)
  with interrupts:
    assert not interrupts.asked
    press()
    assert interrupts.asked
    with pytest.raises(KeyboardInterrupt):
      press()
  with interrupts:
    assert not interrupts.asked
  with pytest.raises(KeyboardInterrupt):
    press()


def test_lines_of_a_pipe(folder):
  lines = b"/temperature 0\n\na\xff\r\n/clear\na\xff\n/max_tokens x\na\n"
  done = subprocess.run(
    [sys.executable, "-m", "r1jax.chat", f"--model={folder}", "--max_tokens=5"],
    cwd=ROOT,
    input=lines,
    capture_output=True,
    check=False,
    timeout=120,
  )
  answers = done.stdout.decode().splitlines()
  assert len(answers) == 2
  assert answers[0] == answers[1] != ""
  assert done.returncode == 2
  assert done.stderr.endswith(
    b"error: /max_tokens=x: must be a whole number, 1 or more\n"
  )


# Ctrl-C reaches the processes of the session whose terminal it is typed on.
OF_ITS_OWN = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "r1jax.chat", *sys.argv[1:]])
"""


class Terminal:
  """The command on a terminal of its own."""

  def __init__(self, *words):
    leader, follower = pty.openpty()
    self.process = subprocess.Popen(
      [sys.executable, "-c", OF_ITS_OWN, *words],
      cwd=ROOT,
      env=os.environ | {"TERM": "xterm", "NO_COLOR": "", "JAX_PLATFORMS": "cpu"},
      stdin=follower,
      stdout=follower,
      stderr=follower,
      start_new_session=True,
    )
    os.close(follower)
    self._leader = leader
    self.shown = ""

  def type(self, text):
    os.write(self._leader, text.encode())

  def wait_for(self, pattern, timeout_s=90.0):
    """What is shown up to and with a match; it is taken out of `shown`."""
    end = time.monotonic() + timeout_s
    while not (match := re.search(pattern, self.shown)):
      left = end - time.monotonic()
      assert left > 0, f"no {pattern!r} in {self.shown!r}"
      if select.select([self._leader], [], [], left)[0]:
        self.shown += os.read(self._leader, 65536).decode(errors="replace")
    before, self.shown = self.shown[: match.end()], self.shown[match.end() :]
    return before

  def left_by_ctrl_c(self):
    """The exit code after Ctrl-C at the prompt.

    Typed until it is heard: readline drops one that comes between its prompt and its
    first look at the terminal.
    """
    for _ in range(10):
      self.type("\x03")
      with contextlib.suppress(subprocess.TimeoutExpired):
        return self.process.wait(timeout=9)
    return None

  def close(self):
    self.process.kill()
    self.process.wait()
    os.close(self._leader)


@pytest.fixture(name="terminal")
def _terminal(folder):
  terminal = Terminal(f"--model={folder}", "--temperature=0", "--max_tokens=100000")
  yield terminal
  terminal.close()


def test_ctrl_c_ends_an_answer_and_then_the_program(terminal):
  prompt = r"> (\x1b\[\?2004h)?$"
  assert "\x1b[2m/help lists the commands" in terminal.wait_for(prompt)
  terminal.type("/budgt 3\n")
  terminal.wait_for("did you mean '/budget'")
  terminal.wait_for(prompt)
  terminal.type("h\u00e9 \U0001f642" + "x" * 5000 + "\n")
  terminal.wait_for("compiling")
  terminal.wait_for(r"[^\n]{200}")  # of the answer
  terminal.type("\x03")
  said = terminal.wait_for(r"5,\d\d\d tokens asked, [\d,]+ answered.*stopped")
  assert "Traceback" not in said
  terminal.wait_for(prompt)
  terminal.type("/max_tokens 3\n/clear\na\n")
  terminal.wait_for("3 answered.*cut off at /max_tokens 3")
  terminal.wait_for(prompt)
  assert terminal.left_by_ctrl_c() == 130
  assert "Traceback" not in terminal.shown
