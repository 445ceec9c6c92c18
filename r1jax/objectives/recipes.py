"""Named compositions, one visible table: what each paper does, and its numbers.

A recipe is the sections of a stage's config that make the algorithm. `loss` (read by
`policy_gradient` and `corrections`), `advantage`, `truncated`, `filter` and `shaping`
are whole in each, so that one recipe replaces another without a rest; `reward` and
`critic` stand only where the paper's algorithm says something of them. What is of the
size of a run (answers of a prompt, learning rate, steps) stays with its config.

Where a number is not the paper's a comment says so.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.errors import one_of

Section = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """One algorithm.

  Attributes:
    source: the paper, and the place in it.
    settings: {section: {key: value}}.
  """

  source: str
  settings: Mapping[str, Section]


# PPO's clip (arXiv 1707.06347), which later papers start from; no KL, no correction.
_LOSS: Section = {
  "ratio": "token",
  "surrogate": "clip",
  "clip_low": 0.2,
  "clip_high": 0.2,
  "clip_dual": None,
  "gate_positive": None,
  "gate_negative": None,
  "kl_coef": 0.0,
  "kl_estimator": "k3",
  "entropy_coef": 0.0,
  "reduction": "sequence_mean",
  "length_constant": None,
  "correction": "none",
  "correction_level": "token",
  "correction_cap": 2.0,
  "correction_veto": 0.0,
}
_NO_CLIP: Section = {"clip_low": None, "clip_high": None}
# The published term -A log p of a whole answer: tokens are summed, answers averaged. It
# has no ratio, so it wants one update of a rollout.
_REINFORCE: Section = {
  **_NO_CLIP,
  "surrogate": "reinforce",
  "reduction": "constant",
  "length_constant": 1.0,
}
# `std` and `eps` divide, `kl_coef` takes k1 off the reward of each token (and so its
# sum off that of an answer), `gamma` and `gae_lambda` carry rewards back along tokens.
_ADVANTAGE: Section = {
  "estimator": "grpo",
  "steps": "",
  "std": "none",
  "eps": 0.0,
  "kl_coef": 0.0,
  "gamma": 1.0,
  "gae_lambda": 1.0,
}
# The deviation over G: the papers do not say which one they mean.
_GRPO_STD: Section = {"std": "population"}
# Points for the length of an answer, see `shaping`; none.
_SHAPING: Section = {
  "overlong_buffer": 0,
  "cosine_correct": (),
  "cosine_wrong": (),
  "cosine_exceeded": 0.0,
  "shortest_bonus": 0.0,
  "outcome_gate": False,
}
_NO_CHANGE: Section = {}


def _recipe(
  source: str,
  *,
  loss: Section,
  advantage: Section = _NO_CHANGE,
  filter_kind: str = "none",
  shaping: Section = _NO_CHANGE,
  **more: Section,
) -> Recipe:
  settings = {
    "loss": {**_LOSS, **loss},
    "advantage": {**_ADVANTAGE, **advantage},
    "truncated": {"kind": "keep", "penalty": 0.0},
    "filter": {"kind": filter_kind},
    "shaping": {**_SHAPING, **shaping},
    **more,
  }
  return Recipe(source, settings)


RECIPES: dict[str, Recipe] = {
  "grpo_r1": _recipe(
    "DeepSeek-R1 (arXiv 2501.12948), Eq. 1 to 3 and its supplement",
    # The clip is stated for the first RL stage of R1, and not again for R1-Zero.
    loss={"clip_low": 10.0, "clip_high": 10.0, "kl_coef": 0.001},
    advantage=_GRPO_STD,
    reward={"weights": {"accuracy": 1.0, "format": 1.0}},
  ),
  "grpo": _recipe(
    "DeepSeekMath (arXiv 2402.03300), sections 4.1 and 4.2",
    loss={"kl_coef": 0.04},  # the clip is PPO's, its own was not published
    advantage=_GRPO_STD,
  ),
  "dr_grpo": _recipe(
    "Understanding R1-Zero-Like Training (arXiv 2503.20783), section 3",
    # The constant is the longest answer allowed, 3,000 tokens in the paper's code.
    loss={"reduction": "constant", "length_constant": 3000.0},
  ),
  "dapo": _recipe(
    "DAPO (arXiv 2503.14476), sections 2.3, 3 and 4.1",
    loss={"clip_high": 0.28, "reduction": "token_mean"},
    advantage=_GRPO_STD,
    filter_kind="mixed",
    shaping={"overlong_buffer": 4096},  # of 20,480 tokens
    # +1 and -1 there: 2 and 0 differ from them by what all answers share.
    reward={"weights": {"accuracy": 2.0, "format": 0.0}},
  ),
  "gspo": _recipe(
    "GSPO (arXiv 2507.18071), sections 4.1 and 5.1",
    loss={"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    advantage=_GRPO_STD,
  ),
  "gspo_token": _recipe(
    "GSPO-token (arXiv 2507.18071), sections 4.3 and 5.1",
    loss={"ratio": "sequence_token", "clip_low": 3e-4, "clip_high": 4e-4},
    advantage=_GRPO_STD,
  ),
  "cispo": _recipe(
    "MiniMax-M1 (arXiv 2506.13585), section 3.1; bound of ScaleRL (arXiv 2510.13786)",
    # No lower bound. MiniMax tunes the upper one and does not publish it; ScaleRL lets
    # ratios reach 5.
    loss={
      "surrogate": "cispo",
      "clip_low": 1.0,
      "clip_high": 4.0,
      "reduction": "token_mean",
    },
    advantage=_GRPO_STD,
  ),
  "sapo": _recipe(
    "SAPO (arXiv 2511.20347)",
    loss={
      **_NO_CLIP,
      "surrogate": "soft_gate",
      "gate_positive": 1.0,
      "gate_negative": 1.05,
    },
    advantage=_GRPO_STD,
  ),
  "rloo": _recipe(
    "Back to Basics (arXiv 2402.14740), section 3 and appendix C",
    loss=_REINFORCE,
    advantage={"estimator": "rloo", "kl_coef": 0.03},
  ),
  "remax": _recipe(
    "ReMax (arXiv 2310.10505)",
    loss=_REINFORCE,
    # Its KL coefficient goes with a reward model; for verified answers there is none.
    advantage={"estimator": "remax"},
  ),
  "reinforce_pp": _recipe(
    "REINFORCE++ (arXiv 2501.03262)",
    loss={"reduction": "token_mean"},
    advantage={"estimator": "reinforce_pp", "kl_coef": 0.001},  # of its mathematics
  ),
  "reinforce_pp_baseline": _recipe(
    "REINFORCE++ with baseline (arXiv 2501.03262)",
    # The coefficient is that of the authors' example, with a reward model.
    loss={"reduction": "token_mean", "kl_coef": 0.01, "kl_estimator": "k2"},
    advantage={"estimator": "reinforce_pp_baseline"},
  ),
  "ppo": _recipe(
    "PPO (arXiv 1707.06347); lambda of DeepSeek-R1 (arXiv 2501.12948), supplement",
    # R1 found lambda 0.95 clearly worse than GRPO, and 1.0 close to it. The KL is that
    # of InstructGPT (arXiv 2203.02155); advantages of deviation 1 and the values' clip
    # are of PPO's code.
    loss={"reduction": "token_mean"},
    advantage={
      "estimator": "gae",
      "std": "population",
      "kl_coef": 0.02,
      "gae_lambda": 1.0,
    },
    critic={"clip": 0.2},
  ),
  "lite_ppo": _recipe(
    "Tricks or Traps, Lite PPO (arXiv 2508.08221)",
    loss={"reduction": "token_mean"},
    advantage={"estimator": "batch_std"},
  ),
}


def settings(name: str) -> dict[str, dict[str, Any]]:
  """{section: {key: value}} of a recipe, to be changed at will."""
  one_of(name, RECIPES, key="recipe")
  return copy.deepcopy({key: dict(own) for key, own in RECIPES[name].settings.items()})
