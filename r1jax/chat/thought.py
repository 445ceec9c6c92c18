"""An answer while it comes: which of its text is thinking, and what is certain yet."""

from collections.abc import Mapping

from r1jax.data.templates import THINK_CLOSE, THINK_OPEN
from r1jax.data.tokenizer import TextStream, Tokenizer


class Thought:
  """Tells thinking from answer in a text that comes in pieces.

  Attributes:
    inside: what comes next is thinking.
  """

  def __init__(self, *, inside: bool):
    self.inside = inside
    self._held = ""

  def push(self, text: str) -> list[tuple[bool, str]]:
    """(is thinking, text) of what is certain; tags count as thinking."""
    found, text = [], self._held + text
    while True:
      tag = THINK_CLOSE if self.inside else THINK_OPEN
      before, seen, rest = text.partition(tag)
      if not seen:
        break
      found += [(self.inside, before), (True, tag)]
      self.inside = not self.inside
      text = rest
    half = next(n for n in range(len(tag) - 1, -1, -1) if text.endswith(tag[:n]))
    self._held = text[len(text) - half :]
    found.append((self.inside, text[: len(text) - half]))
    return [(is_thinking, part) for is_thinking, part in found if part]

  def end(self) -> list[tuple[bool, str]]:
    """What was held back, since a tag might have begun there."""
    held, self._held = self._held, ""
    return [(self.inside, held)] if held else []


class Answer:
  """Ids that were drawn or forced, and their text in thinking and answer.

  Args:
    thinks: the prompt has opened the thought.

  Attributes:
    ids: all of them, without the end token.
    text: what is certain of their text, tags included.
    spoken: the part of it that is not thinking.
    num_thinking: ids drawn inside the thought.
  """

  def __init__(self, tokenizer: Tokenizer, *, thinks: bool):
    self.ids: list[int] = []
    self.text = ""
    self.spoken = ""
    self.num_thinking = 0
    self._thought = Thought(inside=thinks)
    self._stream = TextStream(tokenizer, skip_special=True)
    self._tags = control_tags(tokenizer)

  @property
  def thinks(self) -> bool:
    return self._thought.inside

  def take(self, token_id: int, *, forced: bool = False) -> list[tuple[bool, str]]:
    """Adds an id; (is thinking, text) of what is certain with it."""
    self.ids.append(token_id)
    was_inside = self.thinks
    if token_id in self._tags:
      text = self._stream.end() + self._tags[token_id]
    else:
      text = self._stream.push([token_id])
    parts = self._kept(text, self._thought.push(text))
    self.num_thinking += was_inside and self.thinks and not forced
    return parts

  def end(self) -> list[tuple[bool, str]]:
    """What is left when nothing more comes."""
    text = self._stream.end()
    return self._kept(text, [*self._thought.push(text), *self._thought.end()])

  def _kept(self, text: str, parts: list[tuple[bool, str]]) -> list[tuple[bool, str]]:
    self.text += text
    self.spoken += "".join(part for is_thinking, part in parts if not is_thinking)
    return parts


def control_tags(tokenizer: Tokenizer) -> Mapping[int, str]:
  """{id: tag} of thinking tags that are control tokens, which decoding leaves out."""
  return {
    tokenizer.id_of(tag): tag
    for tag in (THINK_OPEN, THINK_CLOSE)
    if tokenizer.added.get(tag)
  }
