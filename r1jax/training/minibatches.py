"""From a rollout to what each update sees: packed rows of fixed shapes.

Letters: M microbatches that there is room for, B rows in a microbatch, L row length,
Z layers with experts, K experts of a token.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from r1jax.data import packing
from r1jax.errors import InputError
from r1jax.objectives import reduce
from r1jax.types import Experience


@dataclasses.dataclass
class Minibatch:
  """What one update sees.

  Attributes:
    experience: leaves [M, B, L], numpy.
    count: microbatches that hold anything.
    denominator: what the sum of the loss is divided by, over all microbatches.
    waste: share of padding in rows that hold anything.
    answers: numbers of those that lie in it.
    packing: where they lie, in rows of all microbatches.
    skip: tokens of each one's prompt.
  """

  experience: Experience
  count: int
  denominator: float
  waste: float
  answers: np.ndarray
  packing: packing.Packing
  skip: Sequence[int]

  def laid(self, values: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [M, B, L] from a number for each token of each answer of the rollout."""
    own = [np.asarray(values[answer], np.float32) for answer in self.answers]
    x_BL = self.packing.spread(own, skip=self.skip)
    return x_BL.reshape(self.experience.rows.tokens_BL.shape)

  def taken(self, x_MBL: np.ndarray) -> dict[int, np.ndarray]:
    """{answer: its tokens' numbers}, what `laid` has laid."""
    x_BL = x_MBL.reshape(-1, x_MBL.shape[-1])
    places = zip(
      self.answers, self.packing.row_of, self.packing.columns, self.skip, strict=True
    )
    return {
      int(answer): x_BL[row, columns[lead:]] for answer, row, columns, lead in places
    }


def room(
  answers: int, *, parts: int, rows: int, row_length: int, longest: int, shards: int
) -> int:
  """Microbatches that a mini-batch may need, whatever the lengths of its answers.

  Args:
    answers: of a whole rollout; the others are those of `minibatches`.

  Raises:
    InputError: sizes that do not fit each other.
  """
  if parts < 1 or answers % parts:
    raise InputError(
      f"config.training.minibatches={parts} does not divide the {answers} answers "
      "of a rollout (config.rollout.prompts times config.rollout.group_size)"
    )
  if row_length < longest:
    raise InputError(
      f"config.training.row_length={row_length} is shorter than a prompt and its "
      f"answer may be: config.rollout.prompt_length + max_tokens = {longest}; raise it"
    )
  if rows < 1 or rows % shards:
    raise InputError(
      f"config.training.rows={rows} does not split over {shards} devices; a multiple "
      f"of {shards} is needed"
    )
  # Whatever the lengths, every row but one holds this many at least.
  fits = row_length // longest
  most = -(-answers // parts // fits)
  return -(-most // rows)


def deal(order: np.ndarray, prompt_of: np.ndarray, parts: int) -> np.ndarray:
  """The answers of each mini-batch, [parts, answers of a part].

  Prompts take turns as `order` has the first answer of each, and all answers of a
  prompt come in its turn, so that they share it; where a part ends among them they go
  to two. Departs: R1 deals each answer by itself (arXiv 2501.12948).
  """
  _, first, number = np.unique(prompt_of[order], return_index=True, return_inverse=True)
  return order[np.argsort(first[number], kind="stable")].reshape(parts, -1)


def minibatches(
  *,
  order: np.ndarray,
  prompts: Sequence[Sequence[int]],
  prompt_of: np.ndarray,
  completions: Sequence[Sequence[int]],
  tokens: Mapping[str, Sequence[np.ndarray]],
  trained: np.ndarray,
  parts: int,
  rows: int,
  row_length: int,
  longest: int,
  shards: int,
  reduction: str,
  length_constant: float | None,
  experts: Sequence[np.ndarray] | None = None,
) -> list[Minibatch]:
  """Packs a rollout into `parts` mini-batches of equally many answers, see `deal`.

  A prompt lies once in each row that holds answers to it. There is room for answers of
  full length, so that the shapes never change.

  Args:
    order: permutation of the answers; all other sequences but `prompts` have an entry
      for each answer.
    prompt_of: the number of each answer's prompt.
    tokens: {field of `Experience`: for each answer a number for each token}; those not
      named are None.
    trained: 0 on answers that no token may be trained on.
    rows, row_length: B and L.
    longest: tokens that a prompt and its completion may have together.
    shards: devices that the rows of a microbatch are split over.
    reduction, length_constant: see `reduce.token_weights`.
    experts: int32 [tokens, Z, K] of each answer with its prompt, or None.

  Raises:
    InputError: what `room` raises.
  """
  places = room(
    len(order),
    parts=parts,
    rows=rows,
    row_length=row_length,
    longest=longest,
    shards=shards,
  )
  made = []
  for own in deal(order, prompt_of, parts):
    asked = [prompts[prompt] for prompt in prompt_of[own]]
    sequences = [[*ids, *completions[row]] for row, ids in zip(own, asked, strict=True)]
    skip = [len(ids) for ids in asked]
    first = [
      lead if trained[row] else len(sequence)
      for row, lead, sequence in zip(own, skip, sequences, strict=True)
    ]
    groups = [
      packing.Group(np.flatnonzero(prompt_of[own] == prompt), len(prompts[prompt]))
      for prompt in dict.fromkeys(prompt_of[own])
    ]
    pack = packing.pack(
      sequences, first, row_length=row_length, num_rows=places * rows, groups=groups
    )
    experience = Experience(pack.rows, advantage_BL=None, logp_behaviour_BL=None)
    if experts is not None:
      start = [0] * len(own)
      went = pack.spread([experts[row] for row in own], skip=start, fill=-1)
      experience = experience.replace(rows=experience.rows.replace(experts_BLZK=went))
    _, denominator = reduce.token_weights(
      pack.rows.mask_BL,
      pack.rows.length_BL,
      reduction=reduction,
      length_constant=length_constant,
    )
    batch = Minibatch(
      jax.tree.map(
        lambda leaf: leaf.reshape(places, rows, *leaf.shape[1:]), experience
      ),
      count=-(-pack.used // rows),
      denominator=float(denominator),
      waste=pack.waste,
      answers=own,
      packing=pack,
      skip=skip,
    )
    batch.experience = batch.experience.replace(
      **{name: batch.laid(values) for name, values in tokens.items()}
    )
    made.append(batch)
  return made
