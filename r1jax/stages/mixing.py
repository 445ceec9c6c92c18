"""A set of examples put together: formats, other data, shares of categories."""

import collections
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax import prng
from r1jax.data import balancing, filters, formats
from r1jax.data.decontamination import overlap
from r1jax.data.examples import Example, Made
from r1jax.data.filters import Sieve
from r1jax.data.formats import Exemplar
from r1jax.stages.run import Run
from r1jax.types import Problem


def contaminated(
  config: Mapping[str, Any], held_out: Sequence[Problem]
) -> Callable[[Problem | Made], str]:
  """A fault of what shares words with a problem that is held out."""
  if not config["decontaminate"]:
    return lambda item: ""
  shared = overlap(held_out, n=config["decontaminate"])

  def fault(item: Problem | Made) -> str:
    found = shared((item.problem if isinstance(item, Made) else item).prompt)
    return "" if found is None else f"{found[0]}: {found[1]}"

  return fault


def text_of(one: Made) -> tuple[str, ...]:
  """A key that examples share which say the same."""
  said = repr(one.problem.messages) if one.problem.messages else one.problem.prompt
  return filters.same_text(said, one.completion)


def in_formats(
  run: Run,
  name: str,
  config: Mapping[str, Any],
  made: list[Made],
  *,
  exemplars: Sequence[Exemplar],
) -> list[Made]:
  """Each example in every format, or as it is where none are asked for.

  Without exemplars the first answers of so many problems become some.
  """
  own = config["formats"]
  if not own["names"]:
    return made
  if not exemplars:
    first = list({one.problem.id: one for one in reversed(made)}.values())[::-1]
    taken = first[: own["num_exemplars"]]
    exemplars = [
      Exemplar(one.problem.prompt, one.completion, one.answer) for one in taken
    ]
    ids = ", ".join(f"{one.problem.id} ({one.sample})" for one in taken)
    run.say(f"{name}: exemplars are the first answers that are kept: {ids}")
  found = []
  for one in made:
    for form, prompt, completion in formats.expanded(
      one.problem.prompt,
      one.completion,
      one.answer,
      exemplars,
      names=own["names"],
      cue=own["cue"],
      answer_form=own["answer_form"],
    ):
      problem = dataclasses.replace(one.problem, prompt=prompt)
      found.append(
        dataclasses.replace(one, problem=problem, completion=completion, format=form)
      )
  return found


def mixed(
  run: Run,
  name: str,
  config: Mapping[str, Any],
  sieve: Sieve,
  made: list[Made],
  *,
  also: Mapping[str, Sequence[Example]],
  faults: Mapping[str, Callable[[Made], str]],
) -> tuple[list[Made], dict[str, int]]:
  """With other data, in the shares asked for; and what is missing, by name.

  Args:
    also: name -> examples, of `config.also`.
    faults: filters that these go through.
  """
  missing = {}
  seed = prng.host_seed(run.seed, name)
  for key, settings in config["also"].items():
    new = [
      Made(
        problem=one.problem,
        completion=one.completion,
        category=settings["category"] or one.problem.meta.get("category", key),
        answer=one.problem.answer,
        source=key,
      )
      for one in also[key]
    ]
    for filter_name, fault in faults.items():
      new = sieve(filter_name, new, fault)
    if count := settings["count"]:
      draw = random.Random(prng.host_seed(seed, f"also/{key}"))
      places = draw.sample(range(len(new)), min(count, len(new)))
      new = [new[place] for place in sorted(places)]
      missing[f"also_{key}"] = count - len(new)
    made = made + new
  if config["shares"] and made:
    categories = [one.category for one in made]
    take, lacking = balancing.wanted(collections.Counter(categories), config["shares"])
    taken = {id(made[place]) for place in balancing.drawn(categories, take, seed=seed)}
    made = sieve("over_share", made, lambda one: "" if id(one) in taken else "too many")
    missing |= lacking
  return made, {key: count for key, count in missing.items() if count}


def by_category(run: Run, made: Sequence[Made]) -> dict[str, tuple[int, float]]:
  """{category: (examples, mean tokens of an answer)}, as R1's supplement has it."""
  lengths = collections.defaultdict(list)
  for one in made:
    lengths[one.category].append(len(run.tokenizer.encode(one.completion)))
  return {key: (len(own), float(np.mean(own))) for key, own in lengths.items()}
