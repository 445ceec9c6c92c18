"""Shapes of all architectures, and their parameters as stored tensors, for tests."""

import numpy as np

from r1jax import trees
from r1jax.models.config import Experts, Latent
from r1jax.weights import assemble
from tests import tiny

_DEEPSEEK = {"heads": 3, "kv_heads": 3, "width": 18, "norm_eps": 1e-6, "depth": 3}
_LATENT = {"kv_rank": 10, "nope_dim": 6, "rope_dim": 4, "value_dim": 5}
MODELS = {
  "llama": tiny.config(tied_head=False, rope_base=5e5),
  "tied": tiny.config(tied_head=True),
  "qwen2": tiny.config(qkv_bias=True, tied_head=False),
  "qwen3": tiny.config(qk_norm=True, head_dim=6),
  "qwen3_moe": tiny.config(
    qk_norm=True, tied_head=False, experts=Experts(count=5, per_token=2, ffw=6)
  ),
  "deepseek_v2": tiny.config(
    **_DEEPSEEK,
    head_dim=10,
    tied_head=False,
    latent=Latent(q_rank=0, **_LATENT),
    experts=Experts(4, 2, 6, shared=2, first_dense=1, normalise=False),
  ),
  "deepseek_v3": tiny.config(
    **_DEEPSEEK,
    head_dim=10,
    tied_head=False,
    latent=Latent(q_rank=8, **_LATENT),
    experts=Experts(
      *(4, 1, 6),
      **{"shared": 1, "first_dense": 1, "scores": "sigmoid", "bias": True},
      **{"groups": 2, "kept_groups": 1, "group_score": "top2", "scale": 2.5},
    ),
    mtp_depth=1,
  ),
}


def tensors(c, layout, params) -> dict[str, np.ndarray]:
  """{stored name: tensor}, pieces of one tensor put together."""
  flat = trees.flatten(params)
  found = {
    name: np.zeros(shape, flat["embed"].dtype)
    for name, shape in assemble.stored_shapes(c, layout).items()
  }
  for path, index, _, piece in assemble.pieces(c, layout):
    ours = np.asarray(flat[path])[index]
    matrix = assemble.to_stored(path, ours, layout.orders.get(path))
    rows = slice(piece.first_row, piece.first_row + len(matrix))
    found[piece.name][(*piece.at, rows)] = matrix
  return found


def assert_equal(got, want) -> None:
  """The same paths, dtypes and numbers."""
  got, want = trees.flatten(got), trees.flatten(want)
  assert got.keys() == want.keys()
  for path in want:
    assert got[path].dtype == want[path].dtype, path
    np.testing.assert_array_equal(np.asarray(got[path]), np.asarray(want[path]), path)
