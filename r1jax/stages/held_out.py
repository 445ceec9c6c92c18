"""Held-out accuracy of what another stage has made, as a stage of its own.

For recipes whose stages are to be compared, those of supervised training too. R1's
protocol with intervals, votes and every sample is `python -m r1jax.evaluate`.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.data import problems, templates
from r1jax.errors import InputError
from r1jax.rewards.pool import RewardPool
from r1jax.stages import evaluate, products, sets
from r1jax.stages.evaluate import Evaluation
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run
from r1jax.types import Problem

# What is evaluated is whole, whatever it was trained as.
_NO_ADAPTER = {"lora": {"rank": 0}}


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What has been read and checked before any stage begins."""

  sets: Mapping[str, Sequence[Problem]]
  sampler: Sampler
  pool: RewardPool


def prepare_evaluation(run: Run, name: str, config: Mapping[str, Any]) -> Prepared:
  """Reads the sets; raises InputError on what would not work later."""
  found = {
    key: problems.load_problems(**value)
    for key, value in config["eval"]["sets"].items()
  }
  if not found:
    raise InputError(f"config.eval.sets is empty: stage {name!r} evaluates nothing")
  for one in found.values():
    length = config["rollout"]["prompt_length"]
    templates.encode(one, run.tokenizer, length=length, **config["template"])
  return Prepared(
    found,
    evaluate.sampler_of(run, config | _NO_ADAPTER, found),
    sets.reward_pool(config, list(itertools.chain(*found.values()))),
  )


def evaluate_held_out(
  run: Run, name: str, config: Mapping[str, Any], prepared: Prepared
) -> None:
  """Evaluates the weights of `init` (a stage, or "" for `config.model`) on `eval.sets`;
  leaves a line of metrics, and all answers in samples/NAME/."""
  params = run.params_of(config["init"])
  with prepared.pool as pool, run.clock("eval"):
    evaluation = Evaluation(
      run,
      name,
      config,
      prepared.sets,
      prepared.sampler,
      frozen=None,
      held_frozen=None,
      pool=pool,
    )
    seen = evaluation(params, 1)
  for key in prepared.sets:
    shares = [seen.get(f"eval/{key}/accuracy{end}") for end in ("", "_low", "_high")]
    if None not in shares:  # a set without golds
      accuracy, low, high = (f"{100 * share:.1f}" for share in shares)
      run.say(f"{name}: {key} accuracy {accuracy}% ({low} to {high}%)")
  products.write(run, name, [seen], [], seen | run.clock.take())
