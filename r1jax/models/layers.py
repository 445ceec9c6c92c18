"""The pieces of a decoder layer.

Letters: B rows (or slots), L tokens, C context tokens, D width, N query heads, K kv
heads, R = N / K query heads per kv head, H head width, F ffw width.
"""

import math

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row with nothing to attend to stays free of NaN


def linear(x: jax.Array, w: jax.Array, *, contract: int = 1) -> jax.Array:
  """Contracts the last `contract` axes of x with the first ones of w.

  As one plain matrix product: with the tokens' axes flattened, XLA's CPU backend makes
  the weight gradients three times faster than with two contracted axes.
  """
  tokens, inner, out = x.shape[:-contract], w.shape[:contract], w.shape[contract:]
  size = math.prod(inner)
  product = x.reshape(-1, size) @ w.reshape(size, -1)
  return product.reshape(*tokens, *out)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) * scale over the last axis, in float32."""
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return (x32 * inverse * scale.astype(jnp.float32)).astype(x.dtype)


def rotary(positions_BL: jax.Array, head_dim: int, base: float) -> tuple:
  """(cos, sin), each [B, L, 1, H/2] in float32 (RoPE, arXiv 2104.09864)."""
  wavelength = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angle = positions_BL.astype(jnp.float32)[..., None, None] * wavelength
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BLNH: jax.Array, cos_sin: tuple) -> jax.Array:
  """Rotates pairs (i, i + H/2), the layout of Hugging Face checkpoints."""
  cos, sin = cos_sin
  low, high = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
  return turned.astype(x_BLNH.dtype)


def attend(q_BLKRH, k_BKHC, v_BKCH, mask_BLC) -> tuple[jax.Array, jax.Array]:
  """Attention over one part of the context.

  Returns:
    (out_BLKRH, logsumexp_BLKR): parts of a context are joined by `join`. Where the mask
    leaves nothing, the logsumexp is about MASKED and the output is to be ignored.
  """
  scale = q_BLKRH.shape[-1] ** -0.5
  score = jnp.einsum(
    "blkrh,bkhc->bkrlc", q_BLKRH, k_BKHC, preferred_element_type=jnp.float32
  )
  score = jnp.where(mask_BLC[:, None, None], score * scale, MASKED)
  top = jax.lax.stop_gradient(score.max(axis=-1, keepdims=True))
  weight = jnp.exp(score - top)
  total = weight.sum(axis=-1, keepdims=True)
  out = jnp.einsum("bkrlc,bkch->blkrh", (weight / total).astype(v_BKCH.dtype), v_BKCH)
  logsumexp_BKRL = (jnp.log(total) + top)[..., 0]
  return out, jnp.moveaxis(logsumexp_BKRL, -1, 1)


def join(first: tuple, second: tuple) -> jax.Array:
  """One attention from two parts of a context, each (out_BLKRH, logsumexp_BLKR)."""
  (out_a, lse_a), (out_b, lse_b) = first, second
  share_a = jax.nn.sigmoid(lse_a - lse_b)[..., None].astype(out_a.dtype)
  return out_a * share_a + out_b * (1 - share_a)


def swiglu(x_BLD: jax.Array, mlp: dict) -> jax.Array:
  """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""
  gate_BLF, up_BLF = linear(x_BLD, mlp["gate"]), linear(x_BLD, mlp["up"])
  return linear(jax.nn.silu(gate_BLF) * up_BLF, mlp["down"])
