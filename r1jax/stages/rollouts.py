"""Rollouts of one shape, compiled once: prompts as ids in, judged text out.

Letters: Q prompts, G samples per prompt, B = Q * G rows, P prompt slots, T completion
slots.
"""

import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from r1jax import prng, trees
from r1jax.errors import InputError, one_of
from r1jax.models import parameters, quantized
from r1jax.rewards.pool import COUNTS, RewardPool
from r1jax.sampling import decode, drafts, logits, loop_state, prefill, stops
from r1jax.sharding import SAMPLE_RULES, Partition
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.types import Problem, Rollout

_LOOKS = 8  # at the rows that are complete, while one of full length is drawn
_ENDLESS = 2**30
# Section of a config -> its keys of the numbers of prompts and of samples.
_KEYS = {"rollout": ("prompts", "group_size"), "eval": ("batch", "samples")}


class Sampler:
  """Draws `samples` completions of each of up to `prompts` prompts.

  Every process passes all prompts and gets all rows: the work is split over the mesh,
  what goes in and comes out is a few numbers a token.

  Args:
    prompt_length, max_tokens: P and T.
    slots: rows decoded at a time, 0 for all; rows that end make room for others.
    draft, draft_tokens, cache: see `loop_state.Plan`.
    weights: what matrices are held in, one of `quantized.WEIGHTS`; "" is the compute
      dtype.
    controls: of `logits.controls`, the same for every row.
    stop_strings: texts that end an answer, the token that completes one included.
    record_experts: rollouts say which experts their tokens went through.
    section: of the config that these settings stand in, for errors.

  Attributes:
    plan: what its programs are compiled for.
    num_prompts: Q.
  """

  def __init__(
    self,
    run: Run,
    trainable: Trainable,
    *,
    prompts: int,
    samples: int,
    prompt_length: int,
    max_tokens: int,
    slots: int = 0,
    draft: str = "",
    draft_tokens: int = 0,
    weights: str = "",
    cache: str = "",
    controls: Mapping[str, float],
    stop_strings: Sequence[str] = (),
    record_experts: bool = False,
    section: str = "rollout",
  ):
    num_prompts, num_samples = _KEYS[section]
    for name, value in (
      (f"{section}.{num_prompts}", prompts),
      (f"{section}.{num_samples}", samples),
      ("rollout.prompt_length", prompt_length),
      (f"{section}.max_tokens", max_tokens),
    ):
      if value < 1:
        raise InputError(f"config.{name}={value}: must be 1 or more")
    if prompt_length + max_tokens > run.model.max_length:
      raise InputError(
        f"config.rollout.prompt_length={prompt_length} and config.{section}.max_tokens="
        f"{max_tokens} add up to more than the {run.model.max_length} positions of the "
        "model; lower one"
      )
    drafts.check_model(run.model, draft)
    self._run = run
    self.num_prompts = prompts
    self._samples = samples
    self._prompt_length = prompt_length
    self._held = held = Partition(run.partition.mesh, SAMPLE_RULES)
    one_of(weights, quantized.WEIGHTS, key="config.rollout.weights")
    self._trainable = trainable

    # On a CPU a step was no faster for it. An adapter finds the matrices that it adapts
    # by their names.
    fuses = held.platform == "gpu" and held.size("heads") == 1
    fuses &= trainable.lora is None

    def by_layer(tree: dict) -> dict:
      tree = parameters.unstacked(tree)
      return parameters.fused(tree) if fuses else tree

    def made(specs: dict, cast: Callable = lambda params: params) -> Callable:
      """(parameters) -> what is held of them; `specs` are the parameters'."""
      return jax.jit(
        lambda params: by_layer(quantized.params_in(weights, cast(params), specs)),
        out_shardings=held.of_specs(by_layer(quantized.specs_in(weights, specs))),
      )

    self._trained = made(trainable.specs, run.cast)
    self._frozen = made(parameters.param_specs(run.model))
    self.plan = loop_state.Plan(
      samples=samples,
      max_tokens=max_tokens,
      slots=slots or None,
      record_experts=record_experts,
      draft=draft,
      draft_tokens=draft_tokens,
      cache=cache,
      penalises=controls.get("repetition_penalty", 1.0) != 1.0,
    )
    self._stops_YV = None
    try:
      if stop_strings:
        spelled = [run.tokenizer.token_bytes(i) for i in range(run.model.vocab)]
        self._stops_YV = stops.table(stop_strings, spelled)
      self._controls = logits.controls(
        prompts * samples,
        max_tokens=max_tokens,
        stop_ids=run.tokenizer.stop_ids,
        stop_strings=bool(stop_strings),
        **controls,
      )
    except InputError as e:
      raise InputError(f"config.{section}.{e}") from e
    self._look_every = np.int32(max(max_tokens // _LOOKS, 16))
    self._compiled: _Programs | None = None

  def hold(self, frozen: Any | None) -> Any | None:
    """The frozen tree of a stage as samplers with the same `weights` hold it: gathered
    over fsdp, layer by layer; a copy, made once."""
    return None if frozen is None else self._frozen(frozen)

  def weights(self, trained: Any, held_frozen: Any | None = None) -> Any:
    """What it draws with: the trained tree, gathered, layer by layer, in compute dtype
    or quantized, joined with what `hold` returned."""
    return self._trainable.join(self._trained(trained), held_frozen)

  def __call__(
    self,
    weights: Any,
    prompts: Sequence[Sequence[int]],
    problems: Sequence[Problem],
    key: jax.Array,
    *,
    begun: loop_state.Begun | None = None,
    wanted: int | None = None,
    on_complete: Callable[[int, list[list[int]]], None] | None = None,
  ) -> Rollout:
    """Numpy leaves; rows of prompts that are not there are left out.

    Args:
      prompts: ids of each, at most P; those missing up to Q cost time all the same.
      key: names run, purpose and step.
      begun: rows to go on with; where a sampler is given some once, always (others may
        have length 0), since these are other programs.
      wanted: ends with so many prompts that have all samples; None waits for all rows.
      on_complete: is given the number of a prompt and its completions, while others
        are still drawn.
    """
    programs, state, more = self._begin(weights, prompts, problems, key, begun)
    wanted = np.int32(self.num_prompts if wanted is None else wanted)
    waiting: list[tuple[int, Any]] = []
    seen: set[int] = set()

    def hand_over():
      for prompt, rows in waiting:
        tokens_GT, length_G = jax.device_get(rows)
        on_complete(prompt, _cut_off(tokens_GT, length_G))

    def advance(state):
      return programs.advance(
        weights, state, self._controls, self._stops_YV, wanted, self._look_every
      )

    going = True
    state, ahead = advance(state)
    while going:
      # The devices go on while the host looks: at the end once too often, for nothing.
      looked, (state, ahead) = ahead, advance(state)
      hand_over()
      going, complete_Q = jax.device_get(looked)
      new = [
        q for q in np.flatnonzero(complete_Q) if q < len(prompts) and q not in seen
      ]
      seen |= set(new)
      waiting = []
      if on_complete is not None:
        waiting = [(int(q), programs.group(state, np.int32(q))) for q in new]
    out = programs.finish(state, more)
    hand_over()
    return self.fetch(out, len(prompts))

  def dispatch(
    self,
    weights: Any,
    prompts: Sequence[Sequence[int]],
    problems: Sequence[Problem],
    key: jax.Array,
    *,
    begun: loop_state.Begun | None = None,
    wanted: int | None = None,
  ) -> Rollout:
    """Starts the same and does not wait: leaves are of the devices, for `fetch`."""
    programs, state, more = self._begin(weights, prompts, problems, key, begun)
    wanted = np.int32(self.num_prompts if wanted is None else wanted)
    state, _ = programs.advance(
      weights, state, self._controls, self._stops_YV, wanted, np.int32(_ENDLESS)
    )
    return programs.finish(state, more)

  def fetch(self, out: Rollout, num_prompts: int) -> Rollout:
    """Numpy leaves of the first prompts."""
    return cut(jax.device_get(out), range(num_prompts))

  def _begin(
    self,
    weights: Any,
    prompts: Sequence[Sequence[int]],
    problems: Sequence[Problem],
    key: jax.Array,
    begun: loop_state.Begun | None,
  ) -> tuple["_Programs", loop_state.DecodeState, Any]:
    tokens_QP = np.zeros((self.num_prompts, self._prompt_length), np.int32)
    length_Q = np.ones(self.num_prompts, np.int32)
    problem_Q = np.zeros(self.num_prompts, np.int32)
    for row, (ids, problem) in enumerate(zip(prompts, problems, strict=True)):
      tokens_QP[row, : len(ids)] = ids
      length_Q[row] = len(ids)
      problem_Q[row] = prng.number_of(problem.id)
    asked = loop_state.Prompts(tokens_QP, length_Q, problem_Q)
    given = (weights, asked, self._controls, self._stops_YV, key, begun)
    if self._compiled is None:
      self._compiled = _Programs.of(self._run, self.plan, self._held, given)
    return self._compiled, *self._compiled.start(*given)

  def completions(self, rollout: Rollout) -> list[list[int]]:
    """Ids of each row, the stop token included."""
    return _cut_off(rollout.tokens_BT, rollout.length_B)

  def texts(self, completions: Sequence[Sequence[int]]) -> list[str]:
    """What the rewards and people read: without control tokens."""
    decode_text = self._run.tokenizer.decode
    return [decode_text(ids, skip_special=True) for ids in completions]


@dataclasses.dataclass(frozen=True)
class _Programs:
  """What a sampler has compiled; states are donated from call to call."""

  start: Callable
  advance: Callable
  group: Callable
  finish: Callable

  @classmethod
  def of(
    cls, run: Run, plan: loop_state.Plan, held: Partition, given: tuple
  ) -> "_Programs":
    """Those for arguments like `given` to `start`."""
    samples = plan.samples
    of_model = {"plan": plan, "partition": held}

    def start(weights, prompts, controls, stops_YV, key, begun):
      state, experts = prefill.start(
        run.model,
        weights,
        prompts,
        controls,
        key,
        stops_YV=stops_YV,
        begun=begun,
        **of_model,
      )
      return state, (trees.checksum(weights), experts)

    def advance(weights, state, controls, stops_YV, wanted, limit):
      state = decode.advance(
        run.model,
        weights,
        state,
        controls,
        stops_YV=stops_YV,
        wanted=wanted,
        limit=limit,
        **of_model,
      )
      complete_Q = state.done_B.reshape(-1, samples).all(axis=1)
      going = jnp.any(state.row_S != loop_state.IDLE) & (complete_Q.sum() < wanted)
      return state, (going, complete_Q)

    def group(state, prompt):
      """(tokens_GT, length_G) of a prompt."""
      return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, prompt * samples, samples),
        (state.tokens_BT, state.length_B),
      )

    everywhere = held.sharding()
    state, _ = jax.eval_shape(start, *given)
    lies = loop_state.state_shardings(state, held)
    return cls(
      start=jax.jit(start, out_shardings=(lies, everywhere)),
      advance=jax.jit(advance, donate_argnums=1, out_shardings=(lies, everywhere)),
      group=jax.jit(group, out_shardings=everywhere),
      finish=jax.jit(
        lambda state, more: loop_state.rollout_of(state, *more),
        out_shardings=everywhere,
      ),
    )


