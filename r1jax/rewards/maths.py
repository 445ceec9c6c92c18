r"""Is a mathematical answer equal to the gold? Algebra is math-verify's.

Around it stands what must not depend on how sympy reads a text:

- Numbers (1,234 | 0.5 | 1/2 | 1\frac12 | 2 \times 10^3) are compared exactly. A decimal
  answers an exact gold also as its correct rounding to six or more significant digits:
  0.333333 for 1/3, 3.14159 for \pi. Nothing else is close enough.
- A unit (cm, dollars, degrees, apples) may be left out on either side; two units must
  be the same, and none is converted: 5 m is neither 5 cm nor 500 cm.
- A percent sign is a unit and a factor: 50\% equals 50\%, 0.5 and, left out where the
  gold has it, 50. The gold 50 is answered by 50\% as well, as where the question asks
  for a percentage; not so a gold up to 1, which 1\% or 0.5\% may miss by a hundred.
- The base of a numeral (204_5) may be left out where the gold has one, not added.
- Lists, {sets} and unions match in any order, (tuples), [intervals) and matrices in
  theirs, with the same brackets; \pm is two values. A tuple answers a list written
  without braces, and such a list a tuple, in order. Elements are compared as answers
  are.
- An interval and a relation (1 < x \le 2) may answer one another.
- Words are compared letter by letter; their brackets do not count. The case of letters
  does not count, in formulas neither.
- A ratio (2:3) is no quotient.
- "x =" and the like before a value do not count, but two names must be the same.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from r1jax.rewards import extract, units

# Longer and deeper answers are no answers, and would keep an algebra system busy until
# the pool's deadline; so would numbers like these, which the pool still survives.
MAX_LENGTH = 500
MAX_DEPTH = 10
MAX_ELEMENTS = 32
_TOO_LARGE = re.compile(r"\d{60}|\^\s*\{?\s*\d{6}|\d{6}\)*!|\^\s*\{?\s*\d+\s*\^")

_SYMBOLS = str.maketrans(
  {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "√": r"\sqrt",
    "∞": r"\infty ",
    "±": r"\pm ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "θ": r"\theta ",
    "°": r"^\circ ",
    "²": "^2",
    "³": "^3",
    "½": r"\frac{1}{2}",
    "\u00a0": " ",
    "\u202f": " ",
    "’": "'",
  }
)
_CLEANED = (
  (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])"), ""),
  (re.compile(r"(?<=\d)(?:\{,\}|,\\!\s*)(?=\d)"), ""),
  (re.compile(r"(?<=\d)(?:\\,|\\ )(?=\d{3}(?!\d))"), ","),
  (re.compile(r"\\!|\\displaystyle(?![A-Za-z])|\*\*|`"), ""),
  (re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~"), " "),
  (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
  (
    re.compile(r"\\(?:mbox|text(?:bf|rm|it|normal)|math(?:rm|bf|it))(?=\s*\{)"),
    r"\\text",
  ),
  (re.compile(r"\\text\s*\{([^{}]*)\}"), r"\\text{\1}"),
  (re.compile(r"\\leq(?:slant)?(?![A-Za-z])"), r"\\le "),
  (re.compile(r"\\geq(?:slant)?(?![A-Za-z])"), r"\\ge "),
  (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne "),
  (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
  (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
  (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree"), r"^\\circ"),
  (re.compile(r"\\begin\{[bvBV]?matrix\}"), r"\\begin{pmatrix}"),
  (re.compile(r"\\end\{[bvBV]?matrix\}"), r"\\end{pmatrix}"),
  (re.compile(r"\b(?:infinity|inf)\b"), r"\\infty"),
  (re.compile(r"\\?(?<![A-Za-z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
  (re.compile(r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|log|ln|exp)(?![A-Za-z])"), r"\\\1"),
)

_SEPARATOR = re.compile(
  r"[,;]\s*(?:and|or)(?![A-Za-z])|[,;]|\\cup(?![A-Za-z])"
  r"|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\text\{\s*,?\s*(?:and|or)\s*\}"
)
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
_RELATION = re.compile(r"<|>|\\(?:le|ge|ne|lt|gt)(?![A-Za-z])")
_SET = re.compile(
  r"\\(?:cup|cap|setminus|mathbb|infty|emptyset|varnothing)(?![A-Za-z])"
)
_MEMBER_OF = re.compile(r"\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_NAME = re.compile(
  r"\s*(?:\\?[A-Za-z]+|\\text\{[^{}]*\})(?:_(?:\{\w+\}|\w))?(?:\^\{-1\})?'*"
  r"\s*(?:\([^()]*\))?\s*|\s*\(\s*\\?[A-Za-z]+(?:\s*,\s*\\?[A-Za-z]+)*\s*\)\s*"
)
_BASED = re.compile(
  r"(?P<digits>[\dA-F]+)\s*"
  r"(?:_\s*\{?\s*(?P<index>\d+)\s*\}?|\(?(?:in )?base (?P<said>\d+)\)?)"
)


def verify_math(text: str, problem: Mapping[str, Any]) -> float:
  """1.0 where a reading of the completion (extract.py) equals the gold (above).

  The comparison is not symmetric: the gold goes first. A gold without meaning is never
  matched.
  """
  for answer in extract.readings(text):
    if len(answer) > 2 * MAX_LENGTH:  # with typesetting, which does not count
      continue
    if equal(problem["answer"], answer):
      return 1.0
    if units.split_unit(cleaned(answer))[1]:
      break  # without its unit it would be another answer
  return 0.0


@functools.lru_cache(maxsize=8192)  # the samples of a group often agree
def equal(gold: str, answer: str) -> bool:
  """Whether an answer, without the text around it, is right."""
  if gold.isdecimal() and answer.isdecimal():  # most are, and need no reading
    return gold.lstrip("0") == answer.lstrip("0")
  gold, answer = cleaned(gold), cleaned(answer)
  return (
    bool(gold)
    and bool(answer)
    and max(len(gold), len(answer)) <= MAX_LENGTH
    and max(_depth(gold), _depth(answer)) <= MAX_DEPTH
    and (_TOO_LARGE.search(answer) is None or _TOO_LARGE.search(gold) is not None)
    and _equal(gold, answer)
  )


def cleaned(text: str) -> str:
  """One spelling of what LaTeX and Unicode write in several; no delimiters."""
  text = extract.FORMULA.sub(lambda m: m[m.lastgroup], text.strip())
  text = text.translate(_SYMBOLS)
  for pattern, plain in _CLEANED:
    text = pattern.sub(plain, text)
  return text.strip().rstrip(".,;: \n")


def _depth(text: str) -> int:
  depth = itertools.accumulate(
    (c in "([{") - (c in ")]}") for c in text if c in "([{}])"
  )
  return max(depth, default=0)


def _equal(gold: str, answer: str) -> bool:
  (golds, gold_braces), (answers, answer_braces) = members(gold), members(answer)
  # A tuple's brackets may be forgotten on either side.
  if len(golds) == 1 < len(answers) and _ends(golds[0]) == "()" and not answer_braces:
    answers = [f"({', '.join(answers)})"]
  if len(answers) == 1 < len(golds) and _ends(answers[0]) == "()" and not gold_braces:
    golds = [f"({', '.join(golds)})"]
  if len(golds) != len(answers):
    both = gold + answer
    one_set = _SET.search(both) or _RELATION.search(both)
    return one_set is not None and _algebra(gold, answer)
  if not golds or len(golds) > MAX_ELEMENTS:
    return False
  for one in golds:
    match = next((other for other in answers if _equal_element(one, other)), None)
    if match is None:
      return False
    answers.remove(match)
  return True


def members(text: str) -> tuple[list[str], bool]:
  r"""Values of a list, set or union, \pm as two; and whether it had a set's braces."""
  text = _MEMBER_OF.sub("", text, count=1) if "\\in" in text else text
  _, value = _split_name(text)
  if value.startswith("\\{") or any(_ends(part) for part in _split(value)):
    text = value
  braces = text.startswith("\\{") and text.endswith("\\}")
  found: list[str] = []
  for part in _split(text[2:-2] if braces else text):
    if "\\pm" in part or "\\mp" in part:
      upper = part.replace("\\pm", "+").replace("\\mp", "-")
      lower = part.replace("\\pm", "-").replace("\\mp", "+")
      found += [upper.removeprefix("+"), lower.removeprefix("+")]
    else:
      found.append(part)
  return found, braces


