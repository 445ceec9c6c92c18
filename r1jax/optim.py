"""From settings to an optax transform: schedule, clipping, decay, frozen parameters.

Parameters are addressed by path with full-match regular expressions (`trees.mask`),
such as `layers/attn/.*`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax import trees
from r1jax.errors import InputError, one_of

Schedule = Callable[[jax.Array | int], jax.Array]

# How much of the way from the peak to the final rate is done, by progress in [0, 1].
SCHEDULES = {
  "constant": lambda progress: 0.0 * progress,
  "linear": lambda progress: progress,
  "cosine": lambda progress: 0.5 * (1.0 - jnp.cos(jnp.pi * progress)),
}


def make_schedule(
  *,
  learning_rate: float,
  schedule: str = "constant",
  warmup_steps: int = 0,
  total_steps: int | None = None,
  final_fraction: float = 0.0,
) -> Schedule:
  """Learning rate by step: a linear warm-up, then a path to a fraction of the peak.

  The warm-up starts at 1/warmup_steps of the peak, not at 0, which would waste a step.

  Args:
    schedule: a name in `SCHEDULES`.
    total_steps: where the path ends; read by "linear" and "cosine".
    final_fraction: rate at `total_steps` over the peak rate; R1's fine-tuning falls to
      a tenth (arXiv 2501.12948 supplement).
  """
  one_of(schedule, SCHEDULES, key="config.optim.schedule")
  _require(learning_rate >= 0, "learning_rate", learning_rate, "0 or more")
  _require(warmup_steps >= 0, "warmup_steps", warmup_steps, "0 or more")
  _require(0 <= final_fraction <= 1, "final_fraction", final_fraction, "0 to 1")
  if schedule == "constant":
    decay_steps = 1
  else:
    _require(
      total_steps is not None and total_steps > warmup_steps,
      "total_steps",
      total_steps,
      f"more than warmup_steps={warmup_steps} for schedule={schedule!r}",
    )
    decay_steps = total_steps - warmup_steps

  def rate(step):
    warm = jnp.minimum((step + 1.0) / max(warmup_steps, 1), 1.0)
    progress = jnp.clip((step - warmup_steps) / decay_steps, 0.0, 1.0)
    fall = (1.0 - final_fraction) * SCHEDULES[schedule](progress)
    return learning_rate * warm * (1.0 - fall)

  return rate


def make_optimizer(
  *,
  learning_rate: float,
  schedule: str = "constant",
  warmup_steps: int = 0,
  total_steps: int | None = None,
  final_fraction: float = 0.0,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  no_decay: tuple[str, ...] = (r".*norm",),
  frozen: tuple[str, ...] = (),
  grad_clip: float | None = 1.0,
) -> tuple[optax.GradientTransformation, Schedule]:
  """AdamW (arXiv 1711.05101) over the parameters that are not frozen.

  The order is: clip by global norm, Adam, decoupled weight decay, learning rate.

  Args:
    learning_rate, schedule, warmup_steps, total_steps, final_fraction: see
      `make_schedule`.
    weight_decay: times the parameter, added to the step before the learning rate.
    no_decay: patterns of parameters without weight decay; norm scales by default.
    frozen: patterns of parameters that stay as they are. They have no optimizer state
      and do not count into the clipped norm.
    grad_clip: largest global norm of the gradient that is passed on; None is no limit.

  Returns:
    (transform, learning rate by step).

  Raises:
    InputError: a setting out of range; at `init`, a pattern that matches no parameter.
  """
  for name, beta in (("b1", b1), ("b2", b2)):
    _require(0 <= beta < 1, name, beta, "0 up to, not including, 1")
  _require(eps > 0, "eps", eps, "above 0")
  _require(weight_decay >= 0, "weight_decay", weight_decay, "0 or more")
  _require(
    grad_clip is None or grad_clip > 0, "grad_clip", grad_clip, "above 0 or None"
  )
  rate = make_schedule(
    learning_rate=learning_rate,
    schedule=schedule,
    warmup_steps=warmup_steps,
    total_steps=total_steps,
    final_fraction=final_fraction,
  )

  def decayed(tree):
    kept = trees.mask(tree, no_decay, key="config.optim.no_decay")
    # Routers' biases follow the loads alone.
    return trees.map_with_path(
      lambda path, skip: not skip and not path.endswith("moe/bias"), kept
    )

  parts = []
  if grad_clip is not None:
    parts.append(optax.clip_by_global_norm(grad_clip))
  parts.append(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))
  if weight_decay > 0:
    parts.append(optax.add_decayed_weights(weight_decay, mask=decayed))
  parts.append(optax.scale_by_learning_rate(rate))
  transform = optax.chain(*parts)
  if frozen:
    transform = optax.partition(
      {"trained": transform, "frozen": optax.set_to_zero()},
      lambda tree: jax.tree.map(
        lambda still: "frozen" if still else "trained", _frozen_mask(tree, frozen)
      ),
    )
  return transform, rate


def grad_norm(grads: Any, *, frozen: tuple[str, ...] = ()) -> jax.Array:
  """Global norm of the gradient as the clip sees it: not yet cut, without frozen."""
  if frozen:
    still = _frozen_mask(grads, frozen)
    grads = jax.tree.map(lambda g, skip: None if skip else g, grads, still)
  return optax.tree.norm(grads)


def _frozen_mask(tree: Any, frozen: tuple[str, ...]) -> Any:
  return trees.mask(tree, frozen, key="config.optim.frozen")


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
  if not condition:
    raise InputError(f"config.optim.{name}={value!r}: must be {allowed}")
