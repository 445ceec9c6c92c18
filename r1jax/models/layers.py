"""The pieces of a decoder layer.

Letters: B rows (or slots), L tokens, C context tokens, D width, N query heads, K kv
heads, R = N / K query heads per kv head, H head width, F ffw width.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.models import quantized
from r1jax.models.quantized import Held, Quantized

MASKED = -1e30  # finite, so that a row with nothing to attend to stays free of NaN


@struct.dataclass
class Adapted:
  """A matrix and its low-rank update, base + scale * a b (LoRA, arXiv 2106.09685).

  Attributes:
    base: [in..., out...].
    a, b: [in..., rank] and [rank, out...].
  """

  base: Held
  a: jax.Array
  b: jax.Array
  scale: float = struct.field(pytree_node=False)


Matrix = Held | Adapted


def linear(x: jax.Array, w: Matrix, *, contract: int = 1) -> jax.Array:
  """Contracts the last `contract` axes of x with the first ones of w.

  As one plain matrix product: with the tokens' axes flattened, XLA's CPU backend makes
  the weight gradients three times faster than with two contracted axes.
  """
  if isinstance(w, Adapted):
    update = linear(linear(x, w.a, contract=contract), w.b)
    return linear(x, w.base, contract=contract) + w.scale * update
  if isinstance(w, Quantized):
    product = linear(x, quantized.values(w, x.dtype), contract=contract)
    return product * w.scale.reshape(w.shape[contract:])
  tokens, inner, out = x.shape[:-contract], w.shape[:contract], w.shape[contract:]
  size = math.prod(inner)
  product = x.reshape(-1, size) @ w.reshape(size, -1)
  return product.reshape(*tokens, *out)


def matrix(w: Matrix) -> jax.Array:
  """The matrix as one array."""
  if isinstance(w, Adapted):
    return matrix(w.base) + w.scale * jnp.tensordot(w.a, w.b, 1)
  if isinstance(w, Quantized):
    return w.values.astype(w.dtype) * w.scale
  return w


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) * scale over the last axis, in float32."""
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return (x32 * inverse * scale.astype(jnp.float32)).astype(x.dtype)


def scores(q_BLKRH: jax.Array, k_BKHC: Held) -> jax.Array:
  """Products of queries and keys, float32 [B, K, R, L, C]."""
  # Queries that share a kv head are rows of one product.
  b, l, k, r, h = q_BLKRH.shape
  q_BKMH = jnp.moveaxis(q_BLKRH, 1, 3).reshape(b, k, r * l, h)
  score_BKMC = jnp.einsum(
    "bkmh,bkhc->bkmc",
    q_BKMH,
    quantized.values(k_BKHC, q_BLKRH.dtype),
    preferred_element_type=jnp.float32,
  )
  if isinstance(k_BKHC, Quantized):
    score_BKMC *= k_BKHC.scale
  return score_BKMC.reshape(b, k, r, l, -1)


def mixed(weight_BKRLC: jax.Array, v_BKCH: Held, dtype) -> jax.Array:
  """Sums of values by float32 weights, [B, K, R, L, H]."""
  b, k, r, l, _ = weight_BKRLC.shape
  weight_BKMC = weight_BKRLC.reshape(b, k, r * l, -1)
  if isinstance(v_BKCH, Quantized):
    weight_BKMC *= jnp.swapaxes(v_BKCH.scale, -1, -2)
  out_BKMH = jnp.einsum(
    "bkmc,bkch->bkmh", weight_BKMC.astype(dtype), quantized.values(v_BKCH, dtype)
  )
  return out_BKMH.reshape(b, k, r, l, -1)


def softmax(score: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(weights, logsumexp) over the last axis, of what the mask leaves.

  Where it leaves nothing, the logsumexp is about MASKED and the weights are to be
  ignored.
  """
  score = jnp.where(mask, score, MASKED)
  top = jax.lax.stop_gradient(score.max(axis=-1, keepdims=True))
  weight = jnp.exp(score - top)
  total = weight.sum(axis=-1, keepdims=True)
  return weight / total, (jnp.log(total) + top)[..., 0]


def attend(
  q_BLKRH: jax.Array, k_BKHC: Held, v_BKCH: Held, mask_BLC: jax.Array, *, scale: float
) -> tuple[jax.Array, jax.Array]:
  """Attention; `scale` multiplies the scores.

  Returns:
    (out_BLKRH, logsumexp_BLKR), of which `join` makes one where a context has parts.
  """
  weight, logsumexp_BKRL = softmax(
    scores(q_BLKRH, k_BKHC) * scale, mask_BLC[:, None, None]
  )
  out_BKRLH = mixed(weight, v_BKCH, q_BLKRH.dtype)
  return jnp.moveaxis(out_BKRLH, 3, 1), jnp.moveaxis(logsumexp_BKRL, -1, 1)


def join(parts: Sequence[tuple]) -> jax.Array:
  """One attention from parts of a context, each (out_BLKRH, logsumexp_BLKR)."""
  if len(parts) == 1:
    return parts[0][0]
  top = functools.reduce(jnp.maximum, [lse for _, lse in parts])
  weights = [jnp.exp(lse - top) for _, lse in parts]
  total = sum(weights)
  shares = [(weight / total)[..., None] for weight in weights]
  return sum(
    out * share.astype(out.dtype) for (out, _), share in zip(parts, shares, strict=True)
  )


def swiglu(x: jax.Array, mlp: dict, product: Callable = linear) -> jax.Array:
  """down(silu(gate(x)) * up(x)) (arXiv 2002.05202).

  Args:
    product: (activations, matrix) -> activations.
  """
  if "gate_up" in mlp:
    gate, up = jnp.split(product(x, mlp["gate_up"]), 2, axis=-1)
  else:
    gate, up = product(x, mlp["gate"]), product(x, mlp["up"])
  return product(jax.nn.silu(gate) * up, mlp["down"])
