"""Rollouts of one shape, compiled once: prompts as ids in, judged text out.

Letters: Q prompts, G samples per prompt, B = Q * G rows, P prompt slots, T completion
slots.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from r1jax import prng
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.rewards.pool import RewardPool
from r1jax.sampling import decode, logits
from r1jax.sharding import SAMPLE_RULES, Partition
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.types import Problem, Rollout


class Sampler:
  """Draws `samples` completions of each of up to `prompts` prompts.

  Every process passes all prompts and gets all rows: the work is split over the mesh,
  what goes in and comes out is a few numbers a token.

  Args:
    prompt_length, max_tokens: P and T.
    slots: rows decoded at a time, 0 for all; rows that end make room for others.
    controls: temperature, top_k, top_p and min_p, the same for every row.
    record_experts: rollouts say which experts their tokens went through.
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
    controls: Mapping[str, float],
    record_experts: bool = False,
  ):
    for name, value in (
      ("prompts", prompts),
      ("samples", samples),
      ("prompt_length", prompt_length),
      ("max_tokens", max_tokens),
    ):
      if value < 1:
        raise InputError(f"config.rollout.{name}={value}: must be 1 or more")
    if prompt_length + max_tokens > run.model.max_length:
      raise InputError(
        f"config.rollout.prompt_length={prompt_length} and max_tokens={max_tokens} add "
        f"up to more than the {run.model.max_length} positions of the model; lower one"
      )
    self._run = run
    self._num_prompts = prompts
    self._samples = samples
    self._prompt_length = prompt_length
    held = Partition(run.partition.mesh, SAMPLE_RULES)
    specs = parameters.param_specs(run.model)
    trained = held.of_specs(parameters.unstacked(trainable.specs))
    frozen = held.of_specs(parameters.unstacked(specs))
    self._trainable = trainable
    self._trained = jax.jit(
      lambda params: parameters.unstacked(run.cast(params)), out_shardings=trained
    )
    self._frozen = jax.jit(parameters.unstacked, out_shardings=frozen)
    shardings = trainable.join(trained, frozen)
    everywhere = held.sharding()
    plan = decode.Plan(
      samples=samples,
      max_tokens=max_tokens,
      slots=slots or None,
      record_experts=record_experts,
    )
    self._generate = jax.jit(
      functools.partial(decode.generate, run.model, plan=plan, partition=held),
      in_shardings=(shardings, everywhere, everywhere, everywhere),
      out_shardings=everywhere,
    )
    self._controls = logits.controls(
      prompts * samples,
      max_tokens=max_tokens,
      stop_ids=run.tokenizer.stop_ids,
      **controls,
    )

  def hold(self, frozen: Any | None) -> Any | None:
    """The frozen tree of a stage as all samplers hold it: gathered over fsdp, layer by
    layer; a copy, made once."""
    return None if frozen is None else self._frozen(frozen)

  def weights(self, trained: Any, held_frozen: Any | None = None) -> Any:
    """What it draws with: the trained tree, gathered, layer by layer and in compute
    dtype, joined with what `hold` returned."""
    return self._trainable.join(self._trained(trained), held_frozen)

  def __call__(
    self,
    weights: Any,
    prompts: Sequence[Sequence[int]],
    problems: Sequence[Problem],
    key: jax.Array,
  ) -> Rollout:
    """Numpy leaves; rows of prompts that are not there are left out.

    Args:
      prompts: ids of each, at most P; those missing up to Q cost time all the same.
      key: names run, purpose and step.
    """
    tokens_QP = np.zeros((self._num_prompts, self._prompt_length), np.int32)
    length_Q = np.ones(self._num_prompts, np.int32)
    problem_Q = np.zeros(self._num_prompts, np.int32)
    for row, (ids, problem) in enumerate(zip(prompts, problems, strict=True)):
      tokens_QP[row, : len(ids)] = ids
      length_Q[row] = len(ids)
      problem_Q[row] = prng.number_of(problem.id)
    asked = decode.Prompts(tokens_QP, length_Q, problem_Q)
    out = jax.device_get(self._generate(weights, asked, self._controls, key))
    rows = len(prompts) * self._samples
    experts_BTZK = out.experts_BTZK
    return out.replace(
      tokens_BT=out.tokens_BT[:rows],
      logp_BT=out.logp_BT[:rows],
      length_B=out.length_B[:rows],
      stopped_B=out.stopped_B[:rows],
      experts_BTZK=None if experts_BTZK is None else experts_BTZK[:rows],
    )

  def completions(self, rollout: Rollout) -> list[list[int]]:
    """Ids of each row, the stop token included."""
    return [
      row[:length].tolist()
      for row, length in zip(rollout.tokens_BT, rollout.length_B, strict=True)
    ]

  def texts(self, completions: Sequence[Sequence[int]]) -> list[str]:
    """What the rewards and people read: without control tokens."""
    decode_text = self._run.tokenizer.decode
    return [decode_text(ids, skip_special=True) for ids in completions]


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


def judge(
  pool: RewardPool, texts: Sequence[str], problems: Sequence[Problem]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """Reward parts of rows, each process judging its share.

  Args:
    problems: Q of them, each asked for B / Q texts in a row.

  Returns:
    {part: [Q, G] float32}, and what `RewardPool.score` counted.
  """
  samples = len(texts) // len(problems)
  asked = [problem for problem in problems for _ in range(samples)]
  share = -(-len(texts) // jax.process_count())
  mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
  # Nothing is left for the last processes where there are more of them than texts.
  parts, counts = pool.score(texts[mine], asked[mine])
  names = pool.names
  table = np.zeros((share, len(names)), np.float32)
  for row, seen in enumerate(parts):
    table[row] = [seen[name] for name in names]
  if jax.process_count() > 1:
    numbers = np.asarray([counts[name] for name in sorted(counts)])
    table, all_numbers = multihost_utils.process_allgather((table, numbers))
    counts = dict(zip(sorted(counts), all_numbers.sum(axis=0).tolist(), strict=True))
  table = table.reshape(-1, len(names))[: len(texts)]
  columns = table.T.reshape(len(names), len(problems), samples)
  return dict(zip(names, columns, strict=True)), counts


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
  """One line of samples/*.jsonl for each row."""
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
      "reward": {name: values_QG[place] for name, values_QG in rewards.items()},
      "length": rollout.length_B[row],
      "stop": "eos" if rollout.stopped_B[row] else "length",
      "seed": run.seed,
    }
    if advantage_QG is not None:
      line["advantage"] = advantage_QG[place]
    lines.append(line)
  return lines
