"""Policy terms: per-token costs from the ratio of new to old probability.

A ratio (`RATIOS`) says whose probability is compared, the token's or the answer's. A
surrogate (`SURROGATES`) says what a token of that ratio and an advantage costs, and how
far the ratio may move before a token stops pulling.

Letters: B rows, L tokens in a row. Rows are packed, so an advantage is given per token.
"""

import jax
import jax.numpy as jnp

from r1jax.errors import InputError
from r1jax.objectives import segments


def token_ratio(logp_BL, logp_old_BL, mask_BL, segments_BL):
  """log(pi / pi_old) of each token: DeepSeekMath (arXiv 2402.03300) Eq. 3."""
  del mask_BL, segments_BL
  return logp_BL - jax.lax.stop_gradient(logp_old_BL)


def sequence_ratio(logp_BL, logp_old_BL, mask_BL, segments_BL):
  """The mean of the answer's token log-ratios, on each of its tokens.

  GSPO (arXiv 2507.18071) section 4.1: the ratio of the answers' likelihoods to the
  power of 1 / |o|. All tokens of an answer are clipped together.
  """
  token_BL = token_ratio(logp_BL, logp_old_BL, mask_BL, segments_BL)
  return segments.mean(token_BL, mask_BL, segments_BL)


def sequence_token_ratio(logp_BL, logp_old_BL, mask_BL, segments_BL):
  """The value of `sequence_ratio` with the gradient of the token's own log-prob.

  GSPO-token (arXiv 2507.18071) section 4.3; equal to GSPO where all tokens of an answer
  have one advantage.
  """
  sequence_BL = sequence_ratio(logp_BL, logp_old_BL, mask_BL, segments_BL)
  return jax.lax.stop_gradient(sequence_BL - logp_BL) + logp_BL


RATIOS = {
  "token": token_ratio,
  "sequence": sequence_ratio,
  "sequence_token": sequence_token_ratio,
}


def clip(logp_BL, log_ratio_BL, adv_BL, *, clip_low, clip_high):
  """-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A).

  DeepSeek-R1 report (arXiv 2501.12948) Eq. 1, the inner minimum without the KL term.
  Departs: the report writes the ratio for a whole answer; with the ratio "token" this
  is per token, as in DeepSeekMath (arXiv 2402.03300) Eq. 3.

  R1's clip of 10 allows ratios in [-9, 11]: a good token stops gaining at 11 times its
  old probability, and nothing ever limits how far a bad one is pushed down.

  Only one side is ever active: the upper for a positive advantage, the lower for a
  negative one. A ratio outside on the other side still learns, and is not clipped.
  """
  del logp_BL
  ratio_BL = jnp.exp(log_ratio_BL)
  inside_BL = jnp.clip(ratio_BL, 1.0 - clip_low, 1.0 + clip_high)
  above_BL = (adv_BL > 0) & (ratio_BL > 1.0 + clip_high)
  below_BL = (adv_BL < 0) & (ratio_BL < 1.0 - clip_low)
  return -jnp.minimum(ratio_BL * adv_BL, inside_BL * adv_BL), above_BL | below_BL


def dual_clip(logp_BL, log_ratio_BL, adv_BL, *, clip_low, clip_high, clip_dual):
  """`clip`, and a negative advantage A costs clip_dual * |A| at most.

  Dual-clip PPO (Ye et al., arXiv 1912.09729): else a bad token that became far more
  probable has a gradient as large as its ratio.

  Args:
    clip_dual: the largest ratio that counts, above 1 + clip_high.
  """
  cost_BL, clipped_BL = clip(
    logp_BL, log_ratio_BL, adv_BL, clip_low=clip_low, clip_high=clip_high
  )
  most_BL = jnp.where(adv_BL < 0, -clip_dual * adv_BL, jnp.inf)
  return jnp.minimum(cost_BL, most_BL), clipped_BL | (cost_BL > most_BL)


def cispo(logp_BL, log_ratio_BL, adv_BL, *, clip_low, clip_high):
  """-w' A logp, with w' the clipped ratio as a constant: every token keeps a gradient.

  MiniMax-M1 (arXiv 2506.13585) section 3.1. It sets no lower bound: clip_low of 1 or
  more is none. Code that gives one absolute cap (ScaleRL, arXiv 2510.13786) means
  1 + clip_high by it.
  """
  ratio_BL = jax.lax.stop_gradient(jnp.exp(log_ratio_BL))
  weight_BL = jnp.clip(ratio_BL, 1.0 - clip_low, 1.0 + clip_high)
  return -weight_BL * adv_BL * logp_BL, weight_BL != ratio_BL


def soft_gate(logp_BL, log_ratio_BL, adv_BL, *, gate_positive, gate_negative):
  """-(4 / tau) sigmoid(tau (w - 1)) A: a gate that closes gradually on either side.

  SAPO (arXiv 2511.20347). At w = 1 its slope is that of w A.

  Args:
    gate_positive, gate_negative: tau, how fast the gate closes, for advantages above 0
      and for the others.
  """
  del logp_BL
  tau_BL = jnp.where(adv_BL > 0, gate_positive, gate_negative)
  gate_BL = jax.nn.sigmoid(tau_BL * jnp.expm1(log_ratio_BL)) * 4.0 / tau_BL
  return -gate_BL * adv_BL, None


def reinforce(logp_BL, log_ratio_BL, adv_BL):
  """-A logp: Williams (1992); right only for tokens drawn from the weights trained."""
  del log_ratio_BL
  return -adv_BL * logp_BL, None


# Name -> (function, the settings that it reads). A function returns costs, and True on
# tokens that a bound acts on, or None where there is no bound.
SURROGATES = {
  "clip": (clip, ("clip_low", "clip_high")),
  "dual_clip": (dual_clip, ("clip_low", "clip_high", "clip_dual")),
  "cispo": (cispo, ("clip_low", "clip_high")),
  "soft_gate": (soft_gate, ("gate_positive", "gate_negative")),
  "reinforce": (reinforce, ()),
}


def cost(
  name: str,
  logp_BL: jax.Array,
  log_ratio_BL: jax.Array,
  adv_BL: jax.Array,
  settings: dict[str, float | None],
) -> tuple[jax.Array, jax.Array | None]:
  """(cost_BL, clipped_BL) of one of `SURROGATES`, with those settings that it reads.

  Raises:
    InputError: a setting that it reads is None.
  """
  function, reads = SURROGATES[name]
  for key in reads:
    if settings[key] is None:
      raise InputError(
        f"config.loss.{key}=None with config.loss.surrogate={name!r}: give a number"
      )
  adv_BL = jax.lax.stop_gradient(adv_BL)
  return function(logp_BL, log_ratio_BL, adv_BL, **{k: settings[k] for k in reads})
