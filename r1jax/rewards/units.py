r"""A value and its unit, in one spelling.

A unit is read from the end of a text: a percent or degree sign, words in \text{}, known
units, other words ("42 apples"); currencies stand in front.
"""

import re
from collections.abc import Sequence

from r1jax.rewards import extract

QUOTED = re.compile(r"\\text\{([^{}]*)\}")

_MONEY = re.compile(r"(-?)\s*(\\?\$|€|£)\s*(-?)")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "sterling"}
# The last word of a unit; a word of one letter, or of letters that may well be
# variables, must be quoted or be known from the gold.
_TAIL = re.compile(
  r"(?:\\text\{(?P<quoted>[^{}\d]*)\}|(?<![A-Za-z\\])(?P<plain>[A-Za-z]+)\.?)"
  r"(?:\^\{?(?P<power>[23])\}?)?\s*$"
)
_MARK = re.compile(r"(?:(?P<degree>\^\\circ)|\\?%)\s*(?P<scale>[CF])?\s*$")
_UNITS = {
  spelling: unit
  for unit, spellings in {
    "degree": "deg",
    "dollar": "usd buck",
    "cent": "¢",
    "%": "percent percentage pct",
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inche",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "g": "gram gm",
    "kg": "kilogram",
    "mg": "milligram",
    "lb": "pound",
    "oz": "ounce",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
    "yr": "year",
    "mi/h": "mph",
    "km/h": "kmh kph",
    "c": "celsiu",
    "f": "fahrenheit",
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
  }.items()
  for spelling in (unit, *spellings.split())
}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_PER = ("/", "per", "a", "an", "each")
_LINKS = (*_PER, "of", "in")
_MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# After these words more is said than what is counted.
_NO_UNIT = re.compile(
  r"\b(?:is|are|was|not|no|if|when|where|but|for|since|because|so|than|plus|minus|times"
  r"|over|divided|to|from|only|half|halves|thirds?|fourths?|quarters?|fifths?|sixths?"
  r"|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|mod|modulo|base|more"
  r"|less|factorial|dozens?|pairs?|either|both|about|approximately|roughly|and|or)\b"
)


def split_unit(text: str, *, known: str = "") -> tuple[str, str]:
  r"""A value and its unit in one spelling: "3 sq. cm" and 3\text{ cm}^2 give cm^2.

  Args:
    known: the unit of the gold, whose letters are believed without quotes.

  Returns:
    The value and the unit; (text, "") where there is none, or where what stands after
    the value says more than that.
  """
  money = _MONEY.match(text)
  rest = money[1] + money[3] + text[money.end() :] if money else text
  words: list[str] = []
  while True:
    mark, tail = _MARK.search(rest), _TAIL.search(rest)
    if mark:
      words.insert(0, ("degree" if mark["degree"] else "%") + (mark["scale"] or ""))
    elif tail and _is_unit(tail, words, known):
      found = re.findall(r"[^\s/]+|/", tail["quoted"] or tail["plain"] or "")
      words[:0] = [*found, *([f"^{tail['power']}"] if tail["power"] else [])]
    elif words and rest.rstrip().endswith("/"):
      words.insert(0, "/")
      rest = rest.rstrip()[:-1]
      continue
    else:
      break
    rest = rest[: (mark or tail).start()].rstrip()
  words = [word.strip(".,").lower() for word in words]
  told = _NO_UNIT.search(" ".join(words)) or extract.PROSE.search(QUOTED.sub("", rest))
  if not rest or rest[-1] in ",;:" or told or len(words) > 6:
    return text, ""
  while words and words[0] in _MAGNITUDES:
    rest = f"{rest} \\times 10^{{{_MAGNITUDES[words.pop(0)]}}}"
  return rest, _CURRENCIES[money[2][-1]] if money else _unit(words)


def _is_unit(tail: re.Match, words: list[str], known: str) -> bool:
  if tail["quoted"] is not None:
    return True
  word = _stem(tail["plain"].lower())
  before = tail.string[: tail.start()]
  if tail["power"] or len(word) == 1 or not extract.WORD.fullmatch(tail["plain"]):
    long = len(word) > 1 and (word in _UNITS or word in _POWERS)
    asked = _UNITS.get(word) in re.split(r"[^a-z]+", known)
    return long or asked or bool(words and word in _LINKS)
  return (
    word in _UNITS
    or bool(words)
    or (before[-1:].isspace() and re.search("[aeiou]", word) is not None)
  )


def _stem(word: str) -> str:
  return word if word in _UNITS else word.removesuffix("s")


def _unit(words: Sequence[str]) -> str:
  """One spelling: "square centimeters" as cm^2, "miles per hour" as mi/h."""
  unit, power = "", ""
  for word in words:
    if word in _POWERS:
      power = f"^{_POWERS[word]}"
    elif word.startswith("^"):
      unit += word
    elif word in ("squared", "cubed"):
      unit += "^2" if word == "squared" else "^3"
    elif word in _PER:
      unit += "/"
    else:
      stem = _stem(word)
      blank = " " * bool(unit and unit[-1] != "/")
      unit, power = f"{unit}{blank}{_UNITS.get(stem, stem)}{power}", ""
  return "" if unit.partition("^")[0] == "unit" else unit
