"""From settings to an optax transform: schedule, clipping, decay, frozen parameters.

Parameters are addressed by path with full-match regular expressions (`trees.mask`),
such as `layers/attn/.*`.

Bytes that the state holds per parameter of SmolLM2-135M, whose embedding is a fifth of
it; parameter and gradient take 4 each beside them:

    kind                             moment_dtype   float32   bfloat16
    adamw                                              8.00       6.00
    muon                                               4.84       2.84
    adafactor                                          4.01       2.01
    adafactor, b1=0                                    0.01       0.01

With `offload` they lie in the host's memory, and on the devices during the optimizer's
own step alone, when the activations are gone.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.tree_util import tree_map_with_path

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


# The memory, as jax names it, of moments that do not lie on the devices.
HOST_MEMORY = "pinned_host"
MOMENT_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# {path: (leading axes that number layers and experts, axes of inputs behind them)}
Matrices = Mapping[str, tuple[int, int]]


def make_optimizer(
  matrices: Matrices | None = None,
  *,
  learning_rate: float,
  kind: str = "adamw",
  moment_dtype: str = "float32",
  offload: bool = False,
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
  """AdamW (arXiv 1711.05101), or one that needs less memory, over what is not frozen.

  The order is: clip by global norm, a step of the `kind` (of unit size: learning rates
  of AdamW fit all), decoupled weight decay, learning rate.

  Args:
    matrices: which parameters are matrices; only AdamW does without.
    learning_rate, schedule, warmup_steps, total_steps, final_fraction: see
      `make_schedule`.
    kind: a name in `KINDS`.
    moment_dtype: "float32" or "bfloat16", of the first moment. The second is float32
      always: in bfloat16 b2 = 0.999 times a number rounds to that number, so that a
      moment could not fall.
    offload: the state lies in the host's memory between updates. On a CPU that is the
      same memory.
    b1, b2: decay of the first and the second moment; Muon's matrices have no second.
    eps: gradients below it are not scaled up.
    weight_decay: times the parameter, added to the step before the learning rate.
    no_decay: patterns of parameters without weight decay; norm scales by default.
    frozen: patterns of parameters that stay as they are. They have no optimizer state
      and do not count into the clipped norm.
    grad_clip: largest global norm of the gradient that is passed on; None is no limit.

  Returns:
    (transform, learning rate by step). It is `Offloaded` with `offload`.

  Raises:
    InputError: a setting out of range, a backend without `HOST_MEMORY`; at `init`, a
      pattern that matches no parameter.
  """
  one_of(kind, KINDS, key="config.optim.kind")
  one_of(moment_dtype, MOMENT_DTYPES, key="config.optim.moment_dtype")
  if matrices is None and kind != "adamw":
    raise ValueError(f"kind={kind!r} needs to know which parameters are matrices")
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
  dtype = MOMENT_DTYPES[moment_dtype]
  parts.append(KINDS[kind](matrices, b1=b1, b2=b2, eps=eps, dtype=dtype))
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
  if offload:
    _require_host_memory()
    transform = Offloaded(*transform)
  return transform, rate


class Offloaded(NamedTuple):
  """A transform whose state, but for scalars, lies in `HOST_MEMORY` between updates.

  Whoever places the state (`training.state`) puts it there.
  """

  init: Callable
  update_on_device: Callable

  def update(self, grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    state = jax.device_put(state, jax.memory.Space.Device)
    return self.update_on_device(grads, state, params)


def _require_host_memory() -> None:
  device = jax.local_devices()[0]
  kinds = sorted(memory.kind for memory in device.addressable_memories())
  if HOST_MEMORY not in kinds:
    raise InputError(
      f"config.optim.offload=True: {device.device_kind!r} has no memory "
      f"{HOST_MEMORY!r} (it has {', '.join(kinds)}); set it to False, or take "
      "config.optim.kind='adafactor'"
    )


# ------------------------------------------------------------------- kinds of a step


def _adam(matrices: Matrices | None, *, b1, b2, eps, dtype):
  del matrices
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=dtype)


def _adafactor(matrices: Matrices, *, b1, b2, eps, dtype):
  """Adafactor (arXiv 1804.04235) as modified in arXiv 2106.04560, section 3.4.

  Adam's first moment, none with b1 = 0, and steps that do not depend on the size of
  the parameter; where the root mean square of a matrix's step is above 1, it is cut to
  that.
  """

  def cut(path: tuple, step: jax.Array) -> jax.Array:
    sides = _sides(matrices.get(_name(path), (0, 0)), step)
    mean = jnp.square(step).mean(sides[0] + sides[1], keepdims=True)
    return step * jax.lax.rsqrt(jnp.maximum(mean, 1.0))

  parts = [
    scale_by_factored_rms(matrices, b2=b2, eps=eps),
    optax.stateless(lambda steps, _: tree_map_with_path(cut, steps)),
  ]
  if b1 > 0:
    parts.append(optax.ema(b1, debias=True, accumulator_dtype=dtype))
  return optax.chain(*parts)


def _muon(matrices: Matrices, *, b1, b2, eps, dtype):
  """Muon (https://kellerjordan.github.io/posts/muon) for the layers' matrices.

  Embedding, head, norms and biases have AdamW. Steps are scaled to the size of AdamW's
  as in arXiv 2502.16982, eq. 4. Both name a momentum (b1) of 0.95.
  """

  def axes(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers:
    inputs, outputs = _sides(matrices[_name(path)], leaf)
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)

  def scaled(path: tuple, step: jax.Array) -> jax.Array:
    sides = _sides(matrices[_name(path)], step)
    longest = max(math.prod(step.shape[axis] for axis in side) for side in sides)
    return 0.2 * math.sqrt(longest) * step

  orthogonal = optax.contrib.scale_by_muon(
    beta=b1,
    eps=eps,
    mu_dtype=dtype,
    weight_dimension_numbers=functools.partial(tree_map_with_path, axes),
  )
  size = optax.stateless(lambda steps, _: tree_map_with_path(scaled, steps))

  def label(path: tuple, _: Any) -> str:
    stacked, _ = matrices.get(_name(path), (0, 0))
    return "matrix" if stacked else "other"

  return optax.partition(
    {
      "matrix": optax.chain(orthogonal, size),
      "other": _adam(None, b1=b1, b2=b2, eps=eps, dtype=dtype),
    },
    functools.partial(tree_map_with_path, label),
  )


KINDS = {"adamw": _adam, "adafactor": _adafactor, "muon": _muon}


class FactoredState(NamedTuple):
  """Updates done, and under the path of each parameter its second moment.

  `nu` has (rows, columns) for a matrix, each of the parameter's shape with 1 for the
  axes that it is a mean over, and for others (moment,).
  """

  count: jax.Array
  nu: Any


def scale_by_factored_rms(
  matrices: Matrices, *, b2: float, eps: float
) -> optax.GradientTransformation:
  """Divides by the root of a second moment kept as means of rows and columns.

  Adafactor, algorithm 4, with its decay 1 - t ** -0.8 of step t until that is b2.
  Departs: optax factors the two longest axes of an array, which in stacked layers may
  be the layers; here every layer and expert has rows and columns of its own.
  """

  def empty(path: tuple, leaf: jax.Array) -> tuple[jax.Array, ...]:
    if (matrix := matrices.get(_name(path))) is None:
      return (jnp.zeros_like(leaf),)
    inputs, outputs = _sides(matrix, leaf)
    return tuple(
      jnp.zeros([1 if axis in side else n for axis, n in enumerate(leaf.shape)])
      for side in (outputs, inputs)
    )

  def init(params: Any) -> FactoredState:
    return FactoredState(jnp.asarray(0, jnp.int32), tree_map_with_path(empty, params))

  def update(grads: Any, state: FactoredState, params: Any = None):
    del params
    count = state.count + 1
    decay = jnp.minimum(1.0 - count.astype(jnp.float32) ** -0.8, b2)

    def moved(path: tuple, grad: jax.Array, nu: tuple) -> tuple[jax.Array, ...]:
      square, means = jnp.square(grad) + eps**2, ((),)
      if (matrix := matrices.get(_name(path))) is not None:
        inputs, outputs = _sides(matrix, grad)
        means = (outputs, inputs)
      return tuple(
        decay * old + (1.0 - decay) * square.mean(axes, keepdims=True)
        for old, axes in zip(nu, means, strict=True)
      )

    def divided(path: tuple, grad: jax.Array, nu: tuple) -> jax.Array:
      if len(nu) == 1:
        return grad * jax.lax.rsqrt(nu[0])
      rows, columns = nu
      inputs, _ = _sides(matrices[_name(path)], grad)
      share = rows / rows.mean(inputs, keepdims=True)
      return grad * jax.lax.rsqrt(share) * jax.lax.rsqrt(columns)

    nu = tree_map_with_path(moved, grads, state.nu)
    return tree_map_with_path(divided, grads, nu), FactoredState(count, nu)

  return optax.GradientTransformation(init, update)


def _sides(
  matrix: tuple[int, int], leaf: jax.Array
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Axes of the inputs and of the outputs of a matrix."""
  stacked, inputs = matrix
  axes = range(leaf.ndim)
  return tuple(axes[stacked : stacked + inputs]), tuple(axes[stacked + inputs :])


def _name(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


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
