"""Attention among the tokens of rows: the one place where length and platform choose.

Letters: B rows, L tokens in a row, M queries of a block, C context tokens, K kv heads,
R query heads per kv head, H head width.

Rows of up to SHORT tokens keep their weights for the backward pass. Longer ones keep
the result and its logsumexp alone, as flash attention does (arXiv 2205.14135), and
[L, L] never exists: on TPU in the splash attention that comes with JAX, elsewhere block
by block of queries in plain XLA.

On GPU, in 16 bits, rows of any length go through cuDNN's flash attention, behind
`jax.nn.dot_product_attention`. It takes segments as a mask of [L, L], of which all
heads read the same one. On an H100 an update of Qwen2.5-1.5B in rows of 1,794 tokens
took 1.57 s with it and 2.16 s with the blocks.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from r1jax.models import layers
from r1jax.sharding import LOCAL, Partition

SHORT = 512
_KEPT = "attention"
_NAMED = jax.checkpoint_policies.save_only_these_names(_KEPT)
_PIECES = 4  # of a short row at most, whose products leave out the context behind them
_BLOCK = 128  # queries of long rows whose scores exist at a time
_MOST_CUDNN = 2**14  # tokens of a row, whose mask is an array of their square
_STRETCHES = 4  # of a long row, whose blocks have one static context each


def causal(
  q_BLKRH: jax.Array,
  k_BLKH: jax.Array,
  v_BLKH: jax.Array,
  segments_BL: jax.Array | None,
  parents_BL: jax.Array | None,
  *,
  scale: float,
  partition: Partition = LOCAL,
) -> jax.Array:
  """Attention of each token to those of its row that are not behind it.

  Args:
    segments_BL: only to those of its own segment; None means all.
    parents_BL: and to those of the segment that its own one continues.
    scale: multiplies the scores.

  Returns:
    mixed_BLKRH.
  """
  arrays = q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL
  length = q_BLKRH.shape[1]
  if _fits_cudnn(q_BLKRH, v_BLKH, partition):
    return _cudnn(*arrays, scale)
  if length <= SHORT:
    return _short(*arrays, scale)
  rest = -length % _BLOCK

  def padded(x):
    return jnp.pad(x, ((0, 0), (0, rest), *[(0, 0)] * (x.ndim - 2)))

  return _long(*jax.tree.map(padded, arrays), scale, partition)[:, :length]


def _visible(first, num_queries: int, num_context: int, segments_BL, parents_BL):
  """[B or 1, M, C]: what tokens `first`, `first` + 1, ... see of a row's first ones."""
  place_M1 = first + jnp.arange(num_queries)[:, None]
  visible_BMC = (jnp.arange(num_context) <= place_M1)[None]
  if segments_BL is None:
    return visible_BMC

  def same(of_BL):
    of_BM = jax.lax.dynamic_slice_in_dim(of_BL, first, num_queries, axis=1)
    return of_BM[:, :, None] == segments_BL[:, None, :num_context]

  inside_BMC = same(segments_BL)
  if parents_BL is not None:
    inside_BMC |= same(parents_BL)
  return visible_BMC & inside_BMC


def keeps(primitive, *args, **params) -> bool:
  """A remat policy: what attention makes of a row is kept, but not of a short one."""
  # What cuDNN makes has no name to give it; where jax names it otherwise it is made
  # a second time.
  is_cudnn = primitive.name.startswith("dot_product_attention_fwd")
  return is_cudnn or _NAMED(primitive, *args, **params)


def _fits_cudnn(q_BLKRH: jax.Array, v_BLKH: jax.Array, partition: Partition) -> bool:
  """Whether cuDNN's flash attention is there for such heads."""
  head_dim = q_BLKRH.shape[-1]
  return (
    partition.has_flash_kernels
    and q_BLKRH.dtype in (jnp.bfloat16, jnp.float16)
    and v_BLKH.shape[-1] == head_dim
    and head_dim % 8 == 0
    and head_dim <= 128
    and q_BLKRH.shape[1] <= _MOST_CUDNN
  )