def _split(text: str, *, thousands: bool = True) -> list[str]:
  """Parts between separators outside all brackets; a thousands' comma may be none."""
  inside = {
    i
    for match in extract.THOUSANDS.finditer(text)
    for i in range(match.start(), match.end())
    if thousands
  }
  parts, depth, start, i = [], 0, 0, 0
  while i < len(text):
    separator = None
    if depth == 0 and i not in inside:
      separator = _SEPARATOR.match(text, i)
    if separator:
      parts.append(text[start:i])
      i = start = separator.end()
      continue
    depth += (text[i] in "([{") - (text[i] in ")]}")
    i += 1
  parts.append(text[start:])
  return [part.strip() for part in parts if part.strip()]


def _ends(text: str) -> str:
  """The brackets of a tuple or an interval, as "(]"; empty for anything else."""
  if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
    return ""
  depth = list(itertools.accumulate((c in "([{") - (c in ")]}") for c in text))
  closed = 0 in depth[:-1]
  return "" if closed or len(_inside(text)) < 2 else text[0] + text[-1]


def _inside(text: str) -> list[str]:
  """Elements of a tuple or an interval, in which (1,234) are two."""
  return _split(text[1:-1], thousands=False)


def _equal_element(gold: str, answer: str) -> bool:
  """Equality of two tuples, intervals, matrices, relations or single values."""
  gold_ends, answer_ends = _ends(gold), _ends(answer)
  if gold_ends and answer_ends:
    return gold_ends == answer_ends and _all_equal(_inside(gold), _inside(answer))
  gold_matrix, answer_matrix = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(answer)
  if gold_matrix and answer_matrix:
    rows, others = _rows(gold_matrix[1]), _rows(answer_matrix[1])
    return len(rows) == len(others) and all(map(_all_equal, rows, others))
  relations = [_RELATION.search(text) is not None for text in (gold, answer)]
  if any(relations):
    return (all(relations) or bool(gold_ends or answer_ends)) and _algebra(gold, answer)
  if gold_ends or answer_ends:
    return _SET.search(gold + answer) is not None and _algebra(gold, answer)
  return _equal_named(gold, answer)


