"""The rollout engine beside itself, without what it saves: refill, shared prompts.

Letters: Q prompts, G samples, B = Q * G answers, P prompt slots, S decode slots.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import prng
from r1jax.errors import InputError
from r1jax.limits import forward_flops
from r1jax.sampling import decode, logits, loop_state, prefill
from r1jax.sharding import SAMPLE_RULES, Partition
from r1jax.stages import collect
from r1jax.stages.run import Run
from r1jax.types import Rollout
from tests.benchmarks import work
from tests.benchmarks.work import Work

# Sizes of the rollout that differ from those of the model.
REFILL = {
  "prompts": 64,
  "group_size": 8,
  "prompt_length": 64,
  "max_tokens": 64,
  "slots": 32,
}
PROMPTS = {
  "prompts": 2,
  "group_size": 16,
  "prompt_length": 512,
  "max_tokens": 8,
  "slots": 0,
}
_MEAN_SHARE = 1 / 4  # of an answer, of max_tokens


def refill(run: Run, stage: Mapping[str, Any]) -> Work:
  """Answers of mixed lengths: slots that refill, beside waves of as many answers.

  A wave is a call of the same engine for as many answers as there are slots, in the
  same order; it lasts as long as its longest answer.
  """
  sizes = stage["rollout"]
  rows, samples, slots = work.num_rows(stage), sizes["group_size"], sizes["slots"]
  if not 0 < slots < rows or rows % slots or slots % samples:
    raise InputError(
      f"config.rollout.slots={slots}: must be a multiple of group_size={samples}, and "
      f"divide the {rows} answers into several waves"
    )
  lengths_B = geometric(rows, sizes["max_tokens"])
  asked, controls_B = prompts_of(run, stage), controls(stage, lengths_B)
  params = run.params_of("")
  plan, weights = held(run, stage, params)
  whole = engine_of(run, plan)
  wave = engine_of(run, dataclasses.replace(plan, slots=None))

  def refilled(repeat: int) -> dict[str, float]:
    return _idle([whole(weights, asked, controls_B, key_of(run, repeat))])

  def waves(repeat: int) -> dict[str, float]:
    outs = []
    for start in range(0, rows, slots):
      own = slice(start, start + slots)
      own_Q = slice(start // samples, (start + slots) // samples)
      parts = _cut(asked, own_Q), _cut(controls_B, own)
      outs.append(wave(weights, *parts, key_of(run, repeat)))
    return _idle(outs)

  def limit(tries: int) -> dict[str, float]:
    return work.answers_limit(run, stage, params, tries, lengths_B=lengths_B)

  lengths = f"geometric with a mean of {_MEAN_SHARE:g} of max_tokens, seed 0"
  settings = {"rollout": sizes, "lengths": lengths}
  return Work(refilled, settings, limit, {"waves": waves})


def shared_prompts(run: Run, stage: Mapping[str, Any]) -> Work:
  """A prompt for all its samples, beside every sample as a prompt of its own."""
  sizes = stage["rollout"]
  samples, max_tokens = sizes["group_size"], sizes["max_tokens"]
  rows = work.num_rows(stage)
  asked = prompts_of(run, stage)
  each = jax.tree.map(lambda leaf: np.repeat(leaf, samples, axis=0), asked)
  controls_B = controls(stage, np.full(rows, max_tokens))
  params = run.params_of("")
  plan, weights = held(run, stage, params)

  def way(prompts: loop_state.Prompts, samples: int) -> work.Call:
    start, advance, shapes = halves_of(
      run,
      dataclasses.replace(plan, samples=samples),
      (weights, prompts, controls_B, key_of(run, 0)),
    )
    kept = jax.tree.leaves((shapes.cache.prompt.keys, shapes.cache.prompt.values))
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)

    def call(repeat: int) -> dict[str, float]:
      seen: dict[str, float] = {}
      with work.timed(seen, "prefill"):
        state = start(weights, prompts, controls_B, key_of(run, repeat))
        jax.block_until_ready(state)
      with work.timed(seen, "decode"):
        state = advance(weights, state, controls_B)
        length_B = jax.device_get(state.length_B)
      fed = int(state.counts["prefill_tokens"])
      return {
        "tokens": int(length_B.sum()),
        "prefill_tokens": fed,
        "prefill_flop": forward_flops(
          run.model, tokens=fed, keys=fed * sizes["prompt_length"] / 2, predicted=0
        ),
        "prompt_cache_bytes": num_bytes,
        **seen,
      }

    return call

  def limit(tries: int) -> dict[str, float]:
    return work.answers_limit(run, stage, params, tries)

  return Work(
    way(asked, samples), {"rollout": sizes}, limit, {"repeated": way(each, 1)}
  )


def geometric(rows: int, max_tokens: int) -> np.ndarray:
  """Lengths of answers, int32 [B]."""
  rng = np.random.default_rng(0)
  drawn_B = rng.geometric(min(1 / (_MEAN_SHARE * max_tokens), 1), rows)
  return np.minimum(drawn_B, max_tokens).astype(np.int32)


def prompts_of(run: Run, stage: Mapping[str, Any]) -> loop_state.Prompts:
  tokens_QP = np.asarray(work.prompts(run, stage), np.int32)
  num_prompts, length = tokens_QP.shape
  return loop_state.Prompts(
    tokens_QP,
    length_Q=np.full(num_prompts, length, np.int32),
    problem_Q=np.arange(num_prompts, dtype=np.int32),
  )


def controls(stage: Mapping[str, Any], lengths_B: np.ndarray) -> logits.Controls:
  same = {name: stage["rollout"][name] for name in collect.CONTROLS}
  made = logits.controls(len(lengths_B), max_tokens=1, **same)
  return made.replace(max_tokens=jnp.asarray(lengths_B, jnp.int32))


def key_of(run: Run, repeat: int) -> jax.Array:
  return prng.at(prng.root(run.seed), "rollout", repeat)


def held(
  run: Run, stage: Mapping[str, Any], params: Any
) -> tuple[loop_state.Plan, Any]:
  """What the stage's sampler compiles for, and the weights that it draws with."""
  sampler = collect.sampler_of(run, stage)
  return sampler.plan, sampler.weights(params)


