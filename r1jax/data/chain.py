"""`op_chain`: a digit pushed through lettered operations, modulo a small number.

    3 a+4 b*3 c-2 d*7 = ?

Each step is a look-up, the whole is serial: a small network that answers at once has to
compose every operation, one that writes `a+4=7 b*3=1 c-2=9 d*7=3` does one at a time.
A step repeats its letter, so finding the next operand is a look-up as well.

The task is registered with reasoning-gym when this module is imported, as the library's
own tasks are, and is reached by name through the same calls.
"""

import dataclasses
import hashlib
import random
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset

from r1jax.errors import InputError, one_of

NAME = "op_chain"
OPERATIONS: dict[str, Callable[[int, int], int]] = {
  "+": lambda value, operand: value + operand,
  "-": lambda value, operand: value - operand,
  "*": lambda value, operand: value * operand,
}
LABELS = string.ascii_letters
# What may stand before a step of a worked answer, by language.
THEN = {"en": "then", "zh": "再"}
# Shares of all questions. Fixed here rather than in the config: two data sets are
# disjoint only as long as both cut the space at the same places.
SPLITS = {"corpus": 0.45, "train": 0.45, "heldout": 0.1}
MAX_TRIES = 10_000


def split_of(question: str) -> str:
  """The split a question belongs to, by a hash of its text alone."""
  digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
  at = int.from_bytes(digest, "big") / 2**64
  for name, share in SPLITS.items():
    at -= share
    if at < 0.0:
      return name
  return name


@dataclasses.dataclass
class OpChainConfig:
  """Which chains to draw.

  Attributes:
    min_steps, max_steps: number of operations, drawn uniformly, both ends included.
    modulus: every result is taken modulo this; starts are drawn below it.
    operands: operation -> the operands it may have. Operations are equally likely.
      The default multipliers are the units modulo 10, which never forget the value.
    split: only questions of this split (a key of SPLITS), or None for all of them.
    size, seed: number of entries; entry i is a function of (seed + i) alone.
  """

  min_steps: int = 4
  max_steps: int = 4
  modulus: int = 10
  operands: Mapping[str, Sequence[int]] = dataclasses.field(
    default_factory=lambda: {
      "+": tuple(range(1, 10)),
      "-": tuple(range(1, 10)),
      "*": (3, 7, 9),
    }
  )
  split: str | None = None
  size: int = 500
  seed: int | None = None

  def validate(self) -> None:
    """Raises InputError on values that draw nothing."""
    where = "config.data.task_args"
    if not 1 <= self.min_steps <= self.max_steps <= len(LABELS):
      raise InputError(
        f"{where}: min_steps={self.min_steps}, max_steps={self.max_steps}; "
        f"needed: 1 <= min_steps <= max_steps <= {len(LABELS)}"
      )
    if self.modulus < 2:
      raise InputError(f"{where}.modulus={self.modulus}; needed: 2 or more")
    if self.size < 1:
      raise InputError(f"config.data.size={self.size}; needed: 1 or more")
    if self.split is not None:
      one_of(self.split, SPLITS, key=f"{where}.split")
    if not self.operands:
      raise InputError(f"{where}.operands is empty; allowed: {', '.join(OPERATIONS)}")
    for op, values in self.operands.items():
      one_of(op, OPERATIONS, key=f"{where}.operands")
      if not values:
        raise InputError(f"{where}.operands[{op!r}] is empty; give it some numbers")


class OpChainDataset(ProceduralDataset):
  """Entries with `question`, `answer` and metadata `start`, `ops`, `values`."""

  def __init__(self, config: OpChainConfig):
    super().__init__(config=config, seed=config.seed, size=config.size)
    self._steps = []
    weights = []
    for op, operands in config.operands.items():
      for operand in operands:
        self._steps.append((f"{op}{operand}", OPERATIONS[op], operand))
        weights.append(1.0 / len(operands))
    total = 0.0
    self._bounds = [total := total + weight for weight in weights]

  def __getitem__(self, idx: int) -> dict[str, Any]:
    c = self.config
    rng = random.Random(self.seed + idx)
    for _ in range(MAX_TRIES):
      n = rng.randint(c.min_steps, c.max_steps)
      start = rng.randrange(c.modulus)
      steps = rng.choices(self._steps, cum_weights=self._bounds, k=n)
      body = " ".join([a + step[0] for a, step in zip(LABELS, steps, strict=False)])
      question = f"{start} {body} = ?"
      if c.split is None or split_of(question) == c.split:
        break
    else:
      raise InputError(
        f"op_chain: no question of the split {c.split!r} in {MAX_TRIES} draws; "
        "raise config.data.task_args.max_steps"
      )
    value = start
    values = [value := f(value, x) % c.modulus for _, f, x in steps]
    return {
      "question": question,
      "answer": str(value),
      "metadata": {
        "source_dataset": NAME,
        "source_index": idx,
        "start": start,
        "ops": [step[0] for step in steps],
        "values": values,
      },
    }

  def score_answer(self, answer: str | None, entry: Mapping[str, Any]) -> float:
    """1.0 for the answer itself, up to white space around it, else 0.0."""
    return float(isinstance(answer, str) and answer.strip() == entry["answer"])


def trace(entry: Mapping[str, Any], *, languages: Sequence[str] = ()) -> str:
  """The worked steps: `a+4=7 b*3=1 c-2=9 d*7=3`.

  Args:
    languages: before each step stands its word of `THEN` in one of them, drawn anew
      for every step: a thought in two languages, as R1-Zero's were.
  """
  ops, values = entry["metadata"]["ops"], entry["metadata"]["values"]
  rng = random.Random(entry["question"])
  words = []
  for label, op, value in zip(LABELS, ops, values, strict=False):
    if languages:
      words.append(THEN[rng.choice(languages)])
    words.append(f"{label}{op}={value}")
  return " ".join(words)


def corpus_text(
  entry: Mapping[str, Any], mode: str, *, languages: Sequence[str] = ()
) -> str:
  """A corpus's completion: "direct" answers at once, "think" works it out first."""
  one_of(mode, ("direct", "think"), key="mode")
  for language in languages:
    one_of(language, THEN, key="config.examples.languages")
  thought = ""
  if mode == "think":
    thought = f"<think>{trace(entry, languages=languages)}</think>"
  return f"{thought}<answer>{entry['answer']}</answer>"


reasoning_gym.register_dataset(NAME, OpChainDataset, OpChainConfig)
