"""What a step of reinforcement learning trains on: problems asked, drawn and judged.

A rollout may ask more prompts than a step needs and end when enough of them have all
their answers; the others go on in the next rollout, with the tokens and log-probs that
they have (partial rollouts, as of Kimi k1.5, arXiv 2501.12599). With a lag of one, the
next rollout is started before this one is judged and trained on, so that the devices
draw while the host judges. Both draw some tokens with weights older than those that the
step begins with, for which `config.loss.correction` corrects.

A step may leave groups out that have no signal, and draw again until there are enough
(dynamic sampling, DAPO, arXiv 2503.14476). Rollouts are numbered through, and what they
draw is a function of their number.

Letters: Q prompts of a rollout, G samples, B = Q * G rows, T completion slots.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import struct

from r1jax import limits, prng
from r1jax.errors import InputError, one_of
from r1jax.models import quantized
from r1jax.objectives import filters
from r1jax.rewards.pool import RewardPool
from r1jax.sampling import loop_state
from r1jax.stages import rollouts
from r1jax.stages.asking import Asking
from r1jax.stages.rollouts import Judging, Sampler
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.types import Problem, Rollout

CONTROLS = ("temperature", "top_k", "top_p", "min_p")


def sampler_of(run: Run, config: Mapping[str, Any], **changes: Any) -> Sampler:
  """What a stage draws with.

  Args:
    config: all settings of the stage.
    changes: arguments of `Sampler` that differ from the settings.
  """
  rollout = config["rollout"]
  one_of(rollout["weights"], quantized.WEIGHTS, key="config.rollout.weights")
  one_of(rollout["cache"], quantized.CACHES, key="config.rollout.cache")
  names = ("prompt_length", "max_tokens", "slots", "stop_strings")
  names += ("draft", "draft_tokens", "weights", "cache")
  return Sampler(
    run,
    Trainable.of(run, config),
    **{
      **{name: rollout[name] for name in names},
      "prompts": rollout["prompts"] + rollout["oversample"],
      "samples": rollout["group_size"],
      "controls": {key: rollout[key] for key in CONTROLS},
      "record_experts": config["moe"]["replay"],
      **changes,
    },
  )


@struct.dataclass
class Asked:
  """How much was asked so far, as a checkpoint holds it: int32 scalars.

  Attributes:
    problems: taken from the order of problems.
    rollouts: drawn, or on their way.
  """

  problems: np.ndarray
  rollouts: np.ndarray


@struct.dataclass
class Drawn:
  """Rows between two steps, as a checkpoint holds them; numpy.

  Attributes:
    place_Q: int32, place of each prompt among all problems, -1 for none.
    since_Q: int32, number of the rollout that its oldest tokens are of.
    rows: what has been drawn.
    counts, weights_checksum: of the rollout, see `types.Rollout`.
  """

  place_Q: np.ndarray
  since_Q: np.ndarray
  rows: loop_state.Begun
  counts: dict[str, np.ndarray]
  weights_checksum: np.ndarray


@dataclasses.dataclass(frozen=True)
class Collected:
  """Complete groups, judged; those to train on first.

  Attributes:
    problems, prompts: of each group, the prompts as ids.
    rollout: their rows; its counts are of all rows that were drawn beside them.
    texts: of each row.
    parts_QG: rewards by part.
    num_trained: groups at the front that are trained on. Where they are fewer than the
      step wants, others stand behind them to fill it up.
    seen: metrics of asking, drawing and judging.
    num_asked: problems asked so far, those of rollouts on their way included.
    work: what the rollout's speed is computed from; None where the host does other
      things meanwhile.
  """

  problems: Sequence[Problem]
  prompts: Sequence[Sequence[int]]
  rollout: Rollout
  texts: Sequence[str]
  parts_QG: Mapping[str, np.ndarray]
  num_trained: int
  seen: Mapping[str, float]
  num_asked: int
  work: limits.Work | None


@dataclasses.dataclass(frozen=True)
class _Round:
  """One rollout, judged.

  Attributes:
    problems: of all its prompts.
    groups: numbers of the complete ones that a step may take.
    age: rollouts since the oldest of them was begun.
    restarted: groups that are too old, and begin anew in the next rollout.
    keep_Q: whether the filter keeps each of `groups`.
  """

  problems: Sequence[Problem]
  rollout: Rollout
  groups: np.ndarray
  age: int
  restarted: int
  keep_Q: np.ndarray
  parts_QG: Mapping[str, np.ndarray]
  judged: Mapping[str, float]
  work: limits.Work | None


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where a stage's settings do not go together."""
  rollout, correction = config["rollout"], config["loss"]["correction"]
  oversample, lag = rollout["oversample"], rollout["lag"]
  one_of(config["filter"]["kind"], filters.FILTERS, key="config.filter.kind")
  if oversample < 0 or lag not in (0, 1):
    raise InputError(
      f"config.rollout.oversample={oversample} and lag={lag}: prompts, 0 or more, and "
      "0 or 1"
    )
  if rollout["max_age"] < 0 or (rollout["max_age"] and not oversample):
    raise InputError(
      f"config.rollout.max_age={rollout['max_age']}: must be 0 (no bound) or more, and "
      "0 where config.rollout.oversample=0, since no group goes on then"
    )
  if not (oversample or lag):
    return
  if correction == "none":
    raise InputError(
      f"config.loss.correction={correction!r}: with config.rollout.oversample="
      f"{oversample} and lag={lag} some tokens are of older weights; set it, to "
      "'truncate' for instance"
    )
  if config["moe"]["replay"]:
    raise InputError(
      "config.moe.replay does not go with config.rollout.oversample or lag, whose rows "
      "do not keep the experts that they went through; switch one of them off"
    )


