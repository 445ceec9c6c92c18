r"""Right and wrong answers made from a gold, with the reason as their kind.

Every maker knows by its own arithmetic whether what it writes is right; it does not ask
the verifier. Near misses are compared with the gold in exact numbers, or at random
points where the gold is a formula, and those that are equal after all are left out.
"""

import math
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple


class Case(NamedTuple):
  kind: str
  answer: str
  right: bool


_INTEGER = re.compile(r"-?\d+(?:,(?:\\!\s*)?\d{3})*")
_DECIMAL = re.compile(r"-?\d*\.\d+")
_FRACTION = re.compile(
  r"(?P<sign>-?)\\[dt]?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))"
)
_MIXED = re.compile(r"(?P<whole>\d+)\s*\\[dt]?frac\{(?P<above>\d+)\}\{(?P<below>\d+)\}")
_DEGREES = re.compile(r"(?P<number>-?\d+)\s*\^\{?\\circ\}?")
_MONEY = re.compile(r"\\\$(?P<number>[\d,.\\!]+)")
_UNIT = re.compile(
  r"(?P<number>[\d.]+|\\frac\{\d+\}\{?\d+\}?)\s*\\(?:text|mbox)\{ ?(?P<unit>[a-z]+)\}"
  r"(?P<power>\^2)?"
)
_BASED = re.compile(r"(?P<digits>\d+)_\{?(?P<base>\d+)\}?")
_LETTER = re.compile(r"\\text\{\((?P<letter>[A-J])\)\}")
_WORD = re.compile(r"\\text\{(?P<word>[A-Za-z]+)\}")
_MATRIX = re.compile(r"\\begin\{pmatrix\}(?P<rows>.+)\\end\{pmatrix\}")
_TUPLE = re.compile(r"\((?P<items>[^()\[\]]*,[^()\[\]]*)\)")
_INTERVAL = re.compile(
  r"(?P<open>[(\[])(?P<low>[^,()\[\]]+),(?P<high>[^,()\[\]]+)(?P<close>[)\]])"
)

# Spellings of one unit, and another unit.
_UNITS = {
  "cm": (("centimeters",), "m"),
  "inches": (("in", "inch"), "feet"),
  "cents": (("cents", "cent"), "dollars"),
  "degrees": (("degrees",), "radians"),
}


def perturb(gold: str, rng: random.Random) -> Iterator[Case]:
  """Cases of a gold answer of a kind that is known here; none of another."""
  plain = re.sub(r"\\(?:left|right)(?![a-z])", "", gold).strip()
  value = value_of(plain)
  cases: Iterator[Case]
  if value is not None:
    cases = numbers(plain, value, rng)
  elif match := _DEGREES.fullmatch(plain):
    cases = degrees(int(match["number"]))
  elif match := _MONEY.fullmatch(plain):
    cases = money(Fraction(re.sub(r"[,\\!]", "", match["number"])))
  elif match := _UNIT.fullmatch(plain):
    cases = units(match["number"], match["unit"], match["power"] or "")
  elif match := _BASED.fullmatch(plain):
    cases = based(match["digits"], int(match["base"]))
  elif match := _LETTER.fullmatch(plain):
    cases = letters(match["letter"])
  elif match := _WORD.fullmatch(plain):
    cases = words(match["word"])
  elif match := _MATRIX.fullmatch(plain):
    cases = matrices(match["rows"])
  elif re.search(r"infty|[\[\]]|\\cup", plain):
    cases = intervals(plain)
  elif match := _TUPLE.fullmatch(plain):
    cases = tuples([item.strip() for item in match["items"].split(",")])
  elif "," in plain or "\\pm" in plain:
    cases = lists(plain)
  elif "=" in plain:
    cases = equations(plain, rng)
  else:
    cases = formulas(plain, rng)
  yield from unchanged(gold, plain)
  yield from cases


