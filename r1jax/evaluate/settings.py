"""What an evaluation is asked to do: its sets, and all that answers depend on."""

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax.data import problems, templates
from r1jax.data.problems import ProblemSet
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import InputError, nearest
from r1jax.stages import setup

MOST_TOKENS = 32_768  # DeepSeek-R1 (arXiv 2501.12948), of an answer
_SAMPLES = "samples"
_ENDLESS = 2**30


@dataclasses.dataclass(frozen=True)
class Set:
  """Problems to answer.

  Attributes:
    data: settings of `load_problems`.
    samples: answers to each.
  """

  name: str
  data: Mapping[str, Any]
  samples: int
  problems: ProblemSet


def trained_with(workdir: Path, stage: str) -> dict[str, Any]:
  """Sections `template`, `eval` and `reward` of a stage of a run.

  What it does not have itself, as one of supervised training, is that of the first
  stage which has.
  """
  whole = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["config"]
  stages = setup.stage_sections(whole)
  found: dict[str, Any] = {}
  for name in (stage, *stages):
    for section, key in (("template", "template"), ("eval", "sets"), ("reward", "")):
      own = stages[name].get(section)
      if own is not None and (not key or key in own):
        found.setdefault(section, own)
  return found


def named_sets(
  given: Sequence[str],
  config: Mapping[str, Any],
  trained: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
  """{name: settings} of the sets of flags, else of the config, else of the run.

  A flag is `NAME` of one of the latter, or `[NAME=]SOURCE[,key=value...]`, in which a
  key with dots is one of a section, and a value JSON or a text.

  Raises:
    InputError: a set without a source, one named twice, or none at all.
  """
  own, runs = config["eval"]["sets"], trained.get("eval", {}).get("sets", {})
  known = {name: dict(value) for name, value in {**runs, **own}.items()}
  if not given:
    found = {name: known[name] for name in (own or runs)}
    if not found:
      raise InputError(
        "no problems to answer: --set=SOURCE[,key=value...] names some, such as "
        f"--set=math500; sources: {', '.join(problems.SOURCES)}"
      )
    return found
  found = {}
  for flag in given:
    name, settings = _parsed(flag, known)
    if name in found:
      raise InputError(
        f"--set={flag}: {name!r} is there already; --set=NAME={flag} gives it another"
      )
    found[name] = settings
  return found


def _parsed(flag: str, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  first, *rest = flag.split(",")
  name, named, source = first.partition("=")
  settings: dict[str, Any] = {}
  if not named and name in known:
    settings |= known[name]
  else:
    source = source if named else name
    if source not in problems.SOURCES:
      near = nearest(source, {**known, **problems.SOURCES})
      own = f"sets of its own: {', '.join(known)}; " if known else ""
      raise InputError(
        f"--set={flag}: no source {source!r}{near}; {own}sources: "
        f"{', '.join(sorted(problems.SOURCES))}"
      )
    settings["source"] = source
  if not name or "/" in name:
    raise InputError(f"--set={flag}: {name!r} is no name for a set")
  for word in rest:
    key, equals, text = word.partition("=")
    if not equals:
      raise InputError(f"--set={flag}: {word!r} is no key=value")
    *sections, last = key.split(".")
    place = settings
    for section in sections:
      place[section] = place = dict(place.get(section) or {})
    try:
      place[last] = json.loads(text)
    except ValueError:
      place[last] = text
  return name, settings


def load(name: str, settings: Mapping[str, Any], samples: int) -> Set:
  """Reads a set; errors name it.

  Args:
    samples: where the set does not say how many.

  Raises:
    InputError: an unknown key, what `load_problems` raises, less than one sample.
  """
  data = {key: value for key, value in settings.items() if key != _SAMPLES}
  own = settings.get(_SAMPLES)
  samples = samples if own is None else own
  allowed = [*inspect.signature(problems.load_problems).parameters, _SAMPLES]
  for key in data:
    if key not in allowed:
      raise InputError(
        f"the set {name!r}: {key!r} is not known{nearest(key, allowed)}; allowed: "
        f"{', '.join(allowed)}"
      )
  if not isinstance(samples, int) or samples < 1:
    key = f"the set {name!r}: samples" if own is not None else "config.eval.samples"
    raise InputError(f"{key}={samples}: must be 1 or more")
  if "source" not in data:
    raise InputError(f"the set {name!r}: source is missing")
  try:
    return Set(name, data, samples, problems.load_problems(**data))
  except InputError as e:
    said = str(e).replace("--config.data.", "").replace("config.data.", "")
    raise InputError(f"the set {name!r}: {said}") from e


def resolved(
  config: Mapping[str, Any],
  trained: Mapping[str, Any],
  sets: Sequence[Set],
  *,
  tokenizer: Tokenizer,
  max_length: int,
) -> tuple[dict[str, Any], dict[str, list[list[int]]]]:
  """(the config with all that was None settled, prompts of each set).

  What is None is as in `trained`. Without a checkpoint, or with one that does not say:
  the template is the tokenizer's own chat template, or none; the form of an answer that
  which the template asks for, else a thought and what follows it, in English; answers
  end by themselves. A prompt has as much room as the longest needs, an answer what was
  its limit in training, else R1's, as far as the model reaches.

  Args:
    max_length: positions of the model.

  Raises:
    InputError: sampling that cannot be; a prompt that is too long.
  """
  template = _settled(
    config["template"],
    trained.get("template", {}),
    {
      "template": "plain" if tokenizer.chat_template is None else "chat",
      "suffix": "",
      "system": "",
    },
  )
  room = config["rollout"]["prompt_length"]
  prompts = {
    one.name: templates.encode(
      one.problems, tokenizer, length=_ENDLESS if room is None else room, **template
    )
    for one in sets
  }
  longest = max(len(ids) for own in prompts.values() for ids in own)
  room = longest if room is None else room
  left = max_length - room
  if left < 1:
    raise InputError(
      f"the longest prompt has {longest} tokens, which leaves no room for an answer in "
      f"the model's {max_length} positions; leave out what is too long"
    )
  one = next(iter(prompts.values()))[0]
  inside = tokenizer.decode(one).rstrip().endswith(templates.THINK_OPEN)
  kind = "think_prefix" if inside else "think"
  if template["template"] == "r1_zero":
    kind = "r1_zero"
  own = trained.get("reward", {})
  form = _settled(
    config["reward"]["format"], own.get("format", {}), {"kind": kind, "strict": True}
  )
  language = config["reward"]["language"]
  if language is None:
    language = own.get("language", "en")
  drawing = _settled(
    config["eval"],
    {"stop_strings": (), **trained.get("eval", {})},
    {"max_tokens": min(MOST_TOKENS, left)},
  )
  drawing["stop_strings"] = tuple(drawing["stop_strings"])
  _check(drawing, most=max(one.samples for one in sets))
  return {
    **config,
    "template": template,
    "rollout": {"prompt_length": room},
    "reward": {**config["reward"], "format": form, "language": language},
    "eval": drawing,
  }, prompts


def _settled(
  section: Mapping[str, Any], trained: Mapping[str, Any], default: Mapping[str, Any]
) -> dict[str, Any]:
  """A section whose None are those of the training, or else the default's."""
  return {
    key: {**default, **trained}[key] if value is None else value
    for key, value in section.items()
  }


def _check(drawing: Mapping[str, Any], *, most: int) -> None:
  temperature, top_p = drawing["temperature"], drawing["top_p"]
  if temperature < 0:
    raise InputError(f"config.eval.temperature={temperature}: must be 0 or more")
  if not 0 < top_p <= 1:
    raise InputError(f"config.eval.top_p={top_p}: must be above 0 and at most 1")
  if temperature == 0 and most > 1:
    raise InputError(
      f"config.eval.temperature=0 would draw the same answer {most} times; set "
      "config.eval.samples=1, or config.greedy for one such answer beside others"
    )
