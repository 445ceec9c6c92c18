"""Tokens that are believed to come next, to be checked by one forward pass.

Letters: Q prompts, G samples, B = Q * G rows, S slots, P prompt slots, T completion
slots, C = P + G * T tokens of a prompt and its samples, J drafted tokens.
"""

import jax
import jax.numpy as jnp

from r1jax.errors import InputError, one_of
from r1jax.models.config import ModelConfig

# "ngram" looks up what followed the last tokens before, in the prompt or in any of its
# samples; "mtp" asks the module that predicts one token further.
KINDS = ("ngram", "mtp")
_LONGEST = 3  # tokens that are looked up


def check(kind: str, num_tokens: int, *, penalises: bool) -> None:
  """Raises InputError where settings of `config.rollout` do not go together."""
  key = "config.rollout.draft"
  if kind:
    one_of(kind, KINDS, key=key)
  if bool(kind) != (num_tokens > 0):
    raise InputError(
      f"{key}={kind!r} and draft_tokens={num_tokens}: set both, or neither"
    )
  if kind == "mtp" and num_tokens != 1:
    raise InputError(
      f"config.rollout.draft_tokens={num_tokens}: the module predicts one token; set 1"
    )
  if kind and penalises:
    raise InputError(
      f"{key}={kind!r} does not go with a repetition penalty, which depends on the "
      "tokens before; set it to 1"
    )


def check_model(c: ModelConfig, kind: str) -> None:
  """Raises InputError where a model has nothing to draft with."""
  if kind == "mtp" and not c.mtp_depth:
    raise InputError(
      "config.rollout.draft='mtp': the model has no module that predicts one token "
      "further; use 'ngram', or ''"
    )


def from_ngrams(
  tokens_QP: jax.Array,
  length_Q: jax.Array,
  tokens_BT: jax.Array,
  length_B: jax.Array,
  row_S: jax.Array,
  num_tokens: int,
) -> jax.Array:
  """What followed the longest of the last n-grams, where it was drawn last (J = num).

  A prompt with all its samples so far is searched (prompt lookup, as of
  github.com/apoorvumang/prompt-lookup-decoding, and beyond it the group's answers).

  Args:
    row_S: the row of each slot.

  Returns:
    int32 [S, J]; any tokens where nothing is found.
  """
  num_prompts, num_kept = tokens_QP.shape
  own_QGT = tokens_BT.reshape(num_prompts, -1, tokens_BT.shape[1])
  inside_QP = jnp.arange(num_kept) < length_Q[:, None]
  inside_BT = jnp.arange(tokens_BT.shape[1]) < length_B[:, None]
  text_QC = jnp.concatenate([tokens_QP, own_QGT.reshape(num_prompts, -1)], axis=1)
  inside_QC = jnp.concatenate([inside_QP, inside_BT.reshape(num_prompts, -1)], axis=1)
  prompt_S = row_S // own_QGT.shape[1]
  text_SC, inside_SC = text_QC[prompt_S], inside_QC[prompt_S]

  def before(back: int) -> jax.Array:
    """The token of each slot's text that lies `back` from its end, -1 for none."""
    place_S = length_B[row_S] - back
    own_S = tokens_BT[row_S, jnp.maximum(place_S, 0)]
    asked_S = tokens_QP[prompt_S, jnp.maximum(length_Q[prompt_S] + place_S, 0)]
    found_S = jnp.where(place_S >= 0, own_S, asked_S)
    return jnp.where(length_Q[prompt_S] + place_S >= 0, found_S, -1)

  # How many tokens up to each place are the last ones of the slot's text. That a match
  # may reach over from one sample into another costs nothing but a wrong guess.
  matched_SC = jnp.zeros(text_SC.shape, jnp.int32)
  all_SC = jnp.ones(text_SC.shape, bool)
  for back in range(1, _LONGEST + 1):
    all_SC &= jnp.roll(text_SC, back - 1, axis=1) == before(back)[:, None]
    matched_SC += all_SC
  followed_SC = inside_SC & jnp.roll(inside_SC, -1, axis=1)
  followed_SC = followed_SC.at[:, -1].set(False)
  # The border between two sequences looks like a successor where the first is full.
  place_C = jnp.arange(text_SC.shape[1])
  score_SC = jnp.where(followed_SC, matched_SC, 0) * place_C.size + place_C
  best_S1 = jnp.argmax(score_SC, axis=1)[:, None]
  next_SJ = jnp.minimum(best_S1 + 1 + jnp.arange(num_tokens), place_C.size - 1)
  return jnp.take_along_axis(text_SC, next_SJ, axis=1)