def value_of(text: str) -> Fraction | None:
  """The exact value of a whole number, decimal, fraction or mixed number."""
  if _INTEGER.fullmatch(text):
    return Fraction(re.sub(r"[^-\d]", "", text))
  if _DECIMAL.fullmatch(text):
    return Fraction(Decimal(text))
  if (match := _MIXED.fullmatch(text)) and int(match["below"]):
    return int(match["whole"]) + Fraction(int(match["above"]), int(match["below"]))
  if match := _FRACTION.fullmatch(text):
    above, below = (int(part) for part in match.groups()[1:] if part)
    return Fraction(-above if match["sign"] else above, below) if below else None
  return None


def unchanged(gold: str, plain: str) -> Iterator[Case]:
  """Typesetting that says nothing."""
  yield Case("same", gold, True)
  yield Case("dollars", f"${gold}$", True)
  yield Case("parentheses", f"\\( {gold} \\)", True)
  yield Case("blanks", f"  {gold} ", True)
  yield Case("full_stop", f"{gold}.", True)
  yield Case("bold", f"**{gold}**", True)
  if "frac" in plain:
    one = re.sub(r"\\[dt]?frac", lambda m: "\\dfrac", plain)
    yield Case("dfrac", one, True)
    yield Case("tfrac", one.replace("dfrac", "tfrac"), True)
  if re.search(r"[(\[]", plain) and "text" not in plain:
    sized = re.sub(r"(?<!\\)[(\[]", lambda m: f"\\left{m[0]} ", plain)
    sized = re.sub(r"(?<!\\)[)\]]", lambda m: f" \\right{m[0]}", sized)
    yield Case("left_right", sized, True)
    yield Case("big", sized.replace("left", "bigl").replace("right", "bigr"), True)
  if not re.search(r"text|mbox|matrix|\$", plain) and value_of(plain) is None:
    yield Case("blanks_within", re.sub(r"([-+,=])", r" \1 ", plain), True)
    yield Case("thin_blanks", re.sub(r"(,)(?!\\)", r"\1\\,", plain), True)


def decimal_of(value: Fraction) -> str | None:
  """Exactly, or None where a decimal has no end."""
  below = value.denominator
  for prime in (2, 5):
    while below % prime == 0:
      below //= prime
  if below != 1:
    return None
  number = Decimal(value.numerator) / Decimal(value.denominator)
  return f"{number:f}"


def fraction_of(value: Fraction, times: int = 1) -> str:
  above, below = abs(value.numerator) * times, value.denominator * times
  return f"{'-' * (value < 0)}\\frac{{{above}}}{{{below}}}"