def _all_equal(golds: Sequence[str], answers: Sequence[str]) -> bool:
  return len(golds) == len(answers) and all(map(_equal_element, golds, answers))


def _rows(matrix: str) -> list[list[str]]:
  rows = [row for row in matrix.split("\\\\") if row.strip()]
  return [[cell.strip() for cell in row.split("&")] for row in rows]


def _split_name(text: str, *, loosely: bool = False) -> tuple[str, str]:
  """(name, value) of "name = value" and of "name = … = value"; else ("", text).

  Loosely, a name is also an expression that has only letters (x + y = 5) or only
  numerals (3 + 4 = 7), but never an equation to be solved (2x = 10).
  """
  first, *rest = re.split(r"(?<![\\<>!])=", text)
  if not rest:
    return "", text
  if not _NAME.fullmatch(first):
    plain = units.QUOTED.sub(r"\1", first)
    letters = re.search(r"(?<![\\A-Za-z])[A-Za-z]", plain) is not None
    if not loosely or (letters and any(c.isdigit() for c in plain)):
      return "", text
  return first.strip(), rest[-1].strip()


def _equal_named(gold: str, answer: str) -> bool:
  gold_name, gold_value = _split_name(gold)
  answer_name, answer_value = _split_name(answer, loosely="=" not in gold)
  if "=" in gold_value or "=" in answer_value:
    return "=" in gold and "=" in answer and _algebra(gold, answer)
  same_value = _equal_quantity(gold_value, answer_value)
  if gold_name and answer_name and gold_name.casefold() != answer_name.casefold():
    return not same_value and _algebra(gold, answer)  # as y = 2x and x = y/2
  return same_value


def _equal_quantity(gold: str, answer: str) -> bool:
  """Equality of single values with their units."""
  gold, gold_unit = units.split_unit(gold)
  answer, answer_unit = units.split_unit(answer, known=gold_unit)
  if gold_unit == answer_unit or "%" not in (gold_unit, answer_unit):
    same_unit = not gold_unit or not answer_unit or gold_unit == answer_unit
    return same_unit and _equal_value(gold, answer)
  if gold_unit and answer_unit:
    return False
  if gold_unit == "%":
    return _equal_value(gold, answer) or _equal_value(_hundredth(gold), answer)
  value = extract.number(gold)
  asked_in_percent = value is not None and abs(value) > 1
  return (asked_in_percent and _equal_value(gold, answer)) or _equal_value(
    gold, _hundredth(answer)
  )


def _hundredth(text: str) -> str:
  if extract.DECIMAL.fullmatch(text):  # and remains one, which may be rounded
    return f"{Decimal(text).scaleb(-2):f}"
  value = extract.number(text)
  return f"\\frac{{{text}}}{{100}}" if value is None else str(value / 100)


def _equal_value(gold: str, answer: str) -> bool:
  """Equality of numerals, numbers, words, and of what only algebra can tell."""
  if gold == answer and any(c.isalnum() for c in gold) and "\\" not in gold:
    return True
  based, other = _BASED.fullmatch(gold), _BASED.fullmatch(answer)
  if based or other:
    bare = re.fullmatch(r"[\dA-F]+", answer)
    return based is not None and (
      _base(based) == _base(other)
      if other
      else bool(bare) and answer == based["digits"]
    )
  left, right = extract.number(gold), extract.number(answer)
  if left is not None and right is not None:
    return left == right or ("." not in gold and extract.rounds_to(left, answer))
  if ":" in gold or ":" in answer:  # a ratio or a time; not a quotient
    left, right = gold.split(":"), answer.split(":")
    return len(left) == len(right) and all(map(_equal_value, left, right))
  if _is_words(gold) or _is_words(answer):
    return bool(_letters(gold)) and _letters(gold) == _letters(answer)
  return _algebra(gold, answer)


def _base(match: re.Match) -> tuple[str, str]:
  return match["digits"], match["index"] or match["said"]


def _is_words(text: str) -> bool:
  bare = units.QUOTED.sub("", text)
  if any(c.isdigit() or c in "\\^_=" for c in bare):
    return False
  only_quoted = not bare.strip(" ().")
  return only_quoted or extract.WORD.search(text.replace("\\text", "")) is not None


def _letters(text: str) -> str:
  text = units.QUOTED.sub(r"\1", text).casefold()
  return " ".join(re.sub(r"[^\w%+-]+", " ", text).split())


def _algebra(gold: str, answer: str) -> bool:
  if any(extract.WORD.search(units.QUOTED.sub("", text)) for text in (gold, answer)):
    return False  # a sentence, whose letters would be variables, and take an age
  from r1jax.rewards import algebra  # half a second of imports, for reward workers

  return algebra.equal(gold, answer)