class Collector:
  """Makes `Collected` for one step after another.

  Args:
    asking: says which problems come next.
    prompts: ids of each problem.
    config: all settings of the stage.
  """

  def __init__(
    self,
    run: Run,
    name: str,
    sampler: Sampler,
    pool: RewardPool,
    asking: Asking,
    prompts: Mapping[str, list[int]],
    config: Mapping[str, Any],
  ):
    rollout = config["rollout"]
    self._run = run
    self._key = prng.root(run.seed), f"{name}/rollout"
    self._sampler = sampler
    self._pool = pool
    self._asking = asking
    self._prompts = prompts
    self._num_steps = config["num_steps"]
    self._wanted = rollout["prompts"]
    self._room = rollout["prompts"] + rollout["oversample"]
    self._samples = rollout["group_size"]
    self._max_tokens = rollout["max_tokens"]
    self._cache = rollout["cache"]
    self._max_age = rollout["max_age"]
    self._is_partial = rollout["oversample"] > 0
    self._lags = rollout["lag"] > 0
    self._filters = config["filter"]["kind"] != "none"
    self._keep = filters.FILTERS[config["filter"]["kind"]]
    self._max_rounds = config["filter"]["max_rounds"] if self._filters else 1
    self._asked = Asked(np.zeros((), np.int32), np.zeros((), np.int32))
    self._left = self._nothing_left()
    # With a lag, from the first step on: what was asked ahead, on the devices or here.
    self._ahead: tuple[Drawn, Rollout | None] | None = None

  def held(self) -> dict[str, Any]:
    """What a checkpoint must hold for the next step to be the same.

    Waits for a rollout that is on its way. Before the first step it has the shapes.
    """
    held: dict[str, Any] = {}
    if self._left is not None or self._filters:
      held["asked"] = self._asked
    if (rates := self._asking.held()) is not None:
      held["rates"] = rates
    if self._left is not None:
      held["drawn"] = self._left if self._ahead is None else self._fetched()
    return held

  def take_up(self, held: Mapping[str, Any], step: int) -> None:
    """Goes on with a step, from what a checkpoint of the one before holds."""
    held = jax.tree.map(np.asarray, dict(held))
    if "asked" in held:
      self._asked = held["asked"]
    else:
      past = np.asarray(step - 1, np.int32)
      self._asked = Asked(past * np.int32(self._room), past)
    if "rates" in held:
      self._asking.take_up(held["rates"])
    if "drawn" in held and self._lags:
      self._ahead = held["drawn"], None
    elif "drawn" in held:
      self._left = held["drawn"]

  def __call__(
    self, step: int, weights: Callable[[], Any], settle: Callable[[], None]
  ) -> Collected:
    """The rows of a step.

    Args:
      weights: makes what is drawn with.
      settle: is called once the devices have something to do.
    """
    drawn_with = weights()
    rounds: list[_Round] = []
    num_kept = 0
    while not rounds or (num_kept < self._wanted and len(rounds) < self._max_rounds):
      if self._lags:
        rounds.append(self._drawn_before(drawn_with, settle, step < self._num_steps))
      else:
        settle()
        rounds.append(self._drawn_now(drawn_with))
      num_kept += int(rounds[-1].keep_Q.sum())
    if num_kept < self._wanted:
      logging.log_first_n(
        logging.WARNING,
        "step %d trains on %d groups instead of %d: no more had a signal in %d "
        "rollouts; raise config.filter.max_rounds, or look at the problems",
        3,
        step,
        num_kept,
        self._wanted,
        len(rounds),
      )
    return self._collected(rounds)

  def _drawn_now(self, drawn_with: Any) -> _Round:
    asked, number = self._ask()
    problems = self._problems(asked)
    judging = Judging(self._pool, problems, self._samples)
    rollout = self._sampler(
      drawn_with,
      *self._of(problems, number),
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
    self._left, restarted = self._leftover(asked, rollout, number)
    return self._judged(asked, rollout, judging, work, number, restarted)

  def _drawn_before(
    self, drawn_with: Any, settle: Callable[[], None], more: bool
  ) -> _Round:
    """The rows that were asked ahead; the next ones are started before they are judged.

    Where none were asked ahead they are drawn now.

    Args:
      more: whether there is a next step.
    """
    if self._ahead is None:
      self._ahead = self._dispatched(drawn_with)
    settle()
    asked = self._fetched()
    rollout, number = _rollout_of(asked, self._room), int(self._asked.rollouts)
    self._ahead = None
    self._left, restarted = self._leftover(asked, rollout, number)
    if more:
      self._ahead = self._dispatched(drawn_with)
    judging = Judging(self._pool, self._problems(asked), self._samples)
    for q in _complete(rollout)[: self._wanted]:
      own = rollouts.cut(rollout, [q])
      judging.add(int(q), self._sampler.texts(self._sampler.completions(own)))
    return self._judged(asked, rollout, judging, None, number, restarted)

  def _dispatched(self, drawn_with: Any) -> tuple[Drawn, Rollout]:
    asked, number = self._ask()
    out = self._sampler.dispatch(
      drawn_with, *self._of(self._problems(asked), number), **self._partial(asked)
    )
    return asked, out

  def _fetched(self) -> Drawn:
    """What was asked ahead, once it is drawn."""
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

  def _ask(self) -> tuple[Drawn, int]:
    """The groups that are left and behind them new ones; the number of the rollout."""
    asked = self._left
    if asked is None:
      nobody_Q = np.full(self._room, -1, np.int32)
      asked = Drawn(nobody_Q, nobody_Q, None, {}, None)
    num_left = int((asked.place_Q >= 0).sum())
    number, before = int(self._asked.rollouts) + 1, int(self._asked.problems)
    place_Q, since_Q = asked.place_Q.copy(), asked.since_Q.copy()
    since_Q[since_Q < 0] = number
    place_Q[num_left:] = self._asking.places(
      self._room - num_left, num_asked=before, rollout=number
    )
    self._asked = Asked(
      np.asarray(before + self._room - num_left, np.int32), np.asarray(number, np.int32)
    )
    return asked.replace(place_Q=place_Q, since_Q=since_Q), number

  def _problems(self, asked: Drawn) -> list[Problem]:
    return [self._asking.problem(int(place)) for place in asked.place_Q]

  def _of(self, problems: Sequence[Problem], number: int) -> tuple:
    """Prompts, problems and key of a rollout."""
    root, purpose = self._key
    prompts = [self._prompts[problem.id] for problem in problems]
    return prompts, problems, prng.at(root, purpose, number)

  def _partial(self, asked: Drawn) -> dict[str, Any]:
    if not self._is_partial:
      return {}
    return {"begun": asked.rows, "wanted": self._wanted}

  def _nothing_left(self) -> Drawn | None:
    """Room for rows between two steps; None where there never are any."""
    if not (self._is_partial or self._lags):
      return None
    num_rows = self._room * self._samples
    shape = (num_rows, self._max_tokens)
    key_data = jax.random.key_data(self._key[0])
    rows = loop_state.Begun(
      tokens_BT=np.zeros(shape, np.int32),
      logp_BT=np.zeros(shape, np.float32),
      plain_logp_BT=None,
      length_B=np.zeros(num_rows, np.int32),
      stopped_B=np.zeros(num_rows, bool),
      done_B=np.zeros(num_rows, bool),
      key_BX=np.zeros((num_rows, *key_data.shape), key_data.dtype),
      has_key_B=np.zeros(num_rows, bool),
    )
    return Drawn(
      place_Q=np.full(self._room, -1, np.int32),
      since_Q=np.full(self._room, -1, np.int32),
      rows=rows,
      counts=dict.fromkeys(loop_state.COUNTS, np.zeros((), np.int32)),
      weights_checksum=np.zeros((), np.uint32),
    )

  def _leftover(
    self, asked: Drawn, rollout: Rollout, number: int
  ) -> tuple[Drawn | None, int]:
    """(what goes on in the next rollout, how many groups of it begin anew).

    These are all groups but the first complete ones; those that would be older than
    `config.rollout.max_age` lose what they have drawn.
    """
    nothing = self._nothing_left()
    if nothing is None:
      return None, 0
    chosen = set(_complete(rollout)[: self._wanted].tolist())
    left = np.asarray([q for q in range(self._room) if q not in chosen], int)
    place_Q, since_Q = nothing.place_Q.copy(), nothing.since_Q.copy()
    place_Q[: len(left)] = asked.place_Q[left]
    since_Q[: len(left)] = asked.since_Q[left]

    def laid(empty: np.ndarray, own: np.ndarray) -> np.ndarray:
      out = empty.copy()
      out[: len(own)] = own
      return out

    rows = jax.tree.map(laid, nothing.rows, _rows_of(rollout, left))
    is_old_Q = np.zeros(self._room, bool)
    if self._max_age:
      is_old_Q = (since_Q >= 0) & (number + 1 - since_Q > self._max_age)
      since_Q[is_old_Q] = -1
      is_old_B = np.repeat(is_old_Q, self._samples)
      rows = jax.tree.map(
        lambda own, empty: np.where(
          is_old_B.reshape(-1, *[1] * (own.ndim - 1)), empty, own
        ),
        rows,
        nothing.rows,
      )
    held = nothing.replace(place_Q=place_Q, since_Q=since_Q, rows=rows)
    return held, int(is_old_Q.sum())

  def _judged(
    self,
    asked: Drawn,
    rollout: Rollout,
    judging: Judging,
    work: limits.Work | None,
    number: int,
    restarted: int,
  ) -> _Round:
    groups = _complete(rollout)[: self._wanted]
    with self._run.clock("reward"):
      parts_QG, judged = judging.result()
    correct_QG = parts_QG["accuracy"][groups]
    self._asking.judged(asked.place_Q[groups], correct_QG)
    return _Round(
      problems=self._problems(asked),
      rollout=rollout,
      groups=groups,
      age=int(np.max(number - asked.since_Q[groups], initial=0)),
      restarted=restarted,
      keep_Q=self._keep(correct_QG),
      parts_QG=parts_QG,
      judged=judged,
      work=work,
    )

  def _collected(self, rounds: Sequence[_Round]) -> Collected:
    """All groups, those that the filter keeps first."""
    pieces = [(one, one.groups[one.keep_Q]) for one in rounds]
    num_kept = sum(len(groups) for _, groups in pieces)
    pieces += [(one, one.groups[~one.keep_Q]) for one in rounds]
    pieces = [(one, groups) for one, groups in pieces if len(groups)]
    problems = [one.problems[q] for one, groups in pieces for q in groups]
    rollout = _joined([rollouts.cut(one.rollout, groups) for one, groups in pieces])
    rollout = rollout.replace(
      counts={
        name: sum(int(one.rollout.counts[name]) for one in rounds)
        for name in loop_state.COUNTS
      }
    )
    seen = {
      f"verifier/{what}": sum(one.judged[what] for one in rounds)
      for what in ("timeouts", "crashes", "errors")
    } | self._pool.seen()
    if self._left is not None:
      seen["rollout/groups_left"] = self._room - len(rounds[-1].groups)
      seen["rollout/age_max"] = max(one.age for one in rounds)
      seen["rollout/restarted"] = sum(one.restarted for one in rounds)
    if self._filters:
      seen["filter/rounds"] = len(rounds)
      seen["filter/asked"] = len(problems)
      seen["filter/dropped"] = len(problems) - num_kept
      seen["filter/missing"] = max(self._wanted - num_kept, 0)
      seen["filter/drawn_tokens"] = int(rollout.length_B.sum())
    work = None
    if not self._lags:
      work = limits.Work(
        sum(one.work.tokens for one in rounds), sum(one.work.least_s for one in rounds)
      )
    return Collected(
      problems=problems,
      prompts=[self._prompts[problem.id] for problem in problems],
      rollout=rollout,
      texts=self._sampler.texts(self._sampler.completions(rollout)),
      parts_QG={
        name: np.concatenate([one.parts_QG[name][groups] for one, groups in pieces])
        for name in self._pool.names
      },
      num_trained=min(num_kept, self._wanted),
      seen=seen,
      num_asked=int(self._asked.problems),
      work=work,
    )


def _complete(rollout: Rollout) -> np.ndarray:
  """Numbers of the prompts with all samples."""
  done_QG = np.asarray(rollout.done_B).reshape(rollout.num_prompts, -1)
  return np.flatnonzero(done_QG.all(axis=1))


def _joined(parts: Sequence[Rollout]) -> Rollout:
  """The rows of all; counts and checksum are those of the first."""
  first = parts[0]
  if len(parts) == 1:
    return first
  whole = {"counts": None, "weights_checksum": None, "num_prompts": 0}
  rows = [part.replace(**whole) for part in parts]
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows).replace(
    counts=first.counts,
    weights_checksum=first.weights_checksum,
    num_prompts=sum(part.num_prompts for part in parts),
  )


def _rows_of(rollout: Rollout, prompts: np.ndarray) -> loop_state.Begun:
  """The rows of some prompts, to go on with."""
  own = rollouts.cut(rollout, prompts)
  fields = ("tokens_BT", "logp_BT", "length_B", "stopped_B", "done_B", "key_BX")
  return loop_state.Begun(
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