def numbers(plain: str, value: Fraction, rng: random.Random) -> Iterator[Case]:
  exact = decimal_of(value)
  sign, size = "-" * (value < 0), abs(value)
  yield Case("fraction", fraction_of(value), True)
  yield Case("slash", f"{value.numerator}/{value.denominator}", True)
  yield Case("unreduced", fraction_of(value, 3), True)
  yield Case("equation", f"x = {plain}", True)
  yield Case("equation_named", f"f(2) = {plain}", True)
  yield Case("chain", f"x = 2 + 3 = {plain}", True)
  yield Case("unit", f"{plain} \\text{{ units}}", True)
  yield Case("unit_square", f"{plain}\\text{{ cm}}^2", True)
  yield Case("words", f"{plain} square meters", True)
  yield Case("degree", f"{plain}^\\circ", True)
  yield Case("degree", f"{plain}^{{\\circ}}", True)
  if exact is not None:
    point = exact if "." in exact else exact + "."
    yield Case("trailing_zeros", point + "00", True)
    yield Case("currency", f"{sign}\\${exact.lstrip('-')}", True)
    digits = len(exact.strip("-").replace(".", "").lstrip("0"))
    power = math.floor(math.log10(size)) if size else 0
    if value and digits < 12:
      short = decimal_of(value / Fraction(10) ** power)
      yield Case("scientific", f"{short} \\times 10^{{{power}}}", True)
      yield Case("scientific", f"{short}e{power}", True)
      yield Case("scientific_wrong", f"{short} \\times 10^{{{power + 1}}}", False)
    yield Case("percent", f"{decimal_of(value * 100)}\\%", True)
  if value.denominator == 1 and size >= 1000:
    yield Case("thousands", f"{value.numerator:,}", True)
    yield Case("thousands", f"{value.numerator:,}".replace(",", "{,}"), True)
    yield Case("thousands", f"{value.numerator:,}".replace(",", "\\,"), True)
    yield Case("thousands_cut", f"{value.numerator:,}".rpartition(",")[0], False)
  if value.denominator == 1 and size > 1:
    yield Case("percent_asked", f"{value.numerator}\\%", True)
    yield Case("percent_as_number", f"{decimal_of(value / 100)}", False)
  if size <= 1 and exact is not None and value:
    yield Case("percent_too_small", f"{exact}\\%", False)
  if value.denominator != 1 and size > 1:
    whole, rest = divmod(abs(value.numerator), value.denominator)
    mixed = f"\\frac{{{rest}}}{{{value.denominator}}}"
    yield Case("mixed", f"{sign}{whole}{mixed}", True)
    yield Case("mixed", f"{sign}{whole} {rest}/{value.denominator}", True)
    yield Case("mixed_wrong", f"{sign}{whole + 1}{mixed}", False)
    yield Case("mixed_cut", f"{sign}{mixed}", False)
  if exact is None:
    yield Case("rounded", f"{float(value):.9f}", size > Fraction(1, 10_000))
    yield Case("rounded_roughly", f"{float(value):.2f}", False)
  wrong = {
    "sign": -value,
    "one_more": value + 1,
    "one_less": value - 1,
    "times_ten": value * 10,
    "over_ten": value / 10,
    "half_more": value + Fraction(1, 2),
    "above": Fraction(value.numerator + 1, value.denominator),
    "below": Fraction(value.numerator, value.denominator + 1),
    "square": value * value,
  }
  if value:
    wrong["reciprocal"] = 1 / value
  for kind, other in wrong.items():
    if other != value:
      text = decimal_of(other)
      yield Case(kind, fraction_of(other) if text is None else text, False)
  for text in changed_digits(plain, rng):
    if value_of(text) != value:
      yield Case("digit", text, False)
  if value:
    yield Case("variable", f"{plain}x", False)
  yield Case("two", f"{plain}, {value.numerator + 1}", False)
  yield Case("either", f"{plain} or {value.numerator + 1}", False)


def changed_digits(text: str, rng: random.Random, count: int = 2) -> Iterator[str]:
  places = [m.start() for m in re.finditer(r"\d", text)]
  for place in rng.sample(places, min(count, len(places))):
    digit = str((int(text[place]) + rng.randint(1, 8)) % 10)
    yield text[:place] + digit + text[place + 1 :]


def degrees(number: int) -> Iterator[Case]:
  yield Case("degree", f"{number}", True)
  yield Case("degree", f"{number}°", True)
  yield Case("degree", f"{number}^{{\\circ}}", True)
  yield Case("degree", f"{number} degrees", True)
  yield Case("degree", f"{number} \\text{{ degrees}}", True)
  yield Case("degree_equation", f"\\angle ABC = {number}^\\circ", True)
  yield Case("degree_wrong", f"{number + 1}^\\circ", False)
  yield Case("degree_wrong", f"{number}0^\\circ", False)
  yield Case("degree_wrong", f"{180 - number if number != 90 else 91}^\\circ", False)
  yield Case("degree_unit", f"{number} \\text{{ radians}}", False)
  yield Case("degree_unit", f"{number}\\%", False)


