"""One answer at a time, its tokens handed out while they are drawn.

Letters: P prompt slots, T completion slots.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models.config import ModelConfig
from r1jax.sampling import decode, logits, loop_state, prefill
from r1jax.sharding import Partition

_SMALLEST_PROMPT = 128
_REFRESH_S = 0.1  # between two looks at what was drawn
_MOST_STEPS = 64


class Streamer:
  """The sampler of the rollouts, with one row.

  Prompts are held in lengths of powers of two, so a conversation that grows compiles
  rarely. Looking does not change what is drawn.

  Args:
    params: as the sampler holds them, `parameters.unstacked`.
    say: told in words when a length is compiled.
  """

  def __init__(
    self,
    c: ModelConfig,
    params: dict,
    stop_ids: tuple[int, ...],
    partition: Partition,
    *,
    say: Callable[[str], None],
  ):
    self.c = c
    self.stop_ids = stop_ids
    self._params = params
    self._partition = partition
    self._say = say
    self._compiled: dict[tuple[int, int], tuple[Callable, Callable]] = {}

  def __call__(
    self,
    prompt: Sequence[int],
    key: jax.Array,
    *,
    part: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    capacity: int,
  ) -> Iterator[list[int]]:
    """Ids as they come, a few at a time, an end token included.

    Args:
      key: names the question.
      part: number of the piece of an answer that is drawn in pieces; keys the draws.
      max_tokens: most that are drawn; with the prompt they fit the model's context.
      capacity: most that may be asked for; T follows from it.
    """
    length = _power_of_two(len(prompt), _SMALLEST_PROMPT, self.c.max_length)
    slots = _power_of_two(capacity, 1, self.c.max_length)
    start, advance = self._programs(length, slots)
    tokens_1P = np.zeros((1, length), np.int32)
    tokens_1P[0, : len(prompt)] = prompt
    asked = loop_state.Prompts(
      tokens_1P, np.asarray([len(prompt)], np.int32), np.asarray([part], np.int32)
    )
    controls = logits.controls(
      1,
      temperature=temperature,
      top_p=top_p,
      max_tokens=max_tokens,
      stop_ids=self.stop_ids,
    )
    state = start(self._params, asked, controls, key)
    seen, limit = 0, 1
    while True:
      began = time.monotonic()
      state = advance(self._params, state, controls, np.int32(limit))
      row_T, num_tokens, row = jax.device_get(
        (state.tokens_BT[0], state.length_B[0], state.row_S[0])
      )
      steps_per_s = limit / (time.monotonic() - began)
      yield row_T[seen:num_tokens].tolist()
      if row == loop_state.IDLE:
        return
      seen, limit = num_tokens, min(int(steps_per_s * _REFRESH_S) + 1, _MOST_STEPS)

  def _programs(self, length: int, slots: int) -> tuple[Callable, Callable]:
    """(start, advance) for P = `length` and T = `slots`."""
    if (length, slots) in self._compiled:
      return self._compiled[length, slots]
    self._say(f"compiling for prompts of up to {length:,} tokens")

    # One window: a row reads far less of its own keys than of the weights.
    plan = loop_state.Plan(samples=1, max_tokens=slots, windows=(slots,))
    of_model = {"plan": plan, "partition": self._partition}

    def begin(params, prompts, controls, key):
      return prefill.start(self.c, params, prompts, controls, key, **of_model)[0]

    def go_on(params, state, controls, limit):
      return decode.advance(self.c, params, state, controls, limit=limit, **of_model)

    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    asked = loop_state.Prompts(tokens, one, one)
    controls = logits.controls(1, max_tokens=1)
    state = jax.eval_shape(begin, self._params, asked, controls, jax.random.key(0))
    held = loop_state.state_shardings(state, self._partition)
    self._compiled[length, slots] = (
      jax.jit(begin, out_shardings=held),
      jax.jit(go_on, donate_argnums=1, out_shardings=held),
    )
    return self._compiled[length, slots]


def _power_of_two(count: int, least: int, most: int) -> int:
  """The least power of two that holds `count`, between two bounds."""
  return min(max(least, 1 << max(count - 1, 0).bit_length()), most)
