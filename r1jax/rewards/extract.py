r"""Where the answer stands in a completion, and which numbers a text holds.

The order in which an answer is looked for, the first that is there:

1. Only what follows the last `</think>` counts, or what stands outside an unfinished
   thought.
2. The last complete `<answer>…</answer>`; an opened tag without its end is no answer.
3. In what 2 leaves, the last complete `\boxed{…}`;
4. else what follows the last `####` on its line (GSM8K's own mark);
5. else what follows the last "answer is" or "answer:", to the end of its sentence;
6. else all of the `<answer>` content; without tags the formula or number that ends
   last, in which "3, 5 and 7" is one answer.
"""

import re
from decimal import Decimal
from fractions import Fraction

from r1jax.boxes import last_boxed

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_CUE = re.compile(
  r"\banswers?\b[*_]*(?:\s+(?:is|are|(?:would|must) be)\b(?!\s+not\b)\s*:?|\s*[:=])"
  r"[*_]*",
  re.IGNORECASE,
)
# A full stop within a number ends no sentence, nor does one within "5 sq. cm".
_SENTENCE_END = re.compile(r"\n|[.;!?](?=\s+[A-Z$\\(]|\s*$)")
# Where `$` stands for money, a blank or a digit beside it tells.
FORMULA = re.compile(
  r"\$\$(?P<block>(?:\\\$|[^$])+)\$\$"
  r"|(?<!\\)\$(?=\S)(?P<inline>(?:\\\$|[^$\n])*?\S)(?<!\\)\$(?!\d)"
  r"|\\\((?P<round>.+?)\\\)|\\\[(?P<square>.+?)\\\]",
  re.DOTALL,
)
_JOINED = re.compile(r",?\s*(?:\b(?:and|or)\b)?\s*")
_SERIES = re.compile(
  r"-?\d[\d.]*(?:,\s*-?\d[\d.]*)*,?\s+(?:and|or)\s+-?\d[\d.]*(?<!\.)(?!\w)"
)
# An ordered pair or an interval in plain text, else a word.
_RUN = re.compile(r"[(\[][^()\[\]A-Za-z]*,[^()\[\]A-Za-z]*[)\]]|\S+")
# A word of prose, or of a unit: no product of variables, no function.
WORD = re.compile(
  r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|exp|theta|alpha"
  r"|beta|gamma|sqrt|frac|inf)(?![A-Za-z]))[A-Za-z]{3,}"
)

# Short words make prose too, other than in "ab + 2"; not \in and the like.
PROSE = re.compile(
  rf"{WORD.pattern}|(?<!\\)\b(?:is|are|or|so|of|in|by|we|it|as|to|at|an)\b"
)
# Beside a number these make it another.
_BEFORE = re.compile(
  r"\b(?:not|no|least|most|than|about|approximately|roughly|nearly|almost|over|under"
  r"|above|below|between|except)\W*$"
)
_AFTER = re.compile(
  r"\W*(?:(?:and )?(?:a |one )?(?:half|halves|thirds?|fourths?|quarters?|fifths?"
  r"|sixths?|sevenths?|eighths?|ninths?|tenths?)|hundred|thousand|million|billion"
  r"|trillion|hundredths|thousandths|dozens?|pairs?|factorial|mod|modulo|squared|cubed|more|less)\b"
)
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
DECIMAL = re.compile(r"-?(\d*)\.(\d+)")
MIN_DIGITS = 6  # of a decimal that stands for an exact number

_FRACTION = re.compile(
  r"(?:(?P<before>\d)\s*)?\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"
)
_TIMES_TEN = re.compile(r"\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^")
_TEN = "⏨"  # Unicode's mark for a decimal exponent
# The exponent of a unit or a name, an index, a base: no number of their own.
_RAISED = re.compile(r"(?<=[A-Za-z)}\]])\^(?:\{[^{}]*\}|\w)|_(?:\{[^{}]*\}|\w+)|[²³]")
_NUMBER = re.compile(
  r"(?P<sign>(?<![\w)\]}.])[-+])?(?:\$\s?(?P<minus>-)?)?"
  r"(?:(?P<whole>\d+)\s+(?=\d+\s?/\s?\d))?"
  r"(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
  r"(?:[eE](?P<e>[-+]?\d{1,3})(?!\w)|⏨\{?(?P<ten>[-+]?\d{1,3})\}?"
  r"|\^(?:\{(?P<power>-?\d{1,2})\}|(?P<digit>\d))"
  r"|\s?/\s?(?P<below>\d+(?!\d|\.\d)))?"
)


def answer_span(text: str) -> tuple[str | None, bool]:
  """The part of a completion in which the answer stands, and whether tags mark it.

  Steps 1 and 2 of the order above; None for a tag that was opened and not closed.
  """
  final = text.rpartition("</think>")[2]
  if "<answer>" in final:
    found = _ANSWER.findall(final)
    return (found[-1].strip(), True) if found else (None, True)
  return final.partition("<think>")[0].strip(), False


