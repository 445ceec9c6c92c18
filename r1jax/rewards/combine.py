"""Parts by name, and their weighted sum.

Letters: Q prompts, G samples per prompt.
"""

import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.errors import InputError, one_of
from r1jax.rewards import accuracy, code, format, language, repetition

Part = Callable[[str, Mapping[str, Any]], float]
PARTS: dict[str, Part] = {
  "accuracy": accuracy.score,
  "format": format.score,
  "language": language.score,
  "repetition": repetition.score,
}


def choose_parts(
  names: Iterable[str],
  *,
  target_language: str = "en",
  format_kind: Mapping[str, Any] = types.MappingProxyType(
    {"kind": "r1_zero", "strict": True}
  ),
  repetition_ngram: int = 20,
  code_settings: code.Settings | None = None,
) -> dict[str, Part]:
  """The functions of the named parts, to be given to a `RewardPool`.

  Args:
    target_language: see `language.score`.
    format_kind: `kind` and `strict`, see `format.score`.
    repetition_ngram: see `repetition.score`.
    code_settings: of `code.prepare`; None where no problem has the verifier "code".

  Raises:
    InputError: an unknown part, or settings that a part does not have.
  """
  one_of(target_language, language.LANGUAGES, key="config.reward.language")
  if set(format_kind) != {"kind", "strict"}:
    raise InputError(
      f"config.reward.format has {sorted(format_kind)}; needed: kind, strict"
    )
  one_of(format_kind["kind"], format.KINDS, key="config.reward.format.kind")
  if repetition_ngram < 1:
    raise InputError(
      f"config.reward.repetition_ngram={repetition_ngram}; needed: 1 or more"
    )
  settled: dict[str, Part] = {
    "format": functools.partial(format.score, **format_kind),
    "language": language.Consistency(target_language),
    "repetition": functools.partial(repetition.score, ngram=repetition_ngram),
  }
  if code_settings is not None:
    settled["accuracy"] = functools.partial(
      accuracy.score, settings={"code": {"settings": code_settings}}
    )
  parts = {}
  for name in names:
    part = PARTS[one_of(name, PARTS, key="config.reward.weights")]
    parts[name] = settled.get(name, part)
  if not parts:
    raise InputError(f"config.reward.weights is empty; allowed: {', '.join(PARTS)}")
  return parts


def combine(
  parts_QG: Mapping[str, np.ndarray],
  weights_Q: Sequence[Mapping[str, float]],
  *,
  normalise: str = "none",
) -> np.ndarray:
  """total[q, g] = sum over parts of weight[q] * part[q, g], float32 points.

  DeepSeek-R1 report (arXiv 2501.12948), section 2.2: accuracy plus format at the same
  weight; its supplement: other parts for other prompts. A part without a weight, or
  with the weight 0, is only logged.

  Args:
    parts_QG: NaN where a part says nothing, which needs a prompt that does not weigh
      it.
    weights_Q: of the parts, for each prompt.
    normalise: "none", or "per_part": each part is first brought to mean 0 and standard
      deviation 1 (over G, not G - 1) within its group, so that a part of small spread
      is not drowned by another; parts without spread become 0.

  Raises:
    InputError: a weight for an unknown part; an unknown way to normalise.
  """
  one_of(normalise, NORMALISE, key="config.reward.normalise")
  total_QG = np.zeros(next(iter(parts_QG.values())).shape, np.float32)
  for name in dict.fromkeys(name for weights in weights_Q for name in weights):
    one_of(name, parts_QG, key="config.reward.weights")
    weight_Q1 = np.asarray([[own.get(name, 0.0)] for own in weights_Q], np.float32)
    part_QG = np.where(weight_Q1 == 0, 0, np.asarray(parts_QG[name], np.float32))
    total_QG = total_QG + weight_Q1 * NORMALISE[normalise](part_QG)
  return np.asarray(total_QG, np.float32)


def within_group(part_QG: np.ndarray) -> np.ndarray:
  centred_QG = part_QG - part_QG.mean(axis=1, keepdims=True)
  std_Q1 = part_QG.std(axis=1, keepdims=True)
  # Equal rewards may leave rounding behind, which must not be blown up to 1.
  flat_Q1 = part_QG.max(axis=1, keepdims=True) == part_QG.min(axis=1, keepdims=True)
  return np.where(flat_Q1, 0.0, centred_QG / np.where(flat_Q1, 1.0, std_Q1))


NORMALISE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "none": lambda part_QG: part_QG,
  "per_part": within_group,
}
