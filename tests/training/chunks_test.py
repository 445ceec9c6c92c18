"""Masked tokens first, in chunks, and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.training.chunks import Chunks

MASK_BL = np.asarray([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]], np.float32)
X_BL = jnp.arange(10.0).reshape(2, 5)


@pytest.mark.parametrize(("size", "count"), [(1, 3), (4, 2), (6, 1), (100, 1)])
def test_chunks_hold_every_masked_token(size, count):
  chunks = Chunks(MASK_BL, size)
  assert chunks.count == count
  first_BP = chunks.masked_first(X_BL)
  assert first_BP[0, :3].tolist() == [1, 3, 4]
  assert first_BP[1, 0] == 5
  doubled_BP = jnp.zeros_like(first_BP)
  for index in range(count):
    doubled_BP = chunks.put(doubled_BP, 2 * chunks.take(first_BP, index), index)
  assert chunks.in_place(doubled_BP).tolist() == (2 * X_BL * MASK_BL).tolist()


def test_a_chunk_keeps_the_axes_behind_tokens():
  chunks = Chunks(MASK_BL, 4)
  x_BLD = jnp.stack([X_BL, -X_BL], axis=-1)
  assert chunks.take(chunks.masked_first(x_BLD), 0).tolist() == [
    [1, -1],
    [3, -3],
    [5, -5],
    [6, -6],
  ]


def test_nothing_masked_is_no_chunk():
  assert Chunks(np.zeros((2, 3)), 2).count == 0
