"""What was made from what in a run of several stages, and the drawing of it."""

import dataclasses
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax import charts, panels, trees
from r1jax.errors import InputError
from r1jax.pages import graph
from r1jax.stages.lineage import ENDS
from r1jax.stages.run import DATA_KINDS, SETTINGS

# What stages make, by the colour of their arrows; and kinds of which it is not weights.
PRODUCTS = ("weights", "data", "reward model", "numbers")
_PRODUCT_OF = {
  "rejection": "data",
  "pairs": "data",
  "reward_model": "reward model",
  "evaluation": "numbers",
}
_DIGITS = 8  # of a digest

Lines = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Made:
  """A stage as it was begun.

  Attributes:
    settings: all that its result depends on.
    made_from: {setting: the stage that it names}.
    changed: those settings whose stage has been run again since, with others.
    digest: of the settings, and so of the stage's whole lineage.
    num_lines: of the file of a stage that makes one, once that is there.
    num_steps: that it runs; None of such a stage.
  """

  settings: Mapping[str, Any]
  made_from: Mapping[str, str]
  changed: tuple[str, ...]
  digest: str
  num_lines: int | None
  num_steps: int | None

  @property
  def kind(self) -> str:
    return self.settings["kind"]

  @property
  def product(self) -> str:
    return _PRODUCT_OF.get(self.kind, "weights")


def read(workdir: Path, order: Sequence[str]) -> dict[str, Made]:
  """Every stage that was begun, each after those that it is made from.

  Args:
    order: of the stages, as they run; others come last.

  Raises:
    InputError: a damaged file.
  """
  found = {}
  for kind in ("checkpoints", "data"):
    for path in workdir.glob(f"{kind}/*/{SETTINGS}"):
      try:
        found[path.parent.name] = json.loads(path.read_text())
        _ = found[path.parent.name]["kind"], found[path.parent.name]["input"]
      except (ValueError, KeyError, TypeError) as e:
        raise InputError(
          f"{path} does not say what its stage was made from ({e!r}); remove it"
        ) from e
  place = {name: i for i, name in enumerate(order)}
  names = sorted(found, key=lambda name: (place.get(name, len(place)), name))
  digests = {
    name: trees.digest(json.dumps(settings, sort_keys=True))
    for name, settings in found.items()
  }
  made: dict[str, Made] = {}
  for name in names:
    settings = found[name]
    made_from = {
      key: stage
      for key in settings["input"]
      if key != "model" and (stage := _at(settings, key)) in made
    }
    product = workdir / "data" / name / "made.jsonl"
    made[name] = Made(
      settings=settings,
      made_from=made_from,
      changed=tuple(
        key
        for key, stage in made_from.items()
        if settings["input"][key] != digests[stage]
      ),
      digest=digests[name],
      num_lines=_num_lines(product) if product.exists() else None,
      num_steps=_num_steps(workdir / "checkpoints" / name, settings),
    )
  return made


def _at(settings: Any, path: str) -> Any:
  """What stands at `a.b.0`, or None."""
  for key in path.split("."):
    if isinstance(settings, Mapping):
      settings = settings.get(key)
    elif isinstance(settings, Sequence) and key.isdigit() and int(key) < len(settings):
      settings = settings[int(key)]
    else:
      return None
  return settings


def _num_steps(folder: Path, settings: Mapping[str, Any]) -> int | None:
  """As the config says, or as the data have decided it."""
  if settings["kind"] in DATA_KINDS:
    return None
  if "num_steps" not in settings:
    return 1  # an average
  if (path := folder / ENDS).exists():
    return min(settings["num_steps"], json.loads(path.read_text()))
  return settings["num_steps"]


def _num_lines(path: Path) -> int:
  with open(path, "rb") as f:
    return sum(1 for _ in f)


def _evaluates_another(stage: Made) -> bool:
  return stage.kind == "evaluation" and "init" in stage.made_from


def evaluated_by(
  made: Mapping[str, Made], stages: Mapping[str, Lines]
) -> dict[str, dict[str, str]]:
  """{stage: {held-out set: the stage of the kind "evaluation" that measures it}}."""
  found: dict[str, dict[str, str]] = {}
  for name, stage in made.items():
    if _evaluates_another(stage) and name in stages:
      own = found.setdefault(stage.made_from["init"], {})
      own |= dict.fromkeys(panels.sets(stages[name]), name)
  return found


def measured(
  made: Mapping[str, Made], stages: Mapping[str, Lines]
) -> dict[str, list[Mapping[str, Any]]]:
  """Lines of stages, each with what a later one has measured of it.

  Of a set that has an evaluation of its own, evaluations during training are left out:
  they may have been of other samples.
  """
  others = evaluated_by(made, stages)
  found = {}
  for name, lines in stages.items():
    if name in made and _evaluates_another(made[name]):
      continue
    prefixes = tuple(f"eval/{key}/" for key in others.get(name, ()))
    kept = [
      {key: value for key, value in line.items() if not key.startswith(prefixes)}
      for line in lines
    ]
    last = {"stage": name, "step": max(line["step"] for line in lines)}
    for key, by in others.get(name, {}).items():
      last |= {k: v for k, v in stages[by][-1].items() if k.startswith(f"eval/{key}/")}
    if name in others:
      kept.append(last)
    found[name] = kept
  return found


