"""What a step of reinforcement learning trains on: problems asked, drawn and judged.

A rollout may ask more prompts than a step needs and end when enough of them have all
their answers; the others go on in the next rollout, with the tokens and log-probs that
they have (partial rollouts, as of Kimi k1.5, arXiv 2501.12599). With a lag of one, the
next rollout is started before this one is judged and trained on, so that the devices
draw while the host judges. Both draw some tokens with weights older than those that the
step begins with, for which `config.loss.importance_cap` corrects.

Letters: Q prompts of a rollout, G samples, B = Q * G rows, T completion slots.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from r1jax import limits, prng
from r1jax.data import stream
from r1jax.errors import InputError
from r1jax.rewards.pool import RewardPool
from r1jax.sampling import decode
from r1jax.stages import rollouts
from r1jax.stages.rollouts import Judging, Sampler
from r1jax.stages.run import Run
from r1jax.types import Problem, Rollout


@struct.dataclass
class Drawn:
  """Rows between two steps, as a checkpoint holds them; numpy.

  Attributes:
    place_Q: int32, place of each prompt in the order of all problems, -1 for none.
    num_asked: int32 scalar, problems taken from that order so far.
    rows: what has been drawn.
    counts, weights_checksum: of the rollout, see `types.Rollout`.
  """

  place_Q: np.ndarray
  num_asked: np.ndarray
  rows: decode.Begun
  counts: dict[str, np.ndarray]
  weights_checksum: np.ndarray


@dataclasses.dataclass(frozen=True)
class Collected:
  """Complete groups, judged.

  Attributes:
    problems, prompts: Q of them, the prompts as ids.
    rollout: their rows; its counts are of all rows that were drawn beside them.
    texts: of each row.
    parts_QG: rewards by part.
    judged: counts of the judging.
    num_asked: problems taken from the order so far.
    num_left: groups that go on in the next rollout.
    work: what the rollout's speed is computed from; None where the host does other
      things meanwhile.
  """

  problems: Sequence[Problem]
  prompts: Sequence[Sequence[int]]
  rollout: Rollout
  texts: Sequence[str]
  parts_QG: Mapping[str, np.ndarray]
  judged: Mapping[str, float]
  num_asked: int
  num_left: int
  work: limits.Work | None


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where a stage's settings do not go together."""
  rollout, cap = config["rollout"], config["loss"]["importance_cap"]
  oversample, lag = rollout["oversample"], rollout["lag"]
  if oversample < 0 or lag not in (0, 1):
    raise InputError(
      f"config.rollout.oversample={oversample} and lag={lag}: prompts, 0 or more, and "
      "0 or 1"
    )
  if not (oversample or lag):
    return
  if not cap > 0:
    raise InputError(
      f"config.loss.importance_cap={cap}: with config.rollout.oversample={oversample} "
      f"and lag={lag} some tokens are of older weights; set it, to 2.0 for instance"
    )
  if config["moe"]["replay"]:
    raise InputError(
      "config.moe.replay does not go with config.rollout.oversample or lag, whose rows "
      "do not keep the experts that they went through; switch one of them off"
    )


