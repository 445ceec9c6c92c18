"""Does an answer say the same thing again and again?"""

import re
from collections.abc import Mapping
from typing import Any

# Words and numbers; of scripts without spaces every letter, else every mark alone.
_PIECES = re.compile(
  r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
  r"|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]"
)


def score(text: str, problem: Mapping[str, Any] | None = None, *, ngram: int) -> float:
  """Minus the share of n-grams that stood in the completion before, in (-1, 0].

  -(1 - distinct n-grams / n-grams) over `ngram` pieces in a row, lower case: Yeo et al.
  2025 (arXiv 2502.03373), appendix C.2, as whole-answer rewards take it; its largest
  penalty is the part's weight. A text of fewer pieces has none, and gives 0. Departs:
  a mark is a piece ("!!!!" repeats itself), and so is a Chinese or Japanese character;
  the paper counts tokens and puts the penalty on them.

  Args:
    text: the completion, without the prompt.
    problem: not looked at; every part has the same arguments.
    ngram: n, 1 or more. Few pieces in a row come again in any long text, formulas most
      of all.
  """
  del problem
  pieces = _PIECES.findall(text.lower())
  num_grams = len(pieces) - ngram + 1
  if num_grams < 1:
    return 0.0
  distinct = set(zip(*(pieces[i:] for i in range(ngram)), strict=False))
  return len(distinct) / num_grams - 1.0