def money(amount: Fraction) -> Iterator[Case]:
  text = decimal_of(amount)
  yield Case("money", text, True)
  yield Case("money", f"${text}", True)
  yield Case("money", f"\\${text}", True)
  yield Case("money", f"{text} dollars", True)
  yield Case("money", f"{text}\\text{{ dollars}}", True)
  yield Case("money", f"\\${float(amount):,.2f}", True)
  yield Case("money_unit", f"{text} cents", False)
  yield Case("money_unit", f"€{text}", False)
  yield Case("money_wrong", f"\\${decimal_of(amount + 1)}", False)
  yield Case("money_wrong", f"\\${decimal_of(amount / 10)}", False)
  yield Case("money_wrong", f"\\${decimal_of(amount + Fraction(1, 100))}", False)


def units(number: str, unit: str, power: str) -> Iterator[Case]:
  spellings, other = _UNITS[unit]
  yield Case("unit_left_out", number, True)
  for spelling in (unit, *spellings):
    yield Case("unit_spelling", f"{number}\\text{{ {spelling}}}{power}", True)
    yield Case("unit_spelling", f"{number} \\mathrm{{{spelling}}}{power}", True)
    if power:
      yield Case("unit_words", f"{number} square {spelling}", True)
      yield Case("unit_words", f"{number} \\text{{ sq. {spelling}}}", True)
      yield Case("unit_power", f"{number}\\text{{ {spelling}}}", False)
      yield Case("unit_power", f"{number}\\text{{ {spelling}}}^3", False)
  yield Case("unit_other", f"{number} \\text{{ {other}}}{power}", False)
  digits = re.sub(r"\d", lambda m: str((int(m[0]) + 1) % 10), number, count=1)
  yield Case("unit_number", f"{digits}\\text{{ {unit}}}{power}", False)


def based(digits: str, base: int) -> Iterator[Case]:
  yield Case("base", f"{digits}_{{{base}}}", True)
  yield Case("base", f"{digits}_{base}", True)
  yield Case("base", f"{digits} (base {base})", True)
  yield Case("base_left_out", digits, True)
  yield Case("base_other", f"{digits}_{base + 1}", False)
  yield Case("base_other", f"{digits}_{{10}}", False)
  yield Case("base_ten", str(int(digits, base)), False)
  yield Case("base_digit", f"{digits[:-1]}{(int(digits[-1]) + 1) % base}_{base}", False)


def letters(letter: str) -> Iterator[Case]:
  for text in ("{0}", "({0})", "\\textbf{{({0})}}", "\\mathrm{{{0}}}", "{0}."):
    yield Case("letter", text.format(letter), True)
    for other in "ABCDE":
      if other != letter:
        yield Case("letter_other", text.format(other), False)
  yield Case("letter_two", f"{letter} or {'A' if letter != 'A' else 'B'}", False)


def words(word: str) -> Iterator[Case]:
  yield Case("word", word, True)
  yield Case("word", word.upper(), True)
  yield Case("word", word.lower(), True)
  yield Case("word", f"\\text{{ {word} }}", True)
  yield Case("word", f"\\mathrm{{{word}}}", True)
  yield Case("word", f'"{word}"', True)
  yield Case("word_anagram", word[::-1], False)
  yield Case("word_anagram", f"{word[1:]}{word[0]}", False)
  yield Case("word_cut", word[:-1], False)
  yield Case("word_not", f"not {word}", False)
  yield Case("word_other", "\\text{west}", False)
  yield Case("word_number", "5", False)