class Collector:
  """Makes `Collected` for one step after another.

  Args:
    order: of problems.
    prompts: ids of each problem.
    config: `rollout` of a stage.
  """

  def __init__(
    self,
    run: Run,
    name: str,
    sampler: Sampler,
    pool: RewardPool,
    order: stream.Stream[Problem],
    prompts: Mapping[str, list[int]],
    config: Mapping[str, Any],
    *,
    num_steps: int,
  ):
    self._run = run
    self._key = prng.root(run.seed), f"{name}/rollout"
    self._sampler = sampler
    self._pool = pool
    self._order = order
    self._prompts = prompts
    self._num_steps = num_steps
    self._wanted = config["prompts"]
    self._room = config["prompts"] + config["oversample"]
    self._samples = config["group_size"]
    self._max_tokens = config["max_tokens"]
    self._cache = config["cache"]
    self._is_partial = config["oversample"] > 0
    self._lags = config["lag"] > 0
    self._left = self.nothing()
    # With a lag, from the first step on: what was asked ahead, on the devices or here.
    self._ahead: tuple[Drawn, Rollout | None] | None = None

  def nothing(self) -> Drawn | None:
    """What `held` gives before the first step."""
    if not (self._is_partial or self._lags):
      return None
    num_rows = self._room * self._samples
    shape = (num_rows, self._max_tokens)
    key_data = jax.random.key_data(self._key[0])
    rows = decode.Begun(
      tokens_BT=np.zeros(shape, np.int32),
      logp_BT=np.zeros(shape, np.float32),
      plain_logp_BT=None,
      length_B=np.zeros(num_rows, np.int32),
      stopped_B=np.zeros(num_rows, bool),
      done_B=np.zeros(num_rows, bool),
      key_BX=np.zeros((num_rows, *key_data.shape), key_data.dtype),
      has_key_B=np.zeros(num_rows, bool),
    )
    zero = np.zeros((), np.int32)
    return Drawn(
      place_Q=np.full(self._room, -1, np.int32),
      num_asked=zero,
      rows=rows,
      counts=dict.fromkeys(decode.COUNTS, zero),
      weights_checksum=np.zeros((), np.uint32),
    )

  def held(self) -> Drawn | None:
    """What a checkpoint must hold for the next step to be the same; None for nothing.

    Waits for a rollout that is on its way.
    """
    if self._ahead is None:
      return self._left
    asked, out = self._ahead
    if out is not None:
      rollout = self._sampler.fetch(out, self._room)
      asked = asked.replace(
        rows=_rows_of(rollout, np.arange(self._room)),
        counts=rollout.counts,
        weights_checksum=rollout.weights_checksum,
      )
      self._ahead = asked, None
    return asked

  def take_up(self, held: Drawn) -> None:
    """Goes on from what a checkpoint holds."""
    held = jax.tree.map(np.asarray, held)
    if self._lags:
      self._ahead = held, None
    else:
      self._left = held

  def __call__(
    self, step: int, weights: Callable[[], Any], settle: Callable[[], None]
  ) -> Collected:
    """The rows of a step.

    Args:
      weights: makes what is drawn with.
      settle: is called once the devices have something to do.
    """
    if self._lags:
      return self._drawn_before(step, weights(), settle)
    asked = self._ask(step, self._left)
    problems = self._problems(asked)
    judging = Judging(self._pool, problems, self._samples)
    drawn_with = weights()
    settle()
    rollout = self._sampler(
      drawn_with,
      *self._of(problems, step),
      **self._partial(asked),
      on_complete=lambda q, ids: judging.add(q, self._sampler.texts(ids)),
    )
    work = limits.rollout_work(
      self._run.machine,
      self._run.model,
      drawn_with,
      [self._prompts[problem.id] for problem in problems],
      rollout,
      begun_B=asked.rows.length_B if self._is_partial else None,
      cache=self._cache,
    )
    return self._collected(asked, rollout, judging, work)

  def _drawn_before(
    self, step: int, drawn_with: Any, settle: Callable[[], None]
  ) -> Collected:
    """The rows that were asked ahead; the next ones are started before they are judged.

    The first step's are drawn now.
    """
    if self._ahead is None:
      self._ahead = self._dispatched(step, self._left, drawn_with)
    settle()
    asked = self.held()
    rollout = _rollout_of(asked, self._room)
    self._left, self._ahead = self._leftover(asked, rollout), None
    if step < self._num_steps:
      self._ahead = self._dispatched(step + 1, self._left, drawn_with)
    judging = Judging(self._pool, self._problems(asked), self._samples)
    for q in _complete(rollout)[: self._wanted]:
      own = rollouts.cut(rollout, [q])
      judging.add(int(q), self._sampler.texts(self._sampler.completions(own)))
    return self._collected(asked, rollout, judging, None)

  def _dispatched(
    self, step: int, left: Drawn, drawn_with: Any
  ) -> tuple[Drawn, Rollout]:
    asked = self._ask(step, left)
    out = self._sampler.dispatch(
      drawn_with, *self._of(self._problems(asked), step), **self._partial(asked)
    )
    return asked, out

  def _ask(self, step: int, left: Drawn | None) -> Drawn:
    """The groups that are left, and behind them new ones."""
    if left is None:
      start = (step - 1) * self._room
      place_Q, num_asked = np.arange(start, start + self._room), start + self._room
      return Drawn(place_Q, np.asarray(num_asked), None, {}, None)
    num_left = int((left.place_Q >= 0).sum())
    num_asked = int(left.num_asked) + self._room - num_left
    place_Q = left.place_Q.copy()
    place_Q[num_left:] = np.arange(int(left.num_asked), num_asked)
    return left.replace(place_Q=place_Q, num_asked=np.asarray(num_asked, np.int32))

  def _problems(self, asked: Drawn) -> list[Problem]:
    return [self._order.item(int(place)) for place in asked.place_Q]

  def _of(self, problems: Sequence[Problem], step: int) -> tuple:
    """Prompts, problems and key of a rollout."""
    root, purpose = self._key
    prompts = [self._prompts[problem.id] for problem in problems]
    return prompts, problems, prng.at(root, purpose, step)

  def _partial(self, asked: Drawn) -> dict[str, Any]:
    if not self._is_partial:
      return {}
    return {"begun": asked.rows, "wanted": self._wanted}

  def _leftover(self, asked: Drawn, rollout: Rollout) -> Drawn | None:
    """What goes on in the next rollout: all groups but the first complete ones."""
    nothing = self.nothing()
    if nothing is None:
      return None
    chosen = set(_complete(rollout)[: self._wanted].tolist())
    left = np.asarray([q for q in range(self._room) if q not in chosen], int)
    place_Q = nothing.place_Q.copy()
    place_Q[: len(left)] = asked.place_Q[left]

    def laid(empty: np.ndarray, own: np.ndarray) -> np.ndarray:
      out = empty.copy()
      out[: len(own)] = own
      return out

    return nothing.replace(
      place_Q=place_Q,
      num_asked=asked.num_asked,
      rows=jax.tree.map(laid, nothing.rows, _rows_of(rollout, left)),
    )

  def _collected(
    self,
    asked: Drawn,
    rollout: Rollout,
    judging: Judging,
    work: limits.Work | None,
  ) -> Collected:
    chosen = _complete(rollout)[: self._wanted]
    if not self._lags:
      self._left = self._leftover(asked, rollout)
    with self._run.clock("reward"):
      parts_QG, judged = judging.result()
    every = self._problems(asked)
    problems = [every[q] for q in chosen]
    own = rollouts.cut(rollout, chosen)
    return Collected(
      problems=problems,
      prompts=[self._prompts[problem.id] for problem in problems],
      rollout=own,
      texts=self._sampler.texts(self._sampler.completions(own)),
      parts_QG={name: part_QG[chosen] for name, part_QG in parts_QG.items()},
      judged=judged,
      num_asked=int(asked.num_asked),
      num_left=self._room - len(chosen),
      work=work,
    )


