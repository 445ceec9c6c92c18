"""Attention of long rows on a TPU: the splash attention that comes with JAX.

Letters: B rows, L tokens in a row, K kv heads, R query heads per kv head, N = K * R
query heads, H head width.

The kernel knows a causal mask and segments. That a token attends to the segment which
its own continues is a second part: the same kernel, in which a query's segment is that
other one. Parts are joined by their logsumexp.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as library,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

from r1jax.models import layers
from r1jax.sharding import Partition

_BLOCKS = (512, 256, 128)  # not measured: the largest that divides the row is taken


def attend(
  q_BLKRH,
  k_BLKH,
  v_BLKH,
  segments_BL,
  parents_BL,
  *,
  scale: float,
  partition: Partition,
) -> tuple[jax.Array, jax.Array]:
  """(out_BLKRH, logsumexp_BLKR), see `kernels.causal`; L is a multiple of 128."""

  def local(q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL):
    q_BNLH = _heads_first(q_BLKRH * scale)
    k_BKLH, v_BKLH = jnp.moveaxis(k_BLKH, 1, 2), jnp.moveaxis(v_BLKH, 1, 2)
    kernel = jax.vmap(_kernel(*q_BNLH.shape[1:3]))
    parts = []
    for ids in _parts(segments_BL, parents_BL):
      out_BNLH, (lse_BNL,) = kernel(q_BNLH, k_BKLH, v_BKLH, ids)
      parts.append(tuple(_heads_last(x, k_BKLH.shape[1]) for x in (out_BNLH, lse_BNL)))
    lse_BLKR = functools.reduce(jnp.logaddexp, [lse for _, lse in parts])
    return layers.join(parts), lse_BLKR

  arrays = q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL
  return _on_devices(partition, local, *arrays)


def derivatives(*kept: jax.Array | None, scale, partition: Partition) -> tuple:
  """Those by queries, keys and values.

  A part's are what the kernel's backward pass makes of the whole's result and
  logsumexp: the weights, and what they are compared with, follow from these two.

  Args:
    kept: what `attend` was given, what it returned, and the derivative by its result.
  """

  def local(
    q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL, out_BLKRH, lse_BLKR, bar_BLKRH
  ):
    kept = q_BLKRH * scale, out_BLKRH, lse_BLKR, bar_BLKRH
    q_BNLH, out_BNLH, lse_BNL, bar_BNLH = map(_heads_first, kept)
    k_BKLH, v_BKLH = jnp.moveaxis(k_BLKH, 1, 2), jnp.moveaxis(v_BLKH, 1, 2)
    kernel = _kernel(*q_BNLH.shape[1:3])
    masks = kernel.dq_mask_info, kernel.dkv_mask_info

    @jax.vmap
    def backward(q_NLH, k_KLH, v_KLH, ids, out_NLH, lse_NL, bar_NLH):
      res = (q_NLH, k_KLH, v_KLH, ids, None, out_NLH, lse_NL, *masks)
      # Private, the same in jax 0.10 to 0.12: what is public joins no parts.
      return library._splash_attention_bwd(**kernel.kwargs, res=res, do=bar_NLH)[3:6]

    bars = [
      backward(q_BNLH, k_BKLH, v_BKLH, ids, out_BNLH, lse_BNL, bar_BNLH)
      for ids in _parts(segments_BL, parents_BL)
    ]
    q_bar_BNLH, k_bar_BKLH, v_bar_BKLH = map(sum, zip(*bars, strict=True))
    return (
      _heads_last(q_bar_BNLH * scale, k_BLKH.shape[2]),
      jnp.moveaxis(k_bar_BKLH, 2, 1),
      jnp.moveaxis(v_bar_BKLH, 2, 1),
    )

  return _on_devices(partition, local, *kept)


def _kernel(heads: int, length: int) -> library.SplashAttentionKernel:
  """Of one row: (q_NLH, k_KLH, v_KLH, segments or None) -> (out_NLH, (lse_NL,))."""
  block = next(size for size in _BLOCKS if length % size == 0)
  causal = splash_attention_mask.CausalMask((length, length))
  return library.make_splash_mha(
    splash_attention_mask.MultiHeadMask([causal] * heads),
    block_sizes=library.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    save_residuals=True,
  )


def _parts(segments_BL, parents_BL) -> list[library.SegmentIds | None]:
  """Of each part, the ids by which queries and keys find one another."""
  if segments_BL is None:
    return [None]
  parts = [library.SegmentIds(segments_BL, segments_BL)]
  if parents_BL is not None:
    # Without another segment it finds nothing: its share of the whole is then 0.
    other_BL = jnp.where(parents_BL == segments_BL, -1, parents_BL)
    parts.append(library.SegmentIds(other_BL, segments_BL))
  return parts


def _heads_first(x_BLKR: jax.Array) -> jax.Array:
  """[B, L, K, R, ...] -> [B, N, L, ...]."""
  x_BKRL = jnp.moveaxis(x_BLKR, 1, 3)
  return x_BKRL.reshape(len(x_BKRL), -1, *x_BKRL.shape[3:])


def _heads_last(x_BNL: jax.Array, kv_heads: int) -> jax.Array:
  """[B, N, L, ...] -> [B, L, K, R, ...]."""
  x_BKRL = x_BNL.reshape(len(x_BNL), kv_heads, -1, *x_BNL.shape[2:])
  return jnp.moveaxis(x_BKRL, 3, 1)


def _on_devices(partition: Partition, function, *arrays):
  """Every device with its rows and kv heads, since XLA does not split a kernel.

  Args:
    arrays: [B, L, K, ...], [B, L] or None.
  """
  if partition.mesh is None:
    return function(*arrays)
  heads = partition.pspec(("batch", None, "kv_heads"))
  ids = partition.pspec(("batch", None))
  specs = jax.tree.map(lambda x: ids if x.ndim == 2 else heads, arrays)
  return jax.shard_map(
    function, mesh=partition.mesh, in_specs=specs, out_specs=heads, check_vma=False
  )(*arrays)