def families(made: Mapping[str, Made]) -> dict[str, list[str]]:
  """{name: members}: stages that differ in a number at the end of their names alone.

  Such are repetitions, with other seeds: of one kind, from inputs that are the same or
  repetitions themselves. Others are families of one, which have its name.
  """
  family_of: dict[str, tuple] = {}
  members: dict[tuple, list[str]] = {}
  for name, stage in made.items():
    stem = re.sub(r"_?\d+$", "", name)
    inputs = sorted((k, family_of[source]) for k, source in stage.made_from.items())
    family_of[name] = (stem or name, stage.kind, tuple(inputs))
    members.setdefault(family_of[name], []).append(name)
  return {
    family[0] if len(names) > 1 else names[0]: names
    for family, names in members.items()
  }


def drawing(
  made: Mapping[str, Made], stages: Mapping[str, Lines], main_set: str | None
) -> graph.Drawing:
  """Boxes of stages, with what they were made from.

  Repetitions share one. A stage that evaluates another one has none: what it measured
  stands in that one's.

  Args:
    stages: as of `measured`.
  """
  drawn = _drawn(made)
  models = {shape_of(stage) for stage in made.values()}
  nodes = []
  for family, (names, sources) in drawn.items():
    first = made[names[0]]
    lines = [f"{first.kind} → {first.product}"]
    if progress := _progress(first, stages.get(names[0], ())):
      lines.append(f"{len(names)} times {progress}" if len(names) > 1 else progress)
    for name in names:
      number = f"{name[len(family) :].lstrip('_')}: " if len(names) > 1 else ""
      shape = f" · {shape_of(first)}" if len(models) > 1 else ""
      lines.append(f"{number}{made[name].digest[:_DIGITS]}{shape}")
    accuracy = [
      values[-1]
      for name in names
      if (values := panels.series(stages.get(name, ()), f"eval/{main_set}/accuracy")[1])
    ]
    changed = {key for name in names for key in made[name].changed}
    nodes.append(
      graph.Node(
        name=family,
        beside=charts.value_text(100 * statistics.mean(accuracy), "%")
        if accuracy
        else "",
        lines=lines,
        made_from={
          f"{key} (since changed)" if key in changed else key: source
          for key, source in sources.items()
        },
        hue=PRODUCTS.index(first.product),
      )
    )
  return graph.layered(nodes)


def _drawn(
  made: Mapping[str, Made],
) -> dict[str, tuple[list[str], dict[str, str]]]:
  """{family: (members, {setting: the family that it names})} of all that has a box."""
  found = {}
  of = {}
  for family, names in families(made).items():
    if _evaluates_another(made[names[0]]):
      continue
    of |= dict.fromkeys(names, family)
    sources = made[names[0]].made_from
    found[family] = names, {key: of[source] for key, source in sources.items()}
  return found


def shape_of(stage: Made) -> str:
  """Layers and width, which tell the models of a run apart."""
  model = stage.settings.get("model", {})
  return f"{model.get('depth', '?')} × {model.get('width', '?')}"


def _progress(stage: Made, lines: Lines) -> str:
  if stage.product in ("data", "numbers"):
    return "not done" if stage.num_lines is None else f"{stage.num_lines:,} lines"
  if not lines or stage.num_steps is None:
    return ""
  done = max(line["step"] for line in lines)
  # Expert iteration may end early.
  is_done = done >= stage.num_steps or stage.kind == "expert"
  return f"{done:,} steps" if is_done else f"step {done:,} of {stage.num_steps:,}"


def told(made: Mapping[str, Made]) -> str:
  """The drawing in words."""
  said = []
  for family, (names, made_from) in _drawn(made).items():
    sources = [f"{source} ({key})" for key, source in made_from.items()]
    times = f", {len(names)} times" if len(names) > 1 else ""
    product = made[names[0]].product
    said.append(f"{family}{times}: {product} from {' and '.join(sources) or 'nothing'}")
  return "; ".join(said)


def ends(made: Mapping[str, Made], stages: Mapping[str, Lines]) -> list[str]:
  """Stages with evaluated weights that no other stage is made from.

  Args:
    stages: as of `measured`.
  """
  read = {
    source
    for stage in made.values()
    if not _evaluates_another(stage)
    for source in stage.made_from.values()
  }
  return [
    name
    for name, lines in stages.items()
    if name in made and name not in read and panels.sets(lines)
  ]


def path(made: Mapping[str, Made], name: str) -> list[str]:
  """The stages that hand their weights on to this one, and where data came from.

  From stage to stage by `init`; data and teachers stand in brackets.
  """
  stage = made[name]
  others = [
    source
    for key, source in stage.made_from.items()
    if key != "init" and made[source].product != "reward model"
  ]
  own = f"{name} ({', '.join(dict.fromkeys(others))})" if others else name
  return [
    *(path(made, stage.made_from["init"]) if "init" in stage.made_from else []),
    own,
  ]


def ancestors(made: Mapping[str, Made], name: str) -> set[str]:
  sources = set(made[name].made_from.values())
  return sources.union(*(ancestors(made, source) for source in sources))