def _complete(rollout: Rollout) -> np.ndarray:
  """Numbers of the prompts with all samples."""
  done_QG = np.asarray(rollout.done_B).reshape(rollout.num_prompts, -1)
  return np.flatnonzero(done_QG.all(axis=1))


def _rows_of(rollout: Rollout, prompts: np.ndarray) -> decode.Begun:
  """The rows of some prompts, to go on with."""
  own = rollouts.cut(rollout, prompts)
  fields = ("tokens_BT", "logp_BT", "length_B", "stopped_B", "done_B", "key_BX")
  return decode.Begun(
    **{name: np.asarray(getattr(own, name)) for name in fields},
    plain_logp_BT=None,
    has_key_B=np.ones(len(own.length_B), bool),
  )


def _rollout_of(drawn: Drawn, num_prompts: int) -> Rollout:
  """The rollout that `Collector.held` made rows of."""
  rows = drawn.rows
  return Rollout(
    tokens_BT=rows.tokens_BT,
    logp_BT=rows.logp_BT,
    length_B=rows.length_B,
    stopped_B=rows.stopped_B,
    done_B=rows.done_B,
    key_BX=rows.key_BX,
    counts=drawn.counts,
    weights_checksum=drawn.weights_checksum,
    num_prompts=num_prompts,
  )