def _cut_off(tokens_BT: np.ndarray, length_B: np.ndarray) -> list[list[int]]:
  return [row[:n].tolist() for row, n in zip(tokens_BT, length_B, strict=True)]


def cut(rollout: Rollout, prompts: Sequence[int]) -> Rollout:
  """The rows of some prompts, in that order."""
  counted = {"counts": rollout.counts, "weights_checksum": rollout.weights_checksum}
  experts_QPZK = rollout.prompt_experts_QPZK
  index = np.asarray(prompts, int)
  samples = len(rollout.length_B) // rollout.num_prompts
  rows_B = (index[:, None] * samples + np.arange(samples)).reshape(-1)
  by_row = rollout.replace(counts=None, weights_checksum=None, prompt_experts_QPZK=None)
  return jax.tree.map(lambda leaf: leaf[rows_B], by_row).replace(
    **counted,
    prompt_experts_QPZK=None if experts_QPZK is None else experts_QPZK[index],
    num_prompts=len(index),
  )


def experts_of(
  rollout: Rollout, prompts: Sequence[Sequence[int]]
) -> list[np.ndarray] | None:
  """int32 [tokens, Z, K] of each answer with its prompt, or None where not recorded.

  Its last token has been through no layer: -1.
  """
  if rollout.experts_BTZK is None:
    return None
  samples = len(rollout.length_B) // len(prompts)
  went = []
  for row, length in enumerate(rollout.length_B):
    prompt = row // samples
    before = rollout.prompt_experts_QPZK[prompt, : len(prompts[prompt]) - 1]
    own = rollout.experts_BTZK[row, :length]
    went.append(np.concatenate([before, own, np.full_like(own[:1], -1)]))
  return went


