"""A decoder with a scalar head, as stages hold it: trained, read back, asked.

Letters: B rows, L tokens in a row, N answers.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import optim, prng, sharding
from r1jax.checkpoints import Checkpoints
from r1jax.data import judged, packing, templates
from r1jax.errors import InputError, one_of
from r1jax.models import heads, parameters
from r1jax.objectives.scalar_models import AGGREGATIONS
from r1jax.stages import supervised
from r1jax.stages.run import SETTINGS, Run
from r1jax.stages.trainable import Trainable, matrices
from r1jax.training import marks
from r1jax.training import state as states
from r1jax.training.values import token_values
from r1jax.types import Problem, TokenRows

KIND = "reward_model"
# What of an answer is read.
READS = ("all", "answer")


@dataclasses.dataclass(frozen=True)
class ScalarModel:
  """The trees of a stage that trains one: {"model": ..., "head": ...}.

  The first is all parameters or an adapter (see `Trainable`), the head always whole.
  """

  run: Run
  decoder: Trainable

  @classmethod
  def of(cls, run: Run, config: Mapping[str, Any]) -> "ScalarModel":
    """That of a stage's settings."""
    return cls(run, Trainable.of(run, config))

  @property
  def specs(self) -> dict:
    """Of the trained tree."""
    return {"model": self.decoder.specs, "head": heads.head_specs(self.run.model)}

  def optimizer(
    self, section: Mapping[str, Any]
  ) -> tuple[optax.GradientTransformation, optim.Schedule]:
    """What a stage's `optim` asks for; paths begin with "model/" and "head/"."""
    made = optim.make_optimizer(matrices(self.specs), **section)
    # Patterns of paths are matched here.
    jax.eval_shape(made[0].init, parameters.abstract(self.specs, jnp.float32))
    return made

  def fresh(self, stage: str, init: str) -> dict:
    """The trained tree that a stage begins with, float32."""
    key = prng.at(prng.root(self.run.seed), f"{stage}/head")
    specs = self.specs["head"]
    head = states.init_params(specs, key, self.run.partition, jnp.float32)
    return {"model": self.decoder.fresh(stage, init), "head": head}

  def frozen(self, init: str) -> Any | None:
    """The frozen tree of a stage, in compute dtype."""
    return self.decoder.frozen(init)

  def policy(self, trained: dict, frozen: Any | None) -> dict:
    """What `token_values` computes with."""
    return {
      "model": self.decoder.policy(trained["model"], frozen),
      "head": trained["head"],
    }


