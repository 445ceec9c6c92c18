import itertools
import random
import re

import pytest

from r1jax.pages import graph


def node(name, *sources, lines=("grpo → weights",)):
  made_from = {f"key.{i}.of.{source}": source for i, source in enumerate(sources)}
  return graph.Node(name, "", lines, made_from, 0)


def some(seed):
  """3 to 14 nodes, each made from up to three earlier ones."""
  rng = random.Random(seed)
  names = [f"stage_{i}" for i in range(rng.randint(3, 14))]
  return [
    node(
      name,
      *rng.sample(names[:i], min(i, rng.choice((0, 1, 1, 2, 3)))),
      lines=("line",) * rng.randint(1, 3),
    )
    for i, name in enumerate(names)
  ]


def points(d):
  """Points along a path of M, V, H, C and Q."""
  x = y = 0.0
  for command, numbers in re.findall(r"([MVHCQ])([^MVHCQ]*)", d):
    values = [float(v) for v in numbers.split()]
    if command == "M":
      x, y = values
    ends = {"V": [(x, values[0])], "H": [(values[0], y)]}
    pairs = ends.get(command) or list(zip(values[::2], values[1::2], strict=True))
    controls = [(x, y), *pairs]
    for i in range(21):
      left = controls
      while len(left) > 1:
        left = [
          tuple(a + (b - a) * i / 20 for a, b in zip(p, q, strict=True))
          for p, q in itertools.pairwise(left)
        ]
      yield left[0]
    x, y = pairs[-1]


def test_a_box_lies_below_all_that_it_is_made_from():
  nodes = [node("a"), node("b", "a"), node("late"), node("c", "b", "a", "late")]
  assert graph.depths(nodes) == {"a": 0, "b": 1, "late": 1, "c": 2}
  assert graph.depths([node("alone")]) == {"alone": 0}


@pytest.mark.parametrize("seed", range(20))
def test_nothing_overlaps_and_every_arrow_ends_at_its_row(seed):
  nodes = some(seed)
  drawing = graph.layered(nodes)
  boxes = {box.node.name: box for box in drawing.boxes}
  assert list(boxes.keys() ^ {n.name for n in nodes}) == []
  for a, b in itertools.combinations(drawing.boxes, 2):
    apart = a.x + a.width < b.x or b.x + b.width < a.x
    assert apart or a.y + a.height < b.y or b.y + b.height < a.y
  for arrow in drawing.arrows:
    for x, y in points(arrow.d):
      assert 0 <= x <= drawing.width and 0 <= y <= drawing.height
      for box in drawing.boxes:
        in_it = box.x < x - 0.2 and x + 0.2 < box.x + box.width
        assert not (in_it and box.y < y - 0.2 and y + 0.2 < box.y + box.height)
  ended = [(arrow.target, arrow.key) for arrow in drawing.arrows if arrow.key]
  wanted = [(n.name, key) for n in nodes for key in n.made_from]
  assert sorted(ended) == sorted(wanted)
  for arrow in drawing.arrows:
    if arrow.key:
      box = boxes[arrow.target]
      rows = [text.y for text in box.texts if text.kind == "row"]
      assert arrow.end[0] == box.x
      assert 0 < rows[box.rows.index(arrow.key)] - arrow.end[1] < graph.TEXT_SIZE


def test_arrows_that_could_lie_apart_do_not_cross():
  """Given in an order that crosses, two chains are drawn side by side."""
  nodes = [node("a"), node("b"), node("of_b", "b"), node("of_a", "a")]
  nodes += [node("end_a", "of_a"), node("end_b", "of_b")]
  boxes = {box.node.name: box for box in graph.layered(nodes).boxes}
  left = {name: boxes[name].x for name in boxes}
  assert (left["a"] < left["b"]) == (left["of_a"] < left["of_b"])
  assert (left["a"] < left["b"]) == (left["end_a"] < left["end_b"])


def test_a_long_text_loses_its_middle():
  long = "reward.models.helpfulness_of_the_summary.stage"
  (box,) = graph.layered([graph.Node(long, "71.0 %", [long], {}, 0)]).boxes
  name, beside, line = box.texts
  assert name.text == line.text == "reward.models.he…he_summary.stage"
  assert beside.text == "71.0 %"
  assert box.width < 400