def matrices(rows: str) -> Iterator[Case]:
  cells = [[c.strip() for c in row.split("&")] for row in rows.split("\\\\")]

  def written(cells: list[list[str]], kind: str = "p") -> str:
    body = " \\\\ ".join(" & ".join(row) for row in cells)
    return f"\\begin{{{kind}matrix}} {body} \\end{{{kind}matrix}}"

  def with_cell(i: int, k: int, text: str) -> list[list[str]]:
    return [
      [text if (i, k) == (a, b) else c for b, c in enumerate(row)]
      for a, row in enumerate(cells)
    ]

  yield Case("matrix", written(cells, "b"), True)
  yield Case("matrix", written(cells).replace(" ", ""), True)
  fractions = re.sub(r"(-?)(\d+)/(\d+)", r"\1\\frac{\2}{\3}", written(cells))
  yield Case("matrix", fractions, True)
  for i, row in enumerate(cells):
    for k, cell in enumerate(row):
      flipped = cell[1:] if cell.startswith("-") else f"-{cell}"
      if cell != "0":
        yield Case("matrix_sign", written(with_cell(i, k, flipped)), False)
      yield Case("matrix_cell", written(with_cell(i, k, f"{cell}7")), False)
  if cells[0] != cells[-1]:
    yield Case("matrix_rows", written(cells[::-1]), False)
  yield Case("matrix_cut", written(cells[:-1]), False)


def other_number(item: str) -> str:
  """Not equal to the item, whatever it is."""
  value = value_of(item)
  return f"{item} + 1" if value is None else fraction_of(value + 1)


def negated(item: str) -> str:
  return item[1:] if item.startswith("-") else f"-{item}"


def tuples(items: list[str]) -> Iterator[Case]:
  def written(items: list[str]) -> str:
    return f"({', '.join(items)})"

  yield Case("tuple", "\\left( " + ",\\ ".join(items) + " \\right)", True)
  yield Case("tuple_bare", ", ".join(items), True)
  yield Case("tuple_named", f"(x,y) = {written(items)}", True)
  for i, item in enumerate(items):
    value, rest = value_of(item), items[i + 1 :]
    if value is not None:
      longer = decimal_of(value)
      if longer is not None:
        point = longer if "." in longer else longer + "."
        yield Case("tuple_form", written([*items[:i], point + "0", *rest]), True)
      yield Case(
        "tuple_form", written([*items[:i], fraction_of(value, 2), *rest]), True
      )
    yield Case("tuple_item", written([*items[:i], other_number(item), *rest]), False)
    if value != 0:
      yield Case("tuple_sign", written([*items[:i], negated(item), *rest]), False)
  if items != items[::-1]:
    yield Case("tuple_order", written(items[::-1]), False)
  yield Case("tuple_cut", written(items[:-1]), False)
  yield Case("tuple_more", written([*items, "1"]), False)
  yield Case("tuple_set", f"\\{{{', '.join(items)}\\}}", False)
  yield Case("tuple_closed", f"[{', '.join(items)}]", False)
  yield Case("tuple_one", items[-1], False)


def intervals(plain: str) -> Iterator[Case]:
  _, _, plain = plain.rpartition("\\in ")
  found = [match.groups() for match in _INTERVAL.finditer(plain)]

  def written(found: list[tuple[str, ...]], join: str = " \\cup ") -> str:
    return join.join(
      f"{o}{low.strip()}, {high.strip()}{c}" for o, low, high, c in found
    )

  yield Case("interval", written(found), True)
  yield Case("interval", f"x \\in {written(found)}", True)
  relations = [relation(*one) for one in found]
  yield Case("interval_relation", " \\text{ or } ".join(relations), True)
  if len(found) > 1:
    yield Case("union_order", written(found[::-1]), True)
    yield Case("union_cut", written(found[:1]), False)
  for i, (o, low, high, c) in enumerate(found):
    before, rest = found[:i], found[i + 1 :]
    ends = {
      "interval_end": [
        ("[" if o == "(" else "(", low, high, c, "infty" in low),
        (o, low, high, "]" if c == ")" else ")", "infty" in high),
      ],
      "interval_number": [
        (o, other_number(low.strip()), high, c, "infty" in low),
        (o, low, other_number(high.strip()), c, "infty" in high),
        (o, low, negated(high.strip()), c, high.strip() == "0"),
      ],
    }
    for kind, changes in ends.items():
      for *change, equal in changes:
        if not equal:
          yield Case(kind, written([*before, tuple(change), *rest]), False)
    if "infty" not in low + high:
      swapped = (o, high, low, c)
      yield Case("interval_order", written([*before, swapped, *rest]), False)
      yield Case(
        "interval_unbounded", written([*before, (o, low, "\\infty", ")")]), False
      )


