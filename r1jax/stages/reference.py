"""How much the policy is held near its reference, fixed or adapted to how far it is."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import struct

from r1jax.errors import InputError
from r1jax.objectives import kl
from r1jax.types import Array


@struct.dataclass
class Seen:
  """The coefficient of a step, and the KL that came of it; float32 scalars.

  Attributes:
    coef: the coefficient.
    total, count: a sum of nats and what it is divided by; 0 and 0 before a step.
  """

  coef: Array
  total: Array
  count: Array


def is_used(config: Mapping[str, Any]) -> bool:
  """Whether a stage has a reference at all."""
  return config["loss"]["kl_coef"] != 0 or config["advantage"]["kl_coef"] != 0


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where the KL's settings do not go together."""
  own, held = config["reference"], ("loss", "advantage")
  coefs = {key: config[key]["kl_coef"] for key in held}
  for key, value in coefs.items():
    if not value >= 0:
      raise InputError(f"config.{key}.kl_coef={value}: must be 0 or more")
  if not own["kl_target"] >= 0 or not own["kl_horizon"] > 0:
    raise InputError(
      f"config.reference.kl_target={own['kl_target']} and kl_horizon="
      f"{own['kl_horizon']}: nats a token, 0 for a fixed coefficient, and answers, "
      "above 0"
    )
  if own["kl_target"] and sum(value > 0 for value in coefs.values()) != 1:
    raise InputError(
      f"config.reference.kl_target={own['kl_target']} adapts one coefficient, and "
      f"config.loss.kl_coef={coefs['loss']} and config.advantage.kl_coef="
      f"{coefs['advantage']}: begin with one of them above 0"
    )


class Coefficient:
  """The weight of the KL, in the loss or in the reward.

  Where `reference.kl_target` is above 0 it follows what was seen in the step before,
  see `kl.adapted`: in the loss `loss/kl`, in the reward nats a token.

  Attributes:
    adapts: whether it does.
    now: {"loss": ..., "advantage": ...} of the step under way.
  """

  def __init__(self, config: Mapping[str, Any]):
    own, rollout = config["reference"], config["rollout"]
    coefs = {key: config[key]["kl_coef"] for key in ("loss", "advantage")}
    self._in_reward = coefs["advantage"] != 0
    self.now = coefs
    self.adapts = own["kl_target"] > 0
    self._target, self._horizon = own["kl_target"], own["kl_horizon"]
    self._num_answers = rollout["prompts"] * rollout["group_size"]
    zero = np.zeros((), np.float32)
    begun = coefs["advantage" if self._in_reward else "loss"]
    self._seen = Seen(np.asarray(begun, np.float32), zero, zero)

  def held(self) -> Seen | None:
    """What a checkpoint must hold of it; None for nothing."""
    return self._seen if self.adapts else None

  def take_up(self, held: Seen) -> None:
    self._seen = held

  def next(self) -> dict[str, float]:
    """`now`, of the step that begins."""
    if not self.adapts:
      return self.now
    seen = jax.device_get(self._seen)
    coef = float(seen.coef)
    if seen.count > 0:
      coef = kl.adapted(
        coef,
        float(seen.total) / float(seen.count),
        target=self._target,
        horizon=self._horizon,
        num_answers=self._num_answers,
      )
    self._seen = self._seen.replace(coef=np.asarray(coef, np.float32))
    where = "advantage" if self._in_reward else "loss"
    self.now = {**self.now, where: float(np.float32(coef))}
    return self.now

  def saw(self, total: Array, count: Array) -> None:
    """Is told of the KL of this step, on the devices or here; a count of 0 is none."""
    self._seen = self._seen.replace(total=total, count=count)
