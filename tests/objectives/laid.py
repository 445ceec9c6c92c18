"""Answers laid in packed rows, as a learner gets them."""

import jax.numpy as jnp
import numpy as np


class Layout:
  """Where the tokens of some answers lie: `per_row` of them behind two prompt tokens.

  Attributes:
    mask_BL, length_BL, segments_BL: see `types.TokenRows`.
    places: (row, slice) of each answer.
  """

  def __init__(self, lengths, *, per_row=3, padding=2):
    rows = [lengths[i : i + per_row] for i in range(0, len(lengths), per_row)]
    columns = max(sum(own) + 2 * len(own) for own in rows) + padding
    shape = (len(rows), columns)
    self.mask_BL, self.length_BL = np.zeros((2, *shape), np.float32)
    self.segments_BL = np.zeros(shape, np.int32)
    self.places = []
    for row, own in enumerate(rows):
      start = 0
      for number, length in enumerate(own, start=1):
        self.segments_BL[row, start : start + 2 + length] = number
        self.length_BL[row, start : start + 2 + length] = length
        here = slice(start + 2, start + 2 + length)
        self.mask_BL[row, here] = 1
        self.places.append((row, here))
        start = here.stop

  def rows(self, values, fill=np.nan):
    """[T] of each answer -> float32 [B, L], with `fill` elsewhere."""
    made = np.full(self.mask_BL.shape, fill, np.float64)
    for place, own in zip(self.places, values, strict=True):
      made[place] = own
    return jnp.asarray(made)

  def answers(self, x_BL):
    """[B, L] -> [T] of each answer."""
    return [np.asarray(x_BL[row])[here] for row, here in self.places]