def relation(opens: str, low: str, high: str, closes: str) -> str:
  left = "<" if opens == "(" else "\\le"
  right = "<" if closes == ")" else "\\le"
  if "infty" in low:
    return f"x {right} {high.strip()}"
  if "infty" in high:
    return f"{low.strip()} {left} x"
  return f"{low.strip()} {left} x {right} {high.strip()}"


def lists(plain: str) -> Iterator[Case]:
  body = plain.removeprefix("\\{").removesuffix("\\}")
  items = []
  for item in (part.strip() for part in body.split(",")):
    if "\\pm" in item:
      items += [item.replace("\\pm", "+"), item.replace("\\pm", "-")]
    else:
      items.append(item)
  items = [item.removeprefix("+") for item in items]
  yield Case("set", f"\\{{{', '.join(items)}\\}}", True)
  yield Case("list", ", ".join(items), True)
  yield Case("list_order", ", ".join(items[::-1]), True)
  yield Case("list_and", f"{', '.join(items[:-1])} and {items[-1]}", True)
  yield Case("list_and", f"{', '.join(items[:-1])} \\text{{ or }} {items[-1]}", True)
  yield Case("list_named", ", ".join(f"x = {item}" for item in items), True)
  for i, item in enumerate(items):
    before, rest = items[:i], items[i + 1 :]
    yield Case("list_item", ", ".join([*before, other_number(item), *rest]), False)
    if item != "0":
      changed = sorted([*before, f"-({item})", *rest])
      yield Case("list_sign", ", ".join(changed), False)
    yield Case("list_cut", ", ".join([*before, *rest]), False)
  yield Case("list_more", ", ".join([*items, "77"]), False)


def equations(plain: str, rng: random.Random) -> Iterator[Case]:
  left, _, right = plain.partition("=")
  left, right = left.strip(), right.strip()
  if re.fullmatch(r"[a-z]", left):
    yield Case("right_side", right, True)
    if value_of(right) is None:
      yield Case("equation_doubled", f"2{left} = 2({right})", True)
      yield Case("equation_moved", f"{left} - ({right}) = 0", True)
      yield Case("equation_moved_wrong", f"{left} + ({right}) = 0", False)
    yield Case("equation_other_name", f"q = {right}", False)
    for case in formulas(right, rng):
      if case.kind in ("digit", "operator"):
        yield Case(f"equation_{case.kind}", f"{left} = {case.answer}", case.right)
  else:
    yield Case("equation_doubled", f"2({left}) = 2({right})", True)
    yield Case("equation_moved", f"{left} - ({right}) = 0", True)
    yield Case("equation_left_only", left, False)
    for text in changed_digits(left, rng):
      yield Case("equation_digit", f"{text} = {right}", False)


