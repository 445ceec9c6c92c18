"""From a problem to the text that a model is asked with, and the tags it answers in."""

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
import jinja2.sandbox

from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import InputError, one_of
from r1jax.types import Problem

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

# DeepSeek-R1 report (arXiv 2501.12948), table 1. "{prompt}" is the slot.
R1_ZERO = (
  "A conversation between User and Assistant. The user asks a question, and the "
  "Assistant solves it. The assistant first thinks about the reasoning process in "
  "the mind and then provides the user with the answer. The reasoning process and "
  "answer are enclosed within <think> </think> and <answer> </answer> tags, "
  "respectively, i.e., <think> reasoning process here </think> <answer> answer here "
  "</answer>. User: {prompt}. Assistant:"
)


def render(
  name: str,
  problem: Problem,
  tokenizer: Tokenizer,
  *,
  suffix: str = "",
  system: str = "",
) -> str:
  """The prompt text of a problem; `prompt_ids` gives its tokens.

  Args:
    name: "plain" (the question alone), "r1_zero" (the published prompt around it) or
      "chat" (the tokenizer's chat template, up to where the assistant speaks).
    suffix: an instruction that follows the question, or the last user message.
    system: for "chat", text of a system message in front of the conversation.

  Raises:
    InputError: an unknown name, `system` for a template that has no place for it, or
      what `render_chat` raises.
  """
  one_of(name, RENDERERS, key="template")
  if system and name != "chat":
    raise InputError(f"template={name!r} has no system text; use 'chat' or leave it ''")
  return RENDERERS[name](problem, tokenizer, suffix=suffix, system=system)


def prompt_ids(
  name: str,
  problem: Problem,
  tokenizer: Tokenizer,
  *,
  suffix: str = "",
  system: str = "",
) -> list[int]:
  """Token ids of `render`.

  A chat template writes begin-of-text itself. The others do not: there it is put in
  front for models whose tokenizer does so, and control tokens that the problem spells
  are control tokens.
  """
  text = render(name, problem, tokenizer, suffix=suffix, system=system)
  return tokenizer.encode(text, begin=name != "chat")


def encode(
  problems: Iterable[Problem],
  tokenizer: Tokenizer,
  *,
  length: int,
  template: str,
  suffix: str = "",
  system: str = "",
) -> list[list[int]]:
  """Token ids of each prompt.

  Args:
    length: most tokens that a prompt may have.
    template, suffix, system: as of `render`.

  Raises:
    InputError: a prompt is longer, or empty.
  """
  prompts = []
  longest = (0, "")
  for problem in problems:
    prompts.append(
      prompt_ids(template, problem, tokenizer, suffix=suffix, system=system)
    )
    if not prompts[-1]:
      raise InputError(f"the prompt of problem {problem.id!r} has no tokens")
    longest = max(longest, (len(prompts[-1]), problem.id))
  if longest[0] > length:
    too_long = sum(len(prompt) > length for prompt in prompts)
    raise InputError(
      f"{too_long} of {len(prompts)} prompts are longer than config.rollout."
      f"prompt_length={length}; the longest, of problem {longest[1]!r}, has "
      f"{longest[0]} tokens: raise config.rollout.prompt_length to {longest[0]}"
    )
  return prompts


def _plain(problem: Problem, tokenizer: Tokenizer, *, suffix: str, system: str) -> str:
  del tokenizer, system
  return problem.prompt + suffix


def _r1_zero(
  problem: Problem, tokenizer: Tokenizer, *, suffix: str, system: str
) -> str:
  del tokenizer, system
  return R1_ZERO.replace("{prompt}", problem.prompt + suffix)


def _chat(problem: Problem, tokenizer: Tokenizer, *, suffix: str, system: str) -> str:
  messages = [dict(m) for m in problem.messages]
  if not messages:
    messages = [{"role": "user", "content": problem.prompt}]
  if suffix:
    users = [m for m in messages if m["role"] == "user"]
    if not users:
      raise InputError(f"problem {problem.id!r} has no user message for the suffix")
    users[-1]["content"] += suffix
  if system:
    if messages[0]["role"] == "system":
      raise InputError(
        f"problem {problem.id!r} has a system message already; leave system ''"
      )
    messages.insert(0, {"role": "system", "content": system})
  return render_chat(messages, tokenizer)


RENDERERS: dict[str, Callable[..., str]] = {
  "plain": _plain,
  "r1_zero": _r1_zero,
  "chat": _chat,
}


def render_chat(
  messages: list[Mapping[str, Any]],
  tokenizer: Tokenizer,
  *,
  add_generation_prompt: bool = True,
) -> str:
  """A conversation as the tokenizer's chat template writes it.

  The template is a stranger's program: it runs in jinja2's immutable sandbox, with the
  names that Hugging Face templates expect. What a message says stays text: where it
  spells a control token, or a token that the template marks turns with, an invisible
  U+200B behind the first character breaks it. The tags of TAGS are let through.

  Raises:
    InputError: the tokenizer has no chat template, the template refuses or fails, or a
      message spells a control token that cannot be broken.
  """
  if tokenizer.chat_template is None:
    raise InputError(
      "template='chat' needs a tokenizer with a chat template, and this one has none; "
      "use 'plain' or 'r1_zero'"
    )
  pieces = tokenizer.pieces
  bos_id = tokenizer.bos_id
  try:
    return (
      _environment()
      .from_string(tokenizer.chat_template)
      .render(
        messages=_as_text(messages, tokenizer),
        add_generation_prompt=add_generation_prompt,
        bos_token="" if bos_id is None else pieces[bos_id],
        eos_token=pieces[tokenizer.eos_id],
        pad_token=pieces[tokenizer.pad_id],
      )
    )
  except (jinja2.TemplateError, TypeError, ValueError) as e:
    raise InputError(f"the tokenizer's chat template failed: {e}") from e


def _as_text(value: Any, tokenizer: Tokenizer) -> Any:
  """Messages in which no text spells a token that marks where turns begin or end."""
  if isinstance(value, Mapping):
    return {key: _as_text(part, tokenizer) for key, part in value.items()}
  if isinstance(value, list | tuple):
    return [_as_text(part, tokenizer) for part in value]
  if not isinstance(value, str):
    return value
  marks = [
    piece
    for piece, is_control in tokenizer.added.items()
    if piece in value
    and piece not in TAGS
    and (is_control or (piece.strip() and piece in tokenizer.chat_template))
  ]
  text = value
  for piece in sorted(marks, key=len, reverse=True):
    text = text.replace(piece, f"{piece[0]}\u200b{piece[1:]}")
  if marks and not {*map(tokenizer.id_of, marks)}.isdisjoint(tokenizer.encode(text)):
    raise InputError(f"a message spells the tokens {marks}, which this model reserves")
  return text


def _environment() -> jinja2.Environment:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  environment.globals["raise_exception"] = _raise_exception
  environment.globals["strftime_now"] = _strftime_now
  environment.filters["tojson"] = _tojson
  return environment


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _tojson(value: Any, indent: int | None = None) -> str:
  """JSON as it is; jinja2's own filter escapes it for HTML."""
  return json.dumps(value, ensure_ascii=False, indent=indent)
