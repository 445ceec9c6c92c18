"""From boxes and what they are made from to the geometry of a drawing; the report's
template draws it.

A box lies in a layer below all that it is made from. What it is made from stands in it,
a row for each, and an arrow comes down a lane at its left and turns into its row, so
that no text lies on an arrow. An arrow that passes a layer has a place between the
boxes there. Lengths are CSS pixels: text keeps its size, and a page that is narrower
scrolls.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence

# Of a character of the boxes' monospaced text, over its size.
_ADVANCE = 0.61
TITLE_SIZE, TEXT_SIZE = 13.0, 11.5
_PAD, _TITLE, _LINE = 12.0, 20.0, 17.0
_LANE, _GAP, _CHANNEL, _MARGIN = 10.0, 26.0, 40.0, 4.0
_SWEEPS = 12
_MAX_CHARACTERS = 34


@dataclasses.dataclass(frozen=True)
class Node:
  """A box to be.

  Attributes:
    beside: a short text at the right of the name.
    lines: below the name.
    made_from: row in the box -> name of the node that the arrow comes from, in any
      order; of nodes that are drawn.
    hue: colour of the box's edge and of the arrows that leave it.
  """

  name: str
  beside: str
  lines: Sequence[str]
  made_from: Mapping[str, str]
  hue: int


@dataclasses.dataclass(frozen=True)
class Text:
  """A line of text in a box; kind is "name", "beside", "line" or "row"."""

  kind: str
  x: float
  y: float
  text: str


@dataclasses.dataclass(frozen=True)
class Box:
  """Where a node is drawn; `rows` has those of `made_from` from top to bottom."""

  node: Node
  x: float
  y: float
  width: float
  height: float
  texts: list[Text]
  rows: list[str]


@dataclasses.dataclass(frozen=True)
class Arrow:
  """An SVG path; one with a `key` ends there in `target`, others pass a layer.

  Attributes:
    end: where its head is, pointing right; None of those that pass.
  """

  source: str
  target: str
  key: str
  hue: int
  d: str
  end: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Drawing:
  width: float
  height: float
  boxes: list[Box]
  arrows: list[Arrow]


@dataclasses.dataclass(eq=False)
class _Slot:
  """A place in a layer: of a box, or of arrows from `source` that pass it.

  Attributes:
    left, right: pixels that it takes at either side of its middle, x.
  """

  source: str
  node: Node | None
  left: float
  right: float
  above: list["_Slot"] = dataclasses.field(default_factory=list)
  below: list["_Slot"] = dataclasses.field(default_factory=list)
  x: float = 0.0


def depths(nodes: Sequence[Node]) -> dict[str, int]:
  """{name: layer}, below all that it is made from.

  What is made from nothing lies right above the first that is made from it.

  Args:
    nodes: each after those that it is made from.
  """
  found: dict[str, int] = {}
  for node in nodes:
    found[node.name] = max(
      (found[name] + 1 for name in node.made_from.values()), default=0
    )
  for node in nodes:
    readers = [found[n.name] for n in nodes if node.name in n.made_from.values()]
    if not node.made_from and readers:
      found[node.name] = min(readers) - 1
  return found


def layered(nodes: Sequence[Node]) -> Drawing:
  """The drawing of nodes, each given after those that it is made from."""
  layers, slots = _slots(nodes)
  _order(layers)
  _place(layers)
  width = max(slot.x + slot.right for layer in layers for slot in layer) + _MARGIN
  tops, y = [], _MARGIN
  for layer in layers:
    tops.append(y)
    y += max(_height(slot.node) for slot in layer if slot.node) + _CHANNEL
  boxes = {
    slot.source: _box(slot, top)
    for top, layer in zip(tops, layers, strict=True)
    for slot in layer
    if slot.node
  }
  arrows = []
  for depth, layer in enumerate(layers):
    floor = tops[depth + 1] - _CHANNEL if depth + 1 < len(layers) else y - _CHANNEL
    for slot in layer:
      for below in slot.below:
        start = (slot.x, boxes[slot.source].y + boxes[slot.source].height)
        if slot.node is None:
          start = (slot.x, tops[depth])
        arrows += _arrows(slots[slot.source].node, start, floor, below, tops, boxes)
  return Drawing(width, y - _CHANNEL + _MARGIN, list(boxes.values()), arrows)


def _slots(nodes: Sequence[Node]) -> tuple[list[list[_Slot]], dict[str, _Slot]]:
  """(layers of places, place of each box), with one line for all arrows of a box."""
  depth = depths(nodes)
  layers: list[list[_Slot]] = [[] for _ in range(max(depth.values()) + 1)]
  slots, passing = {}, {}
  for node in nodes:
    half = _width(node) / 2
    lanes = _LANE * len(node.made_from)
    slot = _Slot(node.name, node, half + lanes, half)
    slots[node.name] = slot
    layers[depth[node.name]].append(slot)
    for source in dict.fromkeys(node.made_from.values()):
      last = slots[source]
      for layer in range(depth[source] + 1, depth[node.name]):
        if (source, layer) not in passing:
          passing[source, layer] = _Slot(source, None, 0.0, 0.0)
          layers[layer].append(passing[source, layer])
          _join(last, passing[source, layer])
        last = passing[source, layer]
      _join(last, slot)
  return layers, slots


def _join(above: _Slot, below: _Slot) -> None:
  above.below.append(below)
  below.above.append(above)


def _order(layers: list[list[_Slot]]) -> None:
  """Orders each layer by the mean place of its neighbours; fewest crossings win."""
  best = [list(layer) for layer in layers]
  for sweep in range(_SWEEPS):
    is_down = sweep % 2 == 0
    for layer in layers if is_down else reversed(layers):
      place = {slot: i for other in layers for i, slot in enumerate(other)}
      own = {
        slot: statistics.mean(place[other] for other in others)
        if others
        else place[slot]
        for slot in layer
        for others in (slot.above if is_down else slot.below,)
      }
      layer.sort(key=own.__getitem__)
    if crossings(layers) < crossings(best):
      best = [list(layer) for layer in layers]
  layers[:] = best


def crossings(layers: Sequence[Sequence[_Slot]]) -> int:
  """Pairs of arrows between neighbouring layers that cross."""
  count = 0
  for layer, after in itertools.pairwise(layers):
    place = {slot: i for i, slot in enumerate(after)}
    ends = [(i, place[below]) for i, slot in enumerate(layer) for below in slot.below]
    for (i, a), (j, b) in itertools.combinations(ends, 2):
      count += (i - j) * (a - b) < 0
  return count


def _place(layers: Sequence[Sequence[_Slot]]) -> None:
  """Sets x: near the neighbours' middle, in order, and without overlap."""
  for layer in layers:
    _spread(layer, [0.0] * len(layer))
  for sweep in range(_SWEEPS):
    is_down = sweep % 2 == 0
    for layer in layers if is_down else reversed(layers):
      wanted = []
      for slot in layer:
        near = slot.above if is_down else slot.below
        wanted.append(statistics.mean(other.x for other in near or [slot]))
      _spread(layer, wanted)
  left = min(slot.x - slot.left for layer in layers for slot in layer)
  for layer in layers:
    for slot in layer:
      slot.x += _MARGIN - left


