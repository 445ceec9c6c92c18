import math
import re

import pytest

from r1jax import charts


def points(d):
  return [tuple(map(float, p.split())) for p in re.split("[ML]", d.rstrip("Z")) if p]


def line(*values, name="a", **kwargs):
  return charts.Series(name, range(len(values)), values, **kwargs)


def curves(*series, x_range=(0, 4), unit="points", **kwargs):
  return charts.curves("Title", series, unit=unit, x_range=x_range, **kwargs)


def test_a_curve_lies_where_its_numbers_say():
  chart = curves(line(0.0, 0.5, 1.0, 0.25, 0.0))
  (path,) = chart.paths
  assert points(path.d) == [(0, 1000), (250, 500), (500, 0), (750, 750), (1000, 1000)]
  at = {mark.text: mark.at for mark in chart.y_marks}
  assert at["0"] == pytest.approx(100) and at["1.0"] == pytest.approx(0)
  assert [mark.text for mark in chart.x_marks] == ["0", "1", "2", "3", "4"]
  assert chart.change == "0 → 0"
  assert chart.hover["series"][0]["y"] == [0.0, 0.5, 1.0, 0.25, 0.0]


def test_floor_and_ceiling_are_reached():
  chart = curves(line(40.0, 60.0), floor=0.0, ceiling=100.0, unit="%")
  assert [m.text for m in chart.y_marks] == ["0", "20", "40", "60", "80", "100"]
  assert chart.change == "40.0\u00a0% → 60.0\u00a0%"


def test_an_interval_is_an_area_around_its_curve():
  chart = curves(line(1.0, 2.0, low=(0.0, 1.5), high=(2.0, 2.0)), x_range=(0, 1))
  band = next(p for p in chart.paths if p.kind == "band")
  assert points(band.d) == [(0, 0), (1000, 0), (1000, 250), (0, 1000)]
  assert chart.hover["series"][0]["low"] == [0.0, 1.5]


def test_a_logarithmic_axis_only_where_asked_and_needed():
  wide = line(1e-6, 1e-2)
  log = curves(wide, x_range=(0, 1), may_be_log=True)
  assert log.unit == "points, log scale"
  assert points(log.paths[0].d) == [(0, 1000), (1000, 0)]
  assert curves(wide, x_range=(0, 1)).unit == "points"
  assert curves(line(1.0, 2.0), may_be_log=True).unit == "points"
  assert curves(line(0.0, 2.0), may_be_log=True).unit == "points"


def test_many_points_get_a_running_mean_on_top():
  noisy = line(*(i % 2 for i in range(1000)))
  chart = curves(noisy, x_range=(0, 999))
  assert [p.kind for p in chart.paths] == ["faint", "line"]
  assert chart.change == "0.476 → 0.524"
  plain = curves(noisy, x_range=(0, 999), is_smooth=False)
  assert [p.kind for p in plain.paths] == ["line"]


def test_several_curves_have_a_legend_with_their_last_values():
  chart = curves(line(1.0, 2.0), line(name="none"), line(0.0, 0.5, name="b"))
  assert chart.legend == [(0, "a", "2"), (1, "b", "0.5")]
  assert chart.change == ""


@pytest.mark.parametrize(
  "values", [(), (3.0,), (0.0, 0.0), (-2.0, -2.0), (1e-9, 1e-9), (0.0, 4e-15)]
)
def test_charts_of_nothing_one_point_and_constants(values):
  chart = curves(line(*values), is_tall=True)
  if not values:
    assert chart is None
    return
  for path in chart.paths:
    if path.kind == "line":
      assert all(0 <= y <= 1000 for _, y in points(path.d))
  assert len({mark.text for mark in chart.y_marks}) == len(chart.y_marks) >= 2


def test_a_stack_adds_up_and_tells_what_leaves_its_axis():
  steps = range(100)
  slow = [9.0] + [0.5] * 99
  layers = [
    charts.Series("update", steps, slow),
    charts.Series("rollout", steps, [0.5] * 100),
  ]
  chart = charts.stack("Time", layers, unit="seconds", x_range=(0, 99))
  lower, upper = (points(p.d) for p in chart.paths)
  assert lower[50][1] == pytest.approx(500) and upper[50][1] == pytest.approx(0)
  assert all(0 <= y <= 1000 for _, y in lower + upper)
  assert chart.about == "Beyond the axis: step 0 with 9.5 seconds."
  assert chart.hover["series"][0]["y"][0] == 9.0
  assert charts.stack("Time", [], unit="seconds", x_range=(0, 1)) is None


def test_thinning_keeps_ends_and_spikes():
  values = [math.sin(i / 500) for i in range(20_000)]
  values[7_777], values[13_001] = 9.0, -9.0
  steps, kept = charts.thin(range(20_000), values)
  assert len(kept) <= charts.MAX_POINTS
  assert steps == sorted(set(steps))
  assert (steps[0], steps[-1]) == (0, 19_999)
  assert {9.0, -9.0} <= set(kept)
  assert all(values[s] == v for s, v in zip(steps, kept, strict=True))
  assert charts.thin([1, 2], [5, 6]) == ([1, 2], [5, 6])


def test_bucket_means_keep_the_sum():
  steps, means = charts.bucket_means(range(1000), [float(i) for i in range(1000)])
  assert len(means) == charts.MAX_POINTS // 2
  assert sum(means) * 5 == pytest.approx(sum(range(1000)))
  assert steps[-1] == 999


def test_running_mean_by_hand():
  assert charts.running_mean([1.0, 2.0, 6.0, 1.0], 3) == pytest.approx([1.5, 3, 3, 3.5])
  assert charts.running_mean([4.0, 5.0], 1) == [4.0, 5.0]


@pytest.mark.parametrize(
  ("ticks", "want"),
  [
    ([0, 0.25, 0.5], ["0", "0.25", "0.50"]),
    ([-0.02, -0.01, 0.0], ["−0.02", "−0.01", "0"]),
    ([0, 2e-4, 4e-4], ["0", "2·10⁻⁴", "4·10⁻⁴"]),
    ([0.0, 5e-4, 1e-3], ["0", "0.0005", "0.0010"]),
    ([0, 5000, 10000], ["0", "5k", "10k"]),
    ([0, 250, 500], ["0", "250", "500"]),
    ([1e-7, 1e-5, 1e-3, 0.1], ["10⁻⁷", "10⁻⁵", "10⁻³", "0.1"]),
  ],
)
def test_tick_texts_tell_ticks_apart_and_are_exact(ticks, want):
  assert [charts.tick_text(t, ticks) for t in ticks] == want


@pytest.mark.parametrize(
  ("value", "unit", "want"),
  [
    (95.456, "%", "95.5\u00a0%"),
    (9.351, "tokens", "9.4"),
    (1234.4, "tokens", "1,234"),
    (0.0004, "", "4·10⁻⁴"),
    (-0.25, "", "−0.25"),
    (0, "", "0"),
    (17_028.3, "", "17,028"),
  ],
)
def test_value_texts(value, unit, want):
  assert charts.value_text(value, unit) == want