def engine_of(run: Run, plan: loop_state.Plan) -> Callable:
  """(weights, prompts, controls, key) -> Rollout on the host."""
  partition = Partition(run.partition.mesh, SAMPLE_RULES)
  program = jax.jit(
    functools.partial(decode.generate, run.model, plan=plan, partition=partition)
  )
  return lambda *given: jax.device_get(program(*given))


def halves_of(
  run: Run, plan: loop_state.Plan, given: tuple
) -> tuple[Callable, Callable, loop_state.DecodeState]:
  """The same in two programs.

  Args:
    given: (weights, prompts, controls, key), or arrays like them.

  Returns:
    ((weights, prompts, controls, key) -> state with the prompts in it; (weights, state,
    controls) -> state at the end; the shapes of a state).
  """
  partition = Partition(run.partition.mesh, SAMPLE_RULES)

  def start(*given):
    return prefill.start(run.model, *given, plan=plan, partition=partition)[0]

  def advance(weights, state, controls):
    return decode.advance(
      run.model, weights, state, controls, plan=plan, partition=partition
    )

  state = jax.eval_shape(start, *given)
  lies = loop_state.state_shardings(state, partition)
  return (
    jax.jit(start, out_shardings=lies),
    jax.jit(advance, donate_argnums=1, out_shardings=lies),
    state,
  )


def _cut(tree: Any, part: slice) -> Any:
  return jax.tree.map(lambda leaf: leaf[part], tree)


def _idle(outs: list[Rollout]) -> dict[str, float]:
  """Tokens drawn, and the share of slot-steps without one."""
  names = ("decode_tokens", "slot_steps", "idle_slot_steps")
  tokens, slot_steps, idle = (
    sum(int(out.counts[name]) for out in outs) for name in names
  )
  return {"tokens": tokens, "slot_steps": slot_steps, "idle_share": idle / slot_steps}