def marked(span: str) -> str | None:
  """Steps 3 to 5 of the order above; None where nothing marks the answer."""
  boxed = last_boxed(span)
  if boxed is not None:
    return boxed
  hashes = span.rpartition("####")
  if hashes[1]:
    return hashes[2].strip().partition("\n")[0].strip()
  return said(span)


def said(span: str) -> str | None:
  """Step 5: what follows the last "answer is", to the end of its sentence."""
  cues = list(_CUE.finditer(span))
  if not cues:
    return None
  rest = span[cues[-1].end() :].strip()
  end = _SENTENCE_END.search(rest)
  return rest[: end.start()].strip() if end else rest


def readings(text: str) -> tuple[str, ...]:
  """What may be meant by the answer of a completion: all of it, or its formula.

  Where words stand around a formula or a number ("42, by symmetry"), the second reading
  is without them: the first formula or number where the answer was marked, else the
  last. Not where a word beside it makes it another ("at least 5", "5 million").
  """
  span, tagged = answer_span(text)
  if not span:
    return ()
  answer = marked(span)
  whole = span if answer is None else answer
  if not PROSE.search(FORMULA.sub("", whole)):
    return (whole,)
  found = _formulas(whole)
  chosen = [
    formula
    for start, end, formula in (found[-1:] if answer is None else found[:1])
    if not _BEFORE.search(whole, max(0, start - 20), start)
    and not _AFTER.match(whole, end)
  ]
  return tuple(chosen) if answer is None and not tagged else (whole, *chosen)


def _formulas(text: str) -> list[tuple[int, int, str]]:
  """Where formulas and numbers begin and end, in order; "3, 5 and 7" is one of them."""
  found: list[tuple[int, int, str]] = []
  for match in FORMULA.finditer(text):
    if found and _JOINED.fullmatch(text, found[-1][1], match.start()):
      start, _, before = found.pop()
      found.append((start, match.end(), f"{before}, {match[match.lastgroup]}"))
    else:
      found.append((match.start(), match.end(), match[match.lastgroup]))
  outside = FORMULA.sub(lambda m: " " * len(m[0]), text)
  for match in _SERIES.finditer(outside):
    found.append((match.start(), match.end(), match[0]))
    outside = outside[: match.start()] + " " * len(match[0]) + outside[match.end() :]
  for match in _RUN.finditer(outside):
    # The word is kept whole: "2x", "2^5" and "7/2" are no answer of 2, 5 or 2.
    if not any(c.isdigit() for c in match[0]):
      continue
    run = match[0].strip(",.;:!?*\"'").rpartition("=")[2]
    if sum(run.count(c) for c in "([") != sum(run.count(c) for c in ")]"):
      run = run.strip("()[],.")
    found.append((match.start(), match.end(), run))
  return sorted(found)


def plain_fractions(text: str) -> str:
  r"""`\frac{1}{2}` as 1/2 and `3\frac12` as 3 1/2, where both parts are whole."""

  def plain(match: re.Match) -> str:
    before, *parts = match.groups()
    above, below = (part for part in parts if part)
    return f"{before} {above}/{below}" if before else f"{above}/{below}"

  return _FRACTION.sub(plain, text) if "frac" in text else text


def _tidied(text: str) -> str:
  text = text.replace("−", "-").replace("{,}", ",").replace(",\\!", ",")
  return _TIMES_TEN.sub(_TEN, plain_fractions(text))


def _value(match: re.Match) -> Fraction | None:
  """None over zero, for a power of a long number, and for the "1 7/2" of a list."""
  value = Fraction(Decimal(match["number"].replace(",", "")))
  tens = match["e"] or match["ten"]
  power = match["power"] or match["digit"]
  if tens is not None:
    value *= Fraction(10) ** int(tens)
  elif power is not None:
    if value == 0 or len(match["number"]) > 9:
      return None
    value **= int(power)
  elif match["below"] is not None:
    if int(match["below"]) == 0:
      return None
    value /= int(match["below"])
  if match["whole"] is not None:
    if value >= 1:
      return None
    value += int(match["whole"])
  negative = match["minus"] is not None or match["sign"] == "-"
  return -value if negative else value


def numbers(text: str) -> list[Fraction]:
  """Every number of a text in order: 1,234 | $5 | -3.50 | 7/2 | 1 1/2 | 2e3; exact.

  Not one over zero; not the exponent, index or base of something else.
  """
  text = _RAISED.sub("", _tidied(text)).replace("\\", "")
  values = (_value(match) for match in _NUMBER.finditer(text))
  return [value for value in values if value is not None]


def number(text: str) -> Fraction | None:
  """The number that all of a text is, exactly; None where it is anything else."""
  match = _NUMBER.fullmatch(_tidied(text.strip()).replace("\\$", "$"))
  return None if match is None else _value(match)


def rounds_to(value: Fraction, text: str) -> bool:
  """Whether a decimal of enough digits is the correct rounding of a value."""
  match = DECIMAL.fullmatch(text)
  if match is None or len((match[1] + match[2]).lstrip("0")) < MIN_DIGITS:
    return False
  return abs(Fraction(text) - value) <= Fraction(1, 2 * 10 ** len(match[2]))