def _spread(layer: Sequence[_Slot], wanted: Sequence[float]) -> None:
  """The x nearest to what is wanted, by least squares, that leave room between.

  With the room taken off, order is all that is asked: neighbours that are out of order
  are pooled at their mean.
  """
  offsets = [0.0]
  for a, b in itertools.pairwise(layer):
    offsets.append(offsets[-1] + a.right + _GAP + b.left)
  pools: list[list[float]] = []
  for at, offset in zip(wanted, offsets, strict=True):
    pools.append([at - offset])
    while len(pools) > 1 and statistics.mean(pools[-2]) > statistics.mean(pools[-1]):
      last = pools.pop()
      pools[-1] += last
  placed = [statistics.mean(pool) for pool in pools for _ in pool]
  for slot, at, offset in zip(layer, placed, offsets, strict=True):
    slot.x = at + offset


def _width(node: Node) -> float:
  title = _shown(node.name) + (f"  {node.beside}" if node.beside else "")
  rows = [f"  {_shown(row)}" for row in node.made_from]
  lines = [_shown(line) for line in node.lines]
  text = max(len(line) * TEXT_SIZE for line in (*rows, *lines, ""))
  return 2 * _PAD + _ADVANCE * max(len(title) * TITLE_SIZE, text)


def _height(node: Node) -> float:
  return 2 * _PAD - 4 + _TITLE + _LINE * (len(node.lines) + len(node.made_from))


def _shown(text: str) -> str:
  """A text that is too long without its middle."""
  if len(text) <= _MAX_CHARACTERS:
    return text
  half = (_MAX_CHARACTERS - 1) // 2
  return f"{text[:half]}…{text[-half:]}"


def _box(slot: _Slot, top: float) -> Box:
  node, width = slot.node, _width(slot.node)
  left = slot.x - width / 2
  y = top + _PAD + TITLE_SIZE - 2
  texts = [Text("name", left + _PAD, y, _shown(node.name))]
  if node.beside:
    texts.append(Text("beside", left + width - _PAD, y, node.beside))
  y += _TITLE
  for line in node.lines:
    texts.append(Text("line", left + _PAD, y, _shown(line)))
    y += _LINE
  # The row of what comes from the right is the first: its lane is the inner one.
  rows = sorted(node.made_from, key=lambda key: -_from(slot, node.made_from[key]))
  for key in rows:
    texts.append(Text("row", left + _PAD, y, _shown(key)))
    y += _LINE
  return Box(node, left, top, width, _height(node), texts, rows)


def _from(slot: _Slot, source: str) -> float:
  return next(above.x for above in slot.above if above.source == source)


def _arrows(
  source: Node,
  start: tuple[float, float],
  floor: float,
  below: _Slot,
  tops: Sequence[float],
  boxes: Mapping[str, Box],
) -> list[Arrow]:
  """From a place to one in the next layer: down to the layer's floor, and a curve."""
  x, y = start
  ceiling = floor + _CHANNEL
  middle = floor + _CHANNEL / 2

  def curve(to: float) -> str:
    down = f"M{x:.1f} {y:.1f}V{floor:.1f}"
    return f"{down}C{x:.1f} {middle:.1f} {to:.1f} {middle:.1f} {to:.1f} {ceiling:.1f}"

  if below.node is None:
    return [Arrow(source.name, "", "", source.hue, curve(below.x), None)]
  box = boxes[below.source]
  ends = [text.y - 4 for text in box.texts if text.kind == "row"]
  found = []
  for i, (key, at) in enumerate(zip(box.rows, ends, strict=True)):
    if below.node.made_from[key] != source.name:
      continue
    lane = box.x - _LANE * (i + 1)
    turn = f"V{at - 6:.1f}Q{lane:.1f} {at:.1f} {lane + 6:.1f} {at:.1f}H{box.x:.1f}"
    d = curve(lane) + turn
    found.append(Arrow(source.name, box.node.name, key, source.hue, d, (box.x, at)))
  return found
