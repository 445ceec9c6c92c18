"""A conversation: commands, history, and answers printed while they are drawn."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from r1jax import prng, terminal
from r1jax.chat.thought import Answer
from r1jax.data import templates
from r1jax.data.templates import THINK_CLOSE, THINK_OPEN
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import InputError, nearest
from r1jax.sampling.streaming import Streamer
from r1jax.types import Problem

COMMANDS = {
  "/system TEXT": "what the model is told first; - removes it",
  "/budget N": "close a thought after N tokens; 0 lets it run",
  "/temperature X": "0 takes the likeliest token always",
  "/top_p X": "draw among the likeliest tokens that have this share together",
  "/max_tokens N": "longest answer, thinking included",
  "/clear": "forget the conversation",
  "/help": "this list; without a value the others show theirs",
  "/quit": "leave",
}


@dataclasses.dataclass
class Settings:
  """What commands change; see COMMANDS."""

  system: str = ""
  budget: int = 0
  temperature: float = 0.6
  top_p: float = 0.95
  max_tokens: int = 2048

  def change(self, name: str, text: str, *, key: str) -> None:
    """Sets a field from what a user wrote.

    Raises:
      InputError: not an allowed number; the message names `key`.
    """
    if name == "system":
      self.system = "" if text == "-" else text
      return
    kind, least, most, allowed = {
      "budget": (int, 0, math.inf, "a whole number, 0 or more"),
      "temperature": (float, 0, 1e6, "a number, 0 or more"),
      "top_p": (float, 1e-6, 1, "a number above 0 and at most 1"),
      "max_tokens": (int, 1, math.inf, "a whole number, 1 or more"),
    }[name]
    try:
      value = kind(text)
    except ValueError:
      value = math.nan
    if not least <= value <= most:
      raise InputError(f"{key}={text}: must be {allowed}")
    setattr(self, name, value)


class Conversation:
  """Asks and remembers. Earlier turns keep their answers and not their thoughts.

  Args:
    template: name in `templates.RENDERERS`; only "chat" has turns and a system text.
    out: where answers go.
    style: thinking as it is written to `out`.
    say: prints a line about the conversation, not of it.
    stop_asked: whether the answer in progress is to end.
  """

  def __init__(
    self,
    streamer: Streamer,
    tokenizer: Tokenizer,
    settings: Settings,
    *,
    template: str,
    seed: int,
    out: TextIO,
    style: Callable[[str], str],
    say: Callable[[str], None],
    stop_asked: Callable[[], bool],
  ):
    self.settings = settings
    self.messages: list[dict[str, str]] = []
    self._streamer = streamer
    self._tokenizer = tokenizer
    self._template = template
    self._key = prng.root(seed)
    self._num_questions = 0
    self._out = out
    self._style = style
    self._say = say
    self._stop_asked = stop_asked
    if settings.system:
      self._refuse_system()

  def take(self, line: str) -> bool:
    """Does what a line says. False where it says to leave.

    Raises:
      InputError: no such command, a value that is not allowed, or what `ask` raises.
    """
    command = line.strip()
    if not command:
      return True
    if not command.startswith("/"):
      self.ask(line)
      return True
    if command.startswith("//"):
      self.ask(command[1:])
      return True
    word, _, value = command.partition(" ")
    known = [usage.split(" ")[0] for usage in COMMANDS]
    if word not in known:
      raise InputError(
        f"{word} is not a command{nearest(word, known)}; /help lists them, and // "
        "begins a message with a /"
      )
    if word == "/quit":
      return False
    name, value = word.removeprefix("/"), value.strip()
    if word == "/help":
      for usage, text in COMMANDS.items():
        self._say(f"{usage:{max(map(len, COMMANDS))}}  {text}")
    elif word == "/clear":
      self.messages = []
      self._say("the conversation is forgotten")
    else:
      if name == "system" and value not in ("", "-"):
        self._refuse_system()
      if value:
        self.settings.change(name, value, key=word)
      shown = getattr(self.settings, name)
      self._say(f"{word} {'-' if shown == '' else shown}")
    return True

  def ask(self, message: str) -> Answer:
    """Prints the answer to a message, and a line about it.

    Raises:
      InputError: the conversation does not fit the model, or its template refuses it.
    """
    asked = [*self.messages, {"role": "user", "content": message}]
    prompt = templates.prompt_ids(
      self._template,
      Problem("chat", message, answer="", verifier="", messages=tuple(asked)),
      self._tokenizer,
      system=self.settings.system,
    )
    context = self._streamer.c.max_length
    if not 0 < len(prompt) < context:
      raise InputError(
        f"the conversation has {len(prompt):,} tokens, and the model's context holds "
        f"{context:,}: /clear forgets what was said, or write less"
      )
    opened = self._tokenizer.decode(prompt[-8:]).rstrip().endswith(THINK_OPEN)
    answer = Answer(self._tokenizer, thinks=opened)
    if opened:
      self._print([(True, THINK_OPEN)])
    self._num_questions += 1
    room = context - len(prompt)
    end, tokens_per_s = self._draw(prompt, answer, min(self.settings.max_tokens, room))
    self._print([*answer.end(), (False, "\n")])

    notes = [f"{len(prompt):,} tokens asked, {len(answer.ids):,} answered"]
    if answer.num_thinking:
      notes.append(f"{answer.num_thinking:,} of them thinking")
    if tokens_per_s:
      notes.append(f"{tokens_per_s:.1f} tokens/s")
    if end == "length" and room <= self.settings.max_tokens:
      notes.append("cut off since the context is full: /clear makes room")
    elif end == "length":
      notes.append(f"cut off at /max_tokens {self.settings.max_tokens}")
    elif end:
      notes.append(end)
    spoken = answer.spoken.strip()
    if self._template == "chat" and spoken:
      self.messages = [*asked, {"role": "assistant", "content": spoken}]
    elif self._template == "chat":
      notes.append("no answer, so the question is forgotten")
    self._say(", ".join(notes))
    return answer

  def _refuse_system(self) -> None:
    if self._template != "chat":
      raise InputError(
        f"a system text has no place in the template {self._template!r}; leave it out"
      )

  def _draw(
    self, prompt: Sequence[int], answer: Answer, max_tokens: int
  ) -> tuple[str, float]:
    """Prints what is drawn. A thought that used up its budget is closed by force.

    The tokens that close it go behind those drawn, and drawing goes on from there.

    Returns:
      ("" for the model's own end, "length" or "stopped"; tokens per second or 0).
    """
    key = prng.at(self._key, "chat", self._num_questions)
    settings = self.settings
    part, timed, seconds = 0, 0, 0.0
    end = "length"
    while end == "length" and len(answer.ids) < max_tokens:
      chunks = self._streamer(
        [*prompt, *answer.ids],
        key,
        part=part,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=max_tokens - len(answer.ids),
        capacity=settings.max_tokens,
      )
      # The first look waits for the prompt, and maybe for the compiler.
      is_first, closed = True, False
      began = time.monotonic()
      for ids in chunks:
        if not is_first:
          timed, seconds = timed + len(ids), seconds + time.monotonic() - began
        is_first = False
        for token_id in ids:
          if token_id in self._streamer.stop_ids:
            end = ""
            break
          self._print(answer.take(token_id))
          if settings.budget and answer.thinks:
            closed = answer.num_thinking >= settings.budget
          if closed:
            break
        self._out.flush()
        if self._stop_asked():
          end = "stopped"
        if closed or end != "length":
          break
        began = time.monotonic()
      if closed and end == "length":
        line = "" if answer.text.endswith("\n") else "\n"
        for token_id in self._tokenizer.encode(f"{line}{THINK_CLOSE}\n\n"):
          self._print(answer.take(token_id, forced=True))
        part += 1
    return end, timed / seconds if seconds else 0.0

  def _print(self, parts: Sequence[tuple[bool, str]]) -> None:
    for is_thinking, text in parts:
      shown = terminal.printable(text)
      self._out.write(self._style(shown) if is_thinking else shown)