def formulas(plain: str, rng: random.Random) -> Iterator[Case]:
  """Radicals, multiples of pi, polynomials, complex numbers and the like."""
  terms = [t for t in re.split(r"(?<![\^{(])(?=[-+])", plain.replace(" ", "")) if t]
  balanced = all(t.count("{") == t.count("}") for t in terms)
  if len(terms) > 1 and balanced and not set(plain) & set("()"):
    turned = "".join(t if t[0] in "+-" else f"+{t}" for t in terms[::-1])
    yield Case("term_order", turned.removeprefix("+"), True)
    for i in range(len(terms)):
      rest = "".join(terms[:i] + terms[i + 1 :]).removeprefix("+")
      yield from near_miss("term_cut", rest, plain)
  yield Case("doubled", f"\\frac{{2({plain})}}{{2}}", True)
  yield Case("equation", f"A = {plain}", True)
  if match := re.match(r"(\d+) ?(?=\\sqrt|\\pi|[a-z])", plain):
    yield Case("times", f"{match[1]} \\cdot {plain[match.end() :]}", True)
    yield Case("times", f"{match[1]}{plain[match.end() :]}", True)
  if match := re.fullmatch(r"(\d*) ?\\sqrt\{?(\d+)\}?", plain):
    times, under = int(match[1] or 1), int(match[2])
    yield Case("root", f"\\sqrt{{{times * times * under}}}", True)
    yield Case("root", f"\\frac{{{times * under}}}{{\\sqrt{{{under}}}}}", True)
    yield Case("root", f"{times}({under})^{{1/2}}", True)
    yield Case("root_wrong", f"\\sqrt{{{times * under}}}", times == 1)
    yield Case("rounded", f"{times * math.sqrt(under):.8f}", True)
    yield Case("rounded_roughly", f"{times * math.sqrt(under):.2f}", False)
  if match := re.fullmatch(r"(\d*) ?\\pi", plain):
    yield Case("rounded", f"{int(match[1] or 1) * math.pi:.9f}", True)
    yield Case("rounded_roughly", f"{int(match[1] or 1) * math.pi:.2f}", False)
    yield Case("pi_left_out", match[1] or "1", False)
  if "\\sqrt" in plain:
    without = re.sub(r"\\sqrt\{?(\d+)\}?", r"(\1)", plain)
    yield from near_miss("root_left_out", without, plain)
  for text in changed_digits(plain, rng, count=3):
    yield from near_miss("digit", text, plain)
  for match in re.finditer(r"(?<=[\w})\s])[-+]", plain):
    flipped = "-" if match[0] == "+" else "+"
    text = plain[: match.start()] + flipped + plain[match.end() :]
    yield from near_miss("operator", text, plain)
  yield from near_miss("negated", f"-({plain})", plain)
  yield from near_miss("times_ten", f"10({plain})", plain)
  yield from near_miss("reciprocal", f"\\frac{{1}}{{{plain}}}", plain)
  yield from near_miss("one_more", f"{plain} + 1", plain)


def near_miss(kind: str, text: str, gold: str) -> Iterator[Case]:
  """The case, unless both are the same number at every point that is tried."""
  values, others = sampled(text), sampled(gold)
  if values is None or others is None:
    return
  pairs = zip(values, others, strict=True)
  same = all(abs(a - b) <= 1e-9 * max(1.0, abs(a)) for a, b in pairs)
  if not same:
    yield Case(kind, text, False)


def sampled(text: str) -> list[complex] | None:
  """Values at three points, by Python's arithmetic; None for what it cannot read."""
  code = text.replace(" ", "").replace("\\cot", "1/tan")
  for _ in range(4):
    code = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", code)
    code = re.sub(r"\\sqrt\{([^{}]*)\}", r"((\1)**0.5)", code)
    code = re.sub(r"\\sqrt(\d)", r"((\1)**0.5)", code)
  code = re.sub(r"\^\{([^{}]*)\}", r"**(\1)", code).replace("^", "**")
  code = code.replace("\\pi", "(3.141592653589793)")
  code = re.sub(r"tan([a-z])", r"TAN(\1)", code)
  code = re.sub(r"(?<=[\da-z)])(?=[a-zT(])", "*", code)
  code = re.sub(r"(?<=[a-z)])(?=\d)", "*", code).replace("TAN*(", "TAN(")
  names = set(re.findall(r"[A-Za-z]", code.replace("TAN", "")))
  points = []
  for start in (1.37, 2.61, 3.19):
    place = {name: start + 0.71 * i for i, name in enumerate(sorted(names))}
    place |= {"TAN": math.tan} | ({"i": 1j} if "i" in names else {})
    try:
      points.append(complex(eval(code, {"__builtins__": {}}, place)))
    except (SyntaxError, TypeError, NameError, AttributeError, ArithmeticError):
      return None
  return points
