"""From numbers to the geometry of a chart; the report's template draws it.

A chart is lines in a square of 1000 by 1000 that the page stretches to any size, and
labels at percentages of it, so that text keeps its size on a phone and on a wall.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

SIDE = 1000.0
MAX_POINTS = 400
# A running mean is taken over this part of all points.
SMOOTH_PARTS = 25
_SMOOTH_FROM = 50
_LOG_RATIO = 200.0
_FAR_OFF = 2.5


@dataclasses.dataclass(frozen=True)
class Series:
  """One curve: steps ascending, values finite and in the unit of the chart.

  Attributes:
    low, high: an interval around each value, or empty.
  """

  name: str
  steps: Sequence[float]
  values: Sequence[float]
  low: Sequence[float] = ()
  high: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Mark:
  """A label: text at `at` percent along its axis, `across` percent along the other."""

  at: float
  text: str
  across: float = 0.0
  is_above: bool = True


@dataclasses.dataclass(frozen=True)
class Path:
  """An SVG path: kind is "line", "faint", "band", "area" or "dots"; `hue` a colour."""

  kind: str
  hue: int
  d: str


@dataclasses.dataclass(frozen=True)
class Chart:
  """What the template draws.

  Attributes:
    change: "first → last" of a single curve.
    legend: (colour, name, last value) of each of several curves.
    summary: the chart in a sentence, for those who cannot see it.
    hover: JSON-like, the values under the pointer.
  """

  title: str
  unit: str
  about: str
  is_tall: bool
  is_stack: bool
  x_marks: list[Mark]
  y_marks: list[Mark]
  paths: list[Path]
  ends: list[Mark]
  change: str
  legend: list[tuple[int, str, str]]
  summary: str
  hover: dict


def curves(
  title: str,
  series: Sequence[Series],
  *,
  unit: str,
  x_range: tuple[float, float],
  about: str = "",
  floor: float | None = None,
  ceiling: float | None = None,
  is_tall: bool = False,
  is_smooth: bool = True,
  may_be_log: bool = False,
  first_hue: int = 0,
) -> Chart | None:
  """Curves over steps; None where no series has a point.

  Args:
    unit: "%" or words; shown with values and at the axis.
    x_range: first and last step of the axis.
    floor, ceiling: values that the axis must reach, such as 0, or 0 and 100.
    is_tall: a headline chart: dots at the points, first and last value written in.
    is_smooth: draw curves of many points faintly, with a running mean on top.
    may_be_log: a logarithmic axis where positive values span a factor above 200.
    first_hue: number of the first curve's colour.
  """
  series = [s for s in series if len(s.steps)]
  if not series:
    return None
  known = [v for s in series for v in (*s.values, *s.low, *s.high)]
  is_log = may_be_log and min(known) > 0 and max(known) / min(known) > _LOG_RATIO
  extremes = [v for v in (floor, ceiling) if v is not None and not is_log]
  low, high, ticks = _axis(min(known + extremes), max(known + extremes), is_log=is_log)
  place = _Placing(x_range, (low, high), is_log=is_log)

  paths = [
    Path("band", hue, place.area(s.steps, s.low, s.high))
    for hue, s in enumerate(series, first_hue)
    if s.low
  ]
  shown_ends = []
  for hue, s in enumerate(series, first_hue):
    raw = place.line(*thin(s.steps, s.values))
    shown = s.values
    if not is_smooth or is_tall or len(s.values) < _SMOOTH_FROM:
      paths.append(Path("line", hue, raw))
    else:
      paths.append(Path("faint", hue, raw))
      shown = running_mean(s.values, max(5, len(s.values) // SMOOTH_PARTS))
      paths.append(Path("line", hue, place.line(*thin(s.steps, shown))))
    shown_ends.append((shown[0], shown[-1]))
    if is_tall and len(s.values) <= 40:
      paths.append(Path("dots", hue, place.dots(s.steps, s.values)))

  ends = []
  if is_tall:
    s = series[0]
    rises = s.values[-1] >= s.values[0]
    last = len(s.values) - 1
    for i, is_above in ((0, not rises), (last, rises)) if last else ((0, True),):
      x, y = place.x(s.steps[i]) / 10, place.y(s.values[i]) / 10
      is_above = (is_above and y > 0) or y > 85
      ends.append(Mark(x, value_text(s.values[i], unit), y, is_above))
  change, legend = "", []
  if len(series) == 1:
    change = " → ".join(value_text(v, unit) for v in shown_ends[0])
  else:
    legend = [
      (hue, s.name, value_text(last, unit))
      for hue, (s, (_, last)) in enumerate(
        zip(series, shown_ends, strict=True), first_hue
      )
    ]
  return Chart(
    title=title,
    unit=unit + (", log scale" if is_log else ""),
    about=about,
    is_tall=is_tall,
    is_stack=False,
    x_marks=_step_marks(place),
    y_marks=[Mark(place.y(t) / 10, tick_text(t, ticks)) for t in ticks],
    paths=paths,
    ends=ends,
    change=change,
    legend=legend,
    summary=_summary(title, series, unit, x_range),
    hover=_hover(series, unit, x_range),
  )


def stack(
  title: str,
  layers: Sequence[Series],
  *,
  unit: str,
  x_range: tuple[float, float],
  about: str = "",
) -> Chart | None:
  """Areas on top of one another, all of the same steps; means where points are many.

  A few sums far above all others (a step that compiled) leave the axis and are told.
  """
  layers = [s for s in layers if len(s.steps)]
  if not layers:
    return None
  sums = [sum(values) for values in zip(*(s.values for s in layers), strict=True)]
  usual = sorted(sums)[int(0.98 * (len(sums) - 1))]
  limit = max(v for v in sums if v <= _FAR_OFF * usual)
  if limit < max(sums):
    at = layers[0].steps[sums.index(max(sums))]
    about += f" Beyond the axis: step {at:.0f} with {value_text(max(sums))} {unit}."
  means = [Series(s.name, *bucket_means(s.steps, s.values)) for s in layers]
  shrink = [min(1.0, limit / v) if v > 0 else 1.0 for v in sums]
  within = [[v * f for v, f in zip(s.values, shrink, strict=True)] for s in layers]
  top = [0.0] * len(means[0].steps)
  outlines = []
  for layer, values in zip(layers, within, strict=True):
    _, values = bucket_means(layer.steps, values)
    base, top = top, [a + b for a, b in zip(top, values, strict=True)]
    outlines.append((base, top))
  low, high, ticks = _axis(0.0, max(top), is_log=False)
  place = _Placing(x_range, (low, high), is_log=False)
  return Chart(
    title=title,
    unit=unit,
    about=about.strip(),
    is_tall=False,
    is_stack=True,
    x_marks=_step_marks(place),
    y_marks=[Mark(place.y(t) / 10, tick_text(t, ticks)) for t in ticks],
    paths=[
      Path("area", hue, place.area(means[0].steps, *outline))
      for hue, outline in enumerate(outlines)
    ],
    ends=[],
    change="",
    legend=[
      (hue, s.name, value_text(s.values[-1], unit)) for hue, s in enumerate(means)
    ],
    summary=_summary(title, means, unit, x_range),
    hover=_hover(means, unit, x_range),
  )


def thin(
  steps: Sequence[float], values: Sequence[float], limit: int = MAX_POINTS
) -> tuple[list[float], list[float]]:
  """At most `limit` points: the lowest and highest of each bucket, so spikes stay."""
  if len(values) <= limit:
    return list(steps), list(values)
  # First and last point always stay; the buckets share what is between.
  kept = {0, len(values) - 1}
  for start, end in _buckets(len(values), limit // 2 - 1):
    span = range(start, end)
    kept |= {min(span, key=values.__getitem__), max(span, key=values.__getitem__)}
  at = sorted(kept)
  return [steps[i] for i in at], [values[i] for i in at]


def bucket_means(
  steps: Sequence[float], values: Sequence[float], limit: int = MAX_POINTS // 2
) -> tuple[list[float], list[float]]:
  """At most `limit` points, each the mean of neighbours at their last step."""
  if len(values) <= limit:
    return list(steps), list(values)
  buckets = list(_buckets(len(values), limit))
  return (
    [steps[end - 1] for _, end in buckets],
    [sum(values[start:end]) / (end - start) for start, end in buckets],
  )


def running_mean(values: Sequence[float], window: int) -> list[float]:
  """Centred mean of up to `window` neighbours; shorter at both ends."""
  sums = [0.0]
  for v in values:
    sums.append(sums[-1] + v)
  n, half = len(values), window // 2
  spans = [(max(0, i - half), min(n, i + half + 1)) for i in range(n)]
  return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def value_text(value: float, unit: str = "") -> str:
  """Three significant digits; one decimal for "%" and for "tokens" below 1,000."""
  if value < 0:
    return f"−{value_text(-value, unit)}"
  if unit == "%":
    return f"{value:.1f}\u00a0%"
  if unit == "tokens" and value < 1000:
    return f"{value:.1f}"
  if value != 0 and (value < 1e-3 or value >= 1e9):
    return _scientific(value)
  if value >= 1000:
    return f"{value:,.0f}"
  return f"{value:.3g}"


def tick_text(value: float, ticks: Sequence[float]) -> str:
  """As many decimals as the ticks need to differ."""
  if value < 0:
    return f"−{tick_text(-value, ticks)}"
  largest = max(abs(t) for t in ticks)
  gap = min((b - a for a, b in itertools.pairwise(ticks)), default=largest)
  if value == 0:
    return "0"
  if largest < 1e-3 or largest >= 1e7:
    return _scientific(value)
  if gap >= 1000 or (value >= 10_000 and gap >= 100):
    return f"{value / 1000:g}k"
  if ticks[0] > 0 and ticks[-1] / ticks[0] >= 100:
    return f"{value:g}" if value >= 1e-2 else _scientific(value)
  decimals = next(d for d in range(9) if abs(gap * 10**d - round(gap * 10**d)) < 1e-6)
  return f"{value:.{decimals}f}"


def _scientific(value: float) -> str:
  digits, power = f"{value:.1e}".split("e")
  raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
  digits = digits.removesuffix(".0")
  return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"


def _buckets(n: int, count: int) -> Iterator[tuple[int, int]]:
  edges = [n * i // count for i in range(count + 1)]
  return itertools.pairwise(edges)


def _axis(
  low: float, high: float, *, is_log: bool, count: int = 5
) -> tuple[float, float, list[float]]:
  """(axis start, axis end, ticks) around the values, at round numbers."""
  if is_log:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / count))
    last = first + stride * math.ceil((last - first) / stride)
    return 10.0**first, 10.0**last, [10.0**p for p in range(first, last + 1, stride)]
  if high == low:
    low, high = (0.0, high) if high > 0 else (low, 0.0) if low < 0 else (0.0, 1.0)
  gap = _round_gap((high - low) / count)
  first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
  # Rounded to significant digits: a loss may be of size 1e-14.
  ticks = [float(f"{i * gap:.12g}") for i in range(first, last + 1)]
  return ticks[0], ticks[-1], ticks


def _round_gap(rough: float) -> float:
  size = 10.0 ** math.floor(math.log10(rough))
  return next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= rough * (1 - 1e-9))


def _step_marks(place: "_Placing", count: int = 4) -> list[Mark]:
  low, high = place.x_range
  gap = max(1.0, _round_gap((high - low) / count)) if high > low else 1.0
  gap = float(math.ceil(gap))
  at = [i * gap for i in range(math.ceil(low / gap), math.floor(high / gap) + 1)]
  return [
    Mark(place.x(x) / 10, f"{x / 1000:g}k" if x >= 10_000 else f"{x:.0f}") for x in at
  ]


@dataclasses.dataclass(frozen=True)
class _Placing:
  """Data to the square: x rightwards, y downwards."""

  x_range: tuple[float, float]
  y_range: tuple[float, float]
  is_log: bool

  def x(self, step: float) -> float:
    low, high = self.x_range
    return SIDE * (step - low) / (high - low) if high > low else SIDE / 2

  def y(self, value: float) -> float:
    low, high = self.y_range
    if self.is_log:
      low, high, value = math.log(low), math.log(high), math.log(value)
    return SIDE * (1 - (value - low) / (high - low))

  def line(self, steps: Sequence[float], values: Sequence[float]) -> str:
    points = [
      f"{self.x(s):.1f} {self.y(v):.1f}" for s, v in zip(steps, values, strict=True)
    ]
    return "M" + "L".join(points)

  def area(
    self, steps: Sequence[float], low: Sequence[float], high: Sequence[float]
  ) -> str:
    back = self.line(steps[::-1], low[::-1]).replace("M", "L", 1)
    return f"{self.line(steps, high)}{back}Z"

  def dots(self, steps: Sequence[float], values: Sequence[float]) -> str:
    """Strokes without length: round caps draw them round however wide the page."""
    return "".join(
      f"M{self.x(s):.1f} {self.y(v):.1f}h0" for s, v in zip(steps, values, strict=True)
    )


def _summary(
  title: str, series: Sequence[Series], unit: str, x_range: tuple[float, float]
) -> str:
  parts = [
    f"{s.name} from {value_text(s.values[0], unit)} to {value_text(s.values[-1], unit)}"
    for s in series
  ]
  low, high = x_range
  in_unit = "" if unit == "%" else f" in {unit}"
  return f"{title}{in_unit}, steps {low:g} to {high:g}: {'; '.join(parts)}"


def _hover(series: Sequence[Series], unit: str, x_range: tuple[float, float]) -> dict:
  def short(values: Sequence[float]) -> list[float]:
    return [float(f"{v:.4g}") for v in values]

  rows = []
  for s in series:
    row = {"name": s.name}
    if s.low:
      row |= {"x": list(s.steps), "y": short(s.values)}
      row |= {"low": short(s.low), "high": short(s.high)}
    else:
      steps, values = thin(s.steps, s.values)
      row |= {"x": steps, "y": short(values)}
    rows.append(row)
  return {"x": list(x_range), "unit": unit, "series": rows}
