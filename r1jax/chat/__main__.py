"""Talks to a model in the terminal.

    python -m r1jax.chat --model=PATH [--prompt=TEXT]
    python -m r1jax.chat --checkpoint=RUN [--prompt=TEXT]

PATH is a .gguf file, a Hugging Face folder or hf://org/name, RUN a run directory (its
last stage is taken), or a stage or step in its checkpoints/. Answers come as they are
drawn, thinking dimmed. A line that begins with "/" is a command (/help lists them), one
that begins with "//" a message that begins with "/". Ctrl-C ends an answer, at the
prompt or a second time the program. With --prompt, or where the input is no terminal,
only answers go to the standard output.

Exit codes: 0 done, 2 bad input, 130 left by Ctrl-C.
"""

import dataclasses
import os
import readline
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from rich.console import Console

from r1jax import sharding, terminal, trees
from r1jax.chat.conversation import COMMANDS, Conversation, Settings
from r1jax.data import templates
from r1jax.data.tokenizer import Tokenizer, load_tokenizer
from r1jax.errors import InputError, one_of, refuse
from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.sampling.streaming import Streamer
from r1jax.sharding import SAMPLE_RULES, Partition
from r1jax.weights import paths

# How questions become prompts, as the table at the start says it.
_TEMPLATES = {
  "chat": "by the model's chat template",
  "plain": "none: each line is continued as it stands, without what came before",
  "r1_zero": "none: each line goes into R1-Zero's prompt, without what came before",
}


class Interrupts:
  """Ctrl-C: inside the context asks an answer to end, else and the second time leaves.

  Attributes:
    asked: whether the last answer was asked to end.
  """

  def __init__(self):
    self.asked = False
    self._is_drawing = False

  def __enter__(self) -> None:
    self.asked, self._is_drawing = False, True

  def __exit__(self, *unused: object) -> None:
    self._is_drawing = False

  def install(self) -> None:
    signal.signal(signal.SIGINT, self._seen)

  def _seen(self, number: int, frame: object) -> None:
    del number, frame
    if self.asked or not self._is_drawing:
      raise KeyboardInterrupt
    self.asked = True


def load(
  model: str | None, checkpoint: str | None, *, dtype: str, tp: int
) -> tuple[ModelConfig, dict, Tokenizer, Partition]:
  """Shape, parameters, tokenizer and devices of a model or of a run's checkpoint.

  Raises:
    InputError: nothing there, not a model that can be computed, or it does not split
      over `tp` devices.
  """
  if not 1 <= tp <= jax.device_count():
    raise InputError(f"--tp={tp}: must be 1 to {jax.device_count()}, the devices here")
  if dtype == "auto":
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  shape = [tp if axis == "tp" else 1 for axis in sharding.MESH_AXES]
  mesh = jax.sharding.Mesh(
    np.asarray(jax.devices()[:tp]).reshape(shape),
    sharding.MESH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
  )
  partition = Partition(mesh, SAMPLE_RULES)
  if checkpoint is not None:
    # Brings all that trains, which other chats do without.
    from r1jax import export

    source = export.of_checkpoint(checkpoint, None)
    c, tokenizer = source.model, source.tokenizer
  else:
    local = paths.local_path(model)
    c, tokenizer = paths.read_config(local), load_tokenizer(local)
  if tokenizer.vocab_size > c.vocab:
    raise InputError(
      f"--model={model}: its tokenizer has {tokenizer.vocab_size} pieces and the model "
      f"{c.vocab} rows for them"
    )
  try:
    shardings = partition.of_specs(parameters.param_specs(c))
  except InputError as e:
    raise InputError(f"--tp={tp}: {e}") from e
  if checkpoint is None:
    _, params = paths.load_model(local, dtype=jnp.dtype(dtype), shardings=shardings)
  else:
    params = jax.tree.map(
      lambda leaf, at: jax.device_put(leaf.astype(dtype), at), source.load(), shardings
    )
  return c, _by_layer(params), tokenizer, partition


def _by_layer(params: dict) -> dict:
  """`parameters.unstacked`, in which one leaf at a time lies twice."""
  waiting, done = trees.flatten(params), {}
  params.clear()
  while waiting:
    path, leaf = waiting.popitem()
    stack, _, rest = path.partition("/")
    if stack in parameters.STACKS:
      done |= {f"{stack}/{z}/{rest}": leaf[z] for z in range(len(leaf))}
      jax.block_until_ready(list(done.values()))
    else:
      done[path] = leaf
  return trees.unflatten(done)


def print_resolved(
  c: ModelConfig, params: dict, partition: Partition, *, origin: str, template: str
) -> None:
  """The table before the first question."""
  leaves = jax.tree.leaves(params)
  devices = partition.mesh.devices.flatten()
  rows = {
    "model": c.name,
    "from": origin,
    "parameters": f"{sum(leaf.size for leaf in leaves):,} in {leaves[0].dtype}",
    "devices": f"{len(devices)} × {devices[0].device_kind}",
    "context": f"{c.max_length:,} tokens",
    "conversation": _TEMPLATES[template],
  }
  console = Console(stderr=True, highlight=False)
  console.print(terminal.pairs(rows))
  console.print()