class Judging:
  """Judges groups as they come, in a thread beside the one that draws.

  Each process judges its share of the groups.

  Args:
    problems: Q of them.
    samples: G.
  """

  def __init__(self, pool: RewardPool, problems: Sequence[Problem], samples: int):
    self._pool = pool
    self._problems = problems
    self._samples = samples
    self._table_QGR = np.zeros((len(problems), samples, len(pool.names)), np.float32)
    self._counts: dict[str, float] = {}
    self._raised: list[str] = []
    self._num_judged = 0
    self._waiting: list[tuple[int, Sequence[str]]] = []
    self._lock = threading.Lock()
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._work: list[concurrent.futures.Future] = []

  def add(self, problem: int, texts: Sequence[str]) -> None:
    """Hands over the G answers to a problem, by its number."""
    if problem % jax.process_count() == jax.process_index():
      with self._lock:
        self._waiting.append((problem, texts))
      self._work.append(self._thread.submit(self._judge_waiting))

  def _judge_waiting(self) -> None:
    with self._lock:
      groups, self._waiting = self._waiting, []
    if not groups:  # judged with an earlier one
      return
    texts = [text for _, texts in groups for text in texts]
    asked = [self._problems[q] for q, texts in groups for _ in texts]
    parts, counts, raised = self._pool.score_some(texts, asked)
    seen = [[part.get(name, np.nan) for name in self._pool.names] for part in parts]
    seen_QGR = np.asarray(seen, np.float32).reshape(len(groups), self._samples, -1)
    self._table_QGR[[q for q, _ in groups]] = seen_QGR
    for name, value in counts.items():
      self._counts[name] = self._counts.get(name, 0) + value
    self._raised += raised
    self._num_judged += len(texts)

  def result(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Waits for all, of all processes.

    Returns:
      {part: [Q, G] float32}, 0 where no answers were handed over and NaN where a
      problem does not have the part, and what `RewardPool.score` counts.
    """
    self._thread.shutdown()
    for work in self._work:
      work.result()  # raises what it raised
    if self._raised:
      self._pool.explain(self._raised, self._num_judged)
    table_QGR, names = self._table_QGR, COUNTS
    numbers = np.asarray([self._counts.get(name, 0) for name in names], np.float64)
    if jax.process_count() > 1:
      tables, all_numbers = multihost_utils.process_allgather((table_QGR, numbers))
      table_QGR, numbers = tables.sum(axis=0), all_numbers.sum(axis=0)
    parts = dict(zip(self._pool.names, np.moveaxis(table_QGR, 2, 0), strict=True))
    return parts, dict(zip(names, numbers.tolist(), strict=True))


def records(
  run: Run,
  *,
  step: int,
  stage: str,
  problems: Sequence[Problem],
  prompts: Sequence[Sequence[int]],
  texts: Sequence[str],
  rollout: Rollout,
  parts_QG: Mapping[str, np.ndarray],
  total_QG: np.ndarray,
  advantage_QG: np.ndarray | None = None,
) -> list[dict[str, Any]]:
  """One line of samples/*.jsonl for each row.

  Args:
    parts_QG: NaN where a problem does not have a part, which its lines do not show.
  """
  samples = total_QG.shape[1]
  rewards = {"total": total_QG, **parts_QG}
  asked = [run.tokenizer.decode(ids) for ids in prompts]
  lines = []
  for row, text in enumerate(texts):
    problem = problems[row // samples]
    place = divmod(row, samples)
    line = {
      "step": step,
      "stage": stage,
      "problem_id": problem.id,
      "sample": row % samples,
      "prompt": asked[row // samples],
      "completion": text,
      "answer": problem.answer,
      "reward": {
        name: values_QG[place]
        for name, values_QG in rewards.items()
        if not np.isnan(values_QG[place])
      },
      "length": rollout.length_B[row],
      "stop": "eos" if rollout.stopped_B[row] else "length",
      "seed": run.seed,
    }
    if advantage_QG is not None:
      line["advantage"] = advantage_QG[place]
    lines.append(line)
  return lines
