"""One greedy answer to each prompt, judged: the baseline of ReMax (arXiv 2310.10505).

Letters: Q prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax import prng
from r1jax.rewards.pool import RewardPool
from r1jax.stages import advantages
from r1jax.stages.collect import sampler_of
from r1jax.stages.model_part import ModelParts
from r1jax.stages.rollouts import Judging
from r1jax.stages.run import Run
from r1jax.types import Problem


class Greedy:
  """Draws with the settings of a stage, but one answer at temperature 0."""

  def __init__(self, run: Run, config: Mapping[str, Any]):
    self._config = config
    self._sampler = sampler_of(
      run,
      config,
      prompts=config["rollout"]["prompts"],
      samples=1,
      slots=0,
      controls={"temperature": 0.0},
      record_experts=False,
    )
    self._key = prng.root(run.seed)  # nothing is drawn by it

  def __call__(
    self,
    pool: RewardPool,
    weights: Any,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    more_parts: ModelParts,
  ) -> np.ndarray:
    """float32 [Q], the reward of each answer as `advantages.rewards` has it."""
    judging = Judging(pool, problems, 1)
    rollout = self._sampler(
      weights,
      prompts,
      problems,
      self._key,
      on_complete=lambda q, ids: judging.add(q, self._sampler.texts(ids)),
    )
    parts_Q1, _ = judging.result()
    parts_Q1 = more_parts(parts_Q1, problems, self._sampler.completions(rollout))
    judged = advantages.rewards(
      self._config,
      parts_Q1,
      problems,
      rollout.length_B[:, None],
      rollout.stopped_B[:, None],
    )
    return judged.taken_QG[:, 0]