def dimmed(text: str, file: TextIO) -> str:
  """Dim where the file is a terminal that may have colours."""
  plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
  return text if plain or not file.isatty() else f"\x1b[2m{text}\x1b[22m"


def note(text: str) -> None:
  """Prints a line that is not part of an answer."""
  print(dimmed(terminal.printable(text), sys.stderr), file=sys.stderr, flush=True)


def _lines() -> Iterator[str]:
  """What is asked, line by line."""
  if not sys.stdin.isatty():
    for line in sys.stdin:
      yield line.rstrip("\r\n")
    return
  # A text of several lines that is pasted is one message.
  readline.parse_and_bind("set enable-bracketed-paste on")
  while True:
    try:
      yield input("> ")
    except EOFError:
      print()
      return


def chat(
  *,
  model: str | None,
  checkpoint: str | None,
  prompt: str | None,
  template: str,
  settings: Settings,
  dtype: str,
  tp: int,
  seed: int,
) -> int:
  """Runs a conversation, or answers `prompt`. Returns the exit code.

  Raises:
    InputError: see `load` and `Conversation`; where a person types, `load` alone.
  """
  is_typed = prompt is None and sys.stdin.isatty()
  if prompt is not None and not prompt.strip():
    raise InputError("--prompt is empty; leave it out to talk")
  one_of(template, ("auto", *templates.RENDERERS), key="--template")
  c, params, tokenizer, partition = load(model, checkpoint, dtype=dtype, tp=tp)
  if template == "auto":
    template = "plain" if tokenizer.chat_template is None else "chat"
  interrupts = Interrupts()
  talk = Conversation(
    Streamer(c, params, tokenizer.stop_ids, partition, say=note),
    tokenizer,
    settings,
    template=template,
    seed=seed,
    out=sys.stdout,
    style=lambda text: dimmed(text, sys.stdout),
    say=note,
    stop_asked=lambda: interrupts.asked,
  )
  print_resolved(c, params, partition, origin=model or checkpoint, template=template)
  interrupts.install()
  if prompt is not None:
    with interrupts:
      talk.ask(prompt)
    return 130 if interrupts.asked else 0
  if is_typed:
    note("/help lists the commands, Ctrl-C stops an answer")
  for line in _lines():
    try:
      with interrupts:
        goes_on = talk.take(line)
    except InputError as e:
      if not is_typed:
        raise
      print(f"error: {terminal.printable(str(e))}", file=sys.stderr)
      continue
    if interrupts.asked and not is_typed:
      return 130
    if not goes_on:
      break
  return 0


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise InputError(
        f"{rest[1:]} is not expected; what is asked goes into --prompt='...'"
      )
    if bool(flags.FLAGS.model) == bool(flags.FLAGS.checkpoint):
      raise InputError("one of --model=PATH and --checkpoint=RUN is needed")
  except (flags.Error, InputError) as e:
    refuse(e)
  return rest


def main(argv: Sequence[str]) -> None:
  """Exits with 2 and one line where the input is bad; see the module."""
  del argv
  for stream in (sys.stdin, sys.stdout, sys.stderr):
    stream.reconfigure(encoding="utf-8", errors="replace")
  values = flags.FLAGS
  if not values["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  settings = Settings()
  try:
    for field in dataclasses.fields(Settings):
      if (given := values[field.name].value) is not None:
        settings.change(field.name, _readable(given), key=f"--{field.name}")
    code = chat(
      model=values.model or None,
      checkpoint=values.checkpoint or None,
      prompt=None if values.prompt is None else _readable(values.prompt),
      template=values.template,
      settings=settings,
      dtype=values.dtype,
      tp=values.tp,
      seed=values.seed,
    )
  except InputError as e:
    refuse(e)
  except KeyboardInterrupt:
    print(file=sys.stderr)
    code = 130
  except BrokenPipeError:
    # Nobody reads on; what is left in the buffer must have somewhere to go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 0
  sys.exit(code)


def _readable(argument: str) -> str:
  """A word of the command line; bytes that are no UTF-8 become question marks."""
  return argument.encode("utf-8", "replace").decode("utf-8")


def _define_flags() -> None:
  flags.DEFINE_string("model", None, "A .gguf file, a folder or hf://org/name.")
  flags.DEFINE_string("checkpoint", None, "A run directory, or a part of one.")
  flags.DEFINE_string("prompt", None, "Answers this and ends.")
  flags.DEFINE_string("template", "auto", "chat, plain or r1_zero.")
  flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "Of the parameters."
  )
  flags.DEFINE_integer("tp", 1, "Devices that the model is split over.")
  flags.DEFINE_integer("seed", 0, "Names the draws.")
  said = {command[1:].split(" ")[0]: text for command, text in COMMANDS.items()}
  for field in dataclasses.fields(Settings):
    flags.DEFINE_string(field.name, None, f"As /{field.name}: {said[field.name]}.")


if __name__ == "__main__":
  _define_flags()
  app.run(main, flags_parser=_parse_flags)