def _cudnn(q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL, scale):
  """The kernel reads the mask, and passes over what is behind a block of queries."""
  b, length, k, r, h = q_BLKRH.shape
  rest = ((0, 0), (0, length % 2))  # even rows, says the kernel
  q_BLNH = jnp.pad(q_BLKRH.reshape(b, length, k * r, h), (*rest, (0, 0), (0, 0)))
  k_BLKH, v_BLKH = (jnp.pad(x, (*rest, (0, 0), (0, 0))) for x in (k_BLKH, v_BLKH))
  mask_B1LL = None
  if segments_BL is not None:
    ids = jax.tree.map(lambda x: jnp.pad(x, rest), (segments_BL, parents_BL))
    mask_B1LL = _visible(0, q_BLNH.shape[1], q_BLNH.shape[1], *ids)[:, None]
  out_BLNH = jax.nn.dot_product_attention(
    q_BLNH,
    k_BLKH,
    v_BLKH,
    mask=mask_B1LL,
    is_causal=True,
    scale=scale,
    implementation="cudnn",
  )
  return out_BLNH[:, :length].reshape(q_BLKRH.shape)


def _short(q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL, scale):
  k_BKHC, v_BKCH = jnp.moveaxis(k_BLKH, 1, -1), jnp.moveaxis(v_BLKH, 1, 2)
  length = q_BLKRH.shape[1]
  piece = 64 * -(-length // (64 * _PIECES))
  pieces = []
  for first in range(0, length, piece):
    end = min(first + piece, length)
    mask_BMC = _visible(first, end - first, end, segments_BL, parents_BL)
    context = k_BKHC[..., :end], v_BKCH[:, :, :end]
    out, _ = layers.attend(q_BLKRH[:, first:end], *context, mask_BMC, scale=scale)
    pieces.append(out)
  return jnp.concatenate(pieces, axis=1)


def _long(q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL, scale, partition):
  """Keeps (result, logsumexp); rows are whole blocks."""
  # Half a second, which no program without long rows is to wait for.
  from r1jax.models import splash

  num_rows, _, kv_heads = k_BLKH.shape[:3]
  on_tpu = {"partition": partition, "scale": scale}
  forward_tpu = functools.partial(splash.attend, **on_tpu)
  backward_tpu = functools.partial(splash.derivatives, **on_tpu)
  forward_xla = functools.partial(_attend, scale=scale)
  backward_xla = functools.partial(_derivatives, scale=scale)
  if num_rows % partition.size("batch") or kv_heads % partition.size("kv_heads"):
    forward_tpu, backward_tpu = forward_xla, backward_xla

  def forward(*given):
    found = jax.lax.platform_dependent(*given, tpu=forward_tpu, default=forward_xla)
    out_BLKRH, lse_BLKR = (checkpoint_name(x, _KEPT) for x in found)
    return out_BLKRH, (*given, out_BLKRH, lse_BLKR)

  def backward(kept, bar_BLKRH):
    bars = jax.lax.platform_dependent(
      *kept, bar_BLKRH, tpu=backward_tpu, default=backward_xla
    )
    return *bars, None, None

  attention = jax.custom_vjp(lambda *given: forward(*given)[0])
  attention.defvjp(forward, backward)
  return attention(q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL)


def _stretches(length: int) -> list[tuple[jax.Array, int]]:
  """(first queries of blocks, the context up to where the last block ends), ..."""
  num_blocks = length // _BLOCK
  size = -(-num_blocks // _STRETCHES)
  edges = [min(edge, num_blocks) for edge in range(0, num_blocks + size, size)]
  return [
    (jnp.arange(start, end) * _BLOCK, end * _BLOCK)
    for start, end in itertools.pairwise(edges)
  ]


def _joined(blocks: list[jax.Array]) -> jax.Array:
  """[blocks, B, M, ...] of all stretches -> [B, L, ...]."""
  blocks_XBM = jnp.concatenate(blocks)
  rows_BXM = jnp.moveaxis(blocks_XBM, 0, 1)
  return rows_BXM.reshape(len(rows_BXM), -1, *rows_BXM.shape[3:])


def _block(x_BL: jax.Array, first: jax.Array) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x_BL, first, _BLOCK, axis=1)


def _attend(q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL, *, scale):
  """(result, logsumexp), block by block of queries."""
  k_BKHC, v_BKCH = jnp.moveaxis(k_BLKH, 1, -1), jnp.moveaxis(v_BLKH, 1, 2)
  found = []
  for first_X, num in _stretches(q_BLKRH.shape[1]):

    def one(first, num=num):
      mask_BMC = _visible(first, _BLOCK, num, segments_BL, parents_BL)
      context = k_BKHC[..., :num], v_BKCH[:, :, :num]
      return layers.attend(_block(q_BLKRH, first), *context, mask_BMC, scale=scale)

    found.append(jax.lax.map(one, first_X))
  return tuple(_joined(blocks) for blocks in zip(*found, strict=True))


def _derivatives(*kept, scale):
  """Those by queries, keys and values, block by block of queries.

  Args:
    kept: what `_attend` was given, what it returned, and the derivative by its result.
  """
  q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL = kept[:5]
  out_BLKRH, lse_BLKR, bar_BLKRH = kept[5:]
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  k_BKHC, v_BKCH = jnp.moveaxis(k_BLKH, 1, -1), jnp.moveaxis(v_BLKH, 1, 2)
  mean_BLKR = jnp.sum(out_BLKRH.astype(jnp.float32) * bar_BLKRH, axis=-1)

  def heads_first(x_BLKR, first):
    return jnp.moveaxis(_block(x_BLKR, first), 1, 3)

  k_bar = jnp.zeros(k_BKHC.shape, jnp.float32)
  v_bar = jnp.zeros(jnp.swapaxes(v_BKCH, 2, 3).shape, jnp.float32)
  q_bars = []
  for first_X, num in _stretches(q_BLKRH.shape[1]):

    def add(bars, first, num=num):
      k_bar_BKHC, v_bar_BKHC = bars
      q_BKRMH, bar_BKRMH = heads_first(q_BLKRH, first), heads_first(bar_BLKRH, first)
      score = product("bkrmh,bkhc->bkrmc", q_BKRMH, k_BKHC[..., :num]) * scale
      mask_BMC = _visible(first, _BLOCK, num, segments_BL, parents_BL)
      score = jnp.where(mask_BMC[:, None, None], score, layers.MASKED)
      weight = jnp.exp(score - heads_first(lse_BLKR, first)[..., None])
      weight_bar = product("bkrmh,bkch->bkrmc", bar_BKRMH, v_BKCH[:, :, :num])
      score_bar = weight * (weight_bar - heads_first(mean_BLKR, first)[..., None])
      score_bar = (score_bar * scale).astype(q_BLKRH.dtype)
      q_bar = product("bkrmc,bkhc->bkrmh", score_bar, k_BKHC[..., :num])
      k_bar_BKHC += product("bkrmh,bkrmc->bkhc", q_BKRMH, score_bar)
      weight = weight.astype(bar_BLKRH.dtype)
      v_bar_BKHC += product("bkrmh,bkrmc->bkhc", bar_BKRMH, weight)
      q_bar_BMKRH = jnp.moveaxis(q_bar, 3, 1).astype(q_BLKRH.dtype)
      return (k_bar_BKHC, v_bar_BKHC), q_bar_BMKRH

    start = k_bar[..., :num], v_bar[..., :num]
    (k_new, v_new), q_bar_XBMKRH = jax.lax.scan(add, start, first_X)
    k_bar, v_bar = k_bar.at[..., :num].set(k_new), v_bar.at[..., :num].set(v_new)
    q_bars.append(q_bar_XBMKRH)
  k_bar_BLKH, v_bar_BLKH = (jnp.moveaxis(x, -1, 1) for x in (k_bar, v_bar))
  return (
    _joined(q_bars),
    k_bar_BLKH.astype(k_BLKH.dtype),
    v_bar_BLKH.astype(v_BLKH.dtype),
  )
