"""What only algebra can tell, by math-verify.

math-verify is told neither of units, which units.py has read, nor of decimals, which it
would compare to six places: they are handed over as fractions.
"""

import functools
import re
from fractions import Fraction
from typing import Any

import math_verify
from latex2sympy2_extended import NormalizationConfig

from r1jax.rewards import extract

_PLAIN = math_verify.LatexExtractionConfig(
  normalization_config=NormalizationConfig(
    units=False, malformed_operators=True, nits=False, boxed="none"
  )
)
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")


def equal(gold: str, answer: str) -> bool:
  """Whether two cleaned formulas are equal; never where the gold has no meaning.

  A decimal equals a number that is none as its correct rounding.
  """
  golds = parsed(gold)
  if not golds:
    return False
  is_number = getattr(golds[0], "is_number", False)  # which sets and the like lack
  if is_number and "." not in gold and extract.DECIMAL.fullmatch(answer):
    value = golds[0].evalf(40)
    if value.is_Float:
      return extract.rounds_to(Fraction(str(value)), answer)
  answers = parsed(answer)
  if any(map(_proportional, golds, answers)):
    return True
  # The pool has the deadline; math-verify's own would use signals.
  return math_verify.verify(
    list(golds), list(answers), allow_set_relation_comp=True, timeout_seconds=None
  )


def _proportional(gold: Any, answer: Any) -> bool:
  """Whether two equations differ by a factor, as 2x = 10 and x = 5 do."""
  if {getattr(side, "rel_op", None) for side in (gold, answer)} != {"=="}:
    return False
  left, right = gold.lhs - gold.rhs, answer.lhs - answer.rhs
  if left.free_symbols != right.free_symbols or not left.free_symbols:
    return False
  factor = (left.doit() / right.doit()).cancel()
  return bool(factor.is_number and factor.is_finite and factor.is_nonzero)


@functools.lru_cache(maxsize=8192)
def parsed(text: str) -> tuple[Any, ...]:
  """Expressions that a text stands for; none if it is no maths."""
  if not re.search(r"[(\[]", text):  # not the comma of (12,102)
    text = extract.THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
  text = _DECIMAL.sub(lambda m: f"\\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}", text)
  return tuple(
    math_verify.parse(
      f"${text}$", [_PLAIN], fallback_mode="no_fallback", parsing_timeout=None
    )
  )