class Scorer:
  """Scores of marked tokens of answers, by one program of a fixed shape.

  Args:
    config: settings of a stage of the kind KIND.
    rows, row_length: B and L of a call of the program; as many calls are made as the
      answers need.
  """

  def __init__(
    self, run: Run, config: Mapping[str, Any], *, rows: int, row_length: int
  ):
    self._run = run
    self._scalar = ScalarModel.of(run, config)
    self._rows, self._row_length = rows, row_length
    self._batch = run.partition.sharding("batch")
    self._program = jax.jit(
      self._scores,
      in_shardings=(run.partition.of_specs(self._scalar.specs), None, self._batch),
      out_shardings=run.partition.sharding(),
    )

  def __call__(
    self,
    trained: Any,
    frozen: Any | None,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    at: Sequence[Sequence[int]],
  ) -> list[np.ndarray]:
    """Float32 scores at the marks of each answer.

    Args:
      trained, frozen: see `ScalarModel`.
      prompts, answers: N of each, ids; a prompt that several answers have lies once
        with those that are in one row.
      at: the marked tokens of each answer, numbered in it from 0.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
      by_prompt.setdefault(tuple(prompt), []).append(i)
    sequences = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    lead = [len(prompt) for prompt in prompts]
    pack = packing.pack(
      sequences,
      lead,
      row_length=self._row_length,
      groups=[packing.Group(own, len(p)) for p, own in by_prompt.items()],
    )
    rows = marks.mark(pack, lead, at)
    found = []
    for first in range(0, pack.used, self._rows):
      index = range(first, min(first + self._rows, pack.used))
      batch = supervised.take(rows, index, microbatches=1, size=self._rows)
      batch = sharding.place(jax.tree.map(lambda leaf: leaf[0], batch), self._batch)
      found.append(self._program(trained, frozen, batch))
    scores_BL = np.concatenate(jax.device_get(found)) if found else None
    return [
      scores_BL[row, columns[skip:][list(own)]]
      for row, columns, skip, own in zip(
        pack.row_of, pack.columns, lead, at, strict=True
      )
    ]

  def _scores(self, trained: Any, frozen: Any, rows: TokenRows) -> jax.Array:
    return token_values(
      self._run.model,
      self._scalar.policy(trained, frozen),
      rows,
      partition=self._run.partition,
    ).scores_BL


class Verdicts:
  """A trained scalar model of an earlier stage, asked about answers.

  A "pairwise" model says a score in its own units, which only differences of answers to
  one prompt mean anything of; "pointwise" and "outcome" models the probability that an
  answer is safe or right, "process" models that of each step.

  Args:
    stage: of the kind KIND, finished.
    rows, row_length: see `Scorer`; a row must hold the longest prompt, its answer and
      one token more.
    aggregation: of steps, a name in `AGGREGATIONS`.
  """

  def __init__(
    self,
    run: Run,
    stage: str,
    *,
    rows: int,
    row_length: int,
    aggregation: str = "min",
  ):
    one_of(aggregation, AGGREGATIONS, key="aggregation")
    self._run, self._aggregate = run.of(stage), AGGREGATIONS[aggregation]
    self._config, self._trained, self._frozen = load(self._run, stage)
    self._score = Scorer(self._run, self._config, rows=rows, row_length=row_length)
    self.objective = self._config["objective"]
    # Compiled now: the first step may ask it nothing.
    end = self._run.tokenizer.eos_id
    self._score(self._trained, self._frozen, [[end]], [[end]], [[0]])

  def __call__(
    self, problems: Sequence[Problem], completions: Sequence[Sequence[int]]
  ) -> np.ndarray:
    """Float32 [N] of drawn ids, the stop token included where there is one."""
    if self.objective == "process":
      return self.aggregated(self.steps(problems, completions)[0])
    answers = [self._read(ids) for ids in completions]
    scores = self._at(problems, answers, [[len(ids) - 1] for ids in answers])
    last_N = np.concatenate(scores)
    return last_N if self.objective == "pairwise" else probability(last_N)

  def of_texts(self, problems: Sequence[Problem], texts: Sequence[str]) -> np.ndarray:
    """Float32 [N] of answers that have ended."""
    return self(problems, [self.encode(text) for text in texts])

  def aggregated(self, steps: Sequence[np.ndarray]) -> np.ndarray:
    """One score of the steps of each answer, float32 [N]."""
    return np.asarray([self._aggregate(own) for own in steps], np.float32)

  def steps(
    self, problems: Sequence[Problem], completions: Sequence[Sequence[int]]
  ) -> tuple[list[np.ndarray], list[list[int]]]:
    """(probabilities of the steps of each answer, see `judged.step_ends`, and the token
    that ends each step, numbered in what the model reads).

    An answer without a step, or whose steps no tokens end, is one step.

    Raises:
      InputError: the model is not of steps.
    """
    if self.objective != "process":
      raise InputError(
        f"a model trained with config.objective={self.objective!r} has no scores of "
        "steps; train one with 'process'"
      )
    answers = [self._read(ids) for ids in completions]
    at = []
    for ids in answers:
      text = self._run.tokenizer.decode(ids, skip_special=True)
      ends = judged.step_ends(text)
      found = judged.tokens_at(self._run.tokenizer, ids, text, ends)
      at.append(found or [len(ids) - 1])
    return [probability(own) for own in self._at(problems, answers, at)], at

  def encode(self, text: str) -> list[int]:
    """Ids of an answer that has ended."""
    return [*self._run.tokenizer.encode(text), self._run.tokenizer.eos_id]

  def _read(self, ids: Sequence[int]) -> Sequence[int]:
    return read_part(self._config["reads"], self._run, ids)

  def _at(
    self,
    problems: Sequence[Problem],
    answers: Sequence[Sequence[int]],
    at: Sequence[Sequence[int]],
  ) -> list[np.ndarray]:
    prompts = [
      prompt_ids(self._run, self._config["template"], problem) for problem in problems
    ]
    return self._score(self._trained, self._frozen, prompts, answers, at)


def load(run: Run, stage: str) -> tuple[dict[str, Any], Any, Any | None]:
  """(settings, trained tree with the model in compute dtype, frozen tree).

  Raises:
    InputError: there is no such stage, or it is of another kind.
  """
  made_from = run.folder(stage) / SETTINGS
  if not made_from.exists():
    raise InputError(f"there is no stage {stage!r} in {run.workdir}: run it first")
  config = json.loads(made_from.read_text())
  if config["kind"] != KIND:
    raise InputError(
      f"the stage {stage!r} is of the kind {config['kind']!r}; one of the kind "
      f"{KIND!r} is needed"
    )
  scalar = ScalarModel.of(run, config)
  abstract = parameters.abstract(
    scalar.specs, jnp.float32, run.partition.of_specs(scalar.specs)
  )
  with Checkpoints(run.folder(stage)) as checkpoints:
    restored, _, _ = checkpoints.restore({"train": {"params": abstract}}, partial=True)
  trained = restored["train"]["params"]
  trained = {"model": run.cast(trained["model"]), "head": trained["head"]}
  return config, trained, scalar.frozen(config["init"])


def prompt_ids(run: Run, template: Mapping[str, Any], problem: Problem) -> list[int]:
  """Ids of what was asked.

  Raises:
    InputError: a conversation that the template cannot write, or nothing asked.
  """
  how = {key: value for key, value in template.items() if key != "template"}
  name = template["template"]
  if problem.messages and name != "chat":
    raise InputError(
      f"{problem.id!r} has 'messages', which config.template.template={name!r} cannot "
      "write; set it to 'chat', or give a 'prompt'"
    )
  ids = templates.prompt_ids(name, problem, run.tokenizer, **how)
  if not ids:
    raise InputError(f"the prompt of {problem.id!r} has no tokens")
  return ids


def read_part(reads: str, run: Run, ids: Sequence[int]) -> Sequence[int]:
  """What of an answer's ids is read: all, or those behind the last `</think>`.

  Without that tag it is all of them, and the end token where nothing is left.
  """
  if reads == "answer":
    text = run.tokenizer.decode(ids, skip_special=True)
    thought, tag, _ = text.rpartition(templates.THINK_CLOSE)
    if tag:
      end = len(thought) + len(tag)
      found = judged.tokens_at(run.tokenizer, ids, text, [end])
      ids = ids[found[0] + 1 :]
  return ids if len(ids) else [run.tokenizer.eos_id]


def probability(score: np.ndarray) -> np.ndarray:
  """sigmoid(score), without overflow."""
  return 0.5 * (1 + np.tanh(0.5 * np.asarray(score)))
