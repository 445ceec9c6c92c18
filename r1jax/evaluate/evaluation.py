"""An evaluation from its settings to its results.

Letters: Q problems, G answers to each.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from r1jax import export, terminal, train, trees
from r1jax.evals import measures
from r1jax.evaluate import answers, files, settings
from r1jax.evaluate.answers import Line
from r1jax.evaluate.settings import Set
from r1jax.models import parameters
from r1jax.sharding import TRAIN_RULES
from r1jax.stages import sets as judges
from r1jax.stages import setup
from r1jax.stages.run import Run

# Beside those of training, what answers and verdicts may depend on.
_PACKAGES = ("math-verify", "reasoning-gym", "tokenizers", "sentencepiece")


def evaluate(
  source: export.Source,
  out: Path,
  *,
  config: Mapping[str, Any],
  sets: Sequence[str],
  reward_model: export.Source | None,
  dtype: str,
  tp: int,
  overwrite: bool,
  stop_asked: Callable[[], bool],
  console: Console,
) -> dict[str, Any]:
  """Answers, judges and writes; what results.json holds.

  Args:
    config: as plain dicts.
    sets: flags, see `settings.named_sets`.

  Raises:
    InputError: sets, settings or a folder that cannot be.
    Stopped: what is judged is kept in `out`.
  """
  began = time.monotonic()
  trained = {}
  if "checkpoint" in source.made_from:
    workdir, stage = source.made_from["checkpoint"], source.made_from["stage"]
    trained = settings.trained_with(Path(workdir), stage)
  asked = [
    settings.load(name, own, config["eval"]["samples"])
    for name, own in settings.named_sets(sets, config, trained).items()
  ]
  config, prompts = settings.resolved(
    config,
    trained,
    asked,
    tokenizer=source.tokenizer,
    max_length=source.model.max_length,
  )
  run = answers.run_of(
    source,
    out,
    export.partition_by(source.model, tp, TRAIN_RULES),
    seed=config["seed"],
    dtype=setup.compute_dtype(dtype),
    console=console,
    stop_asked=stop_asked,
    model_params=source.load,
  )
  samplers = answers.samplers_of(run, config, asked)
  greedy = answers.greedy_sampler(run, config, asked) if config["greedy"] else None
  problems = [problem for one in asked for problem in one.problems]
  with judges.reward_pool(config, problems) as pool:
    made = _settings(source, reward_model, config, asked, prompts, run)
    files.check(out, made, overwrite=overwrite)
    console.print(terminal.pairs(_resolved(source, config, asked, run)), "")
    verdicts = None
    if reward_model is not None:
      verdicts = answers.verdicts_of(
        reward_model,
        run,
        problems,
        max_tokens=config["eval"]["max_tokens"],
        **config["reward_model"],
      )
    params, _ = export.load_on(source, dtype=np.dtype(run.compute_dtype).name, tp=tp)
    made["weights"] = int(jax.jit(trees.checksum)(params))
    files.check(out, made, overwrite=overwrite)
    if (done := files.done(out)) is not None:
      console.print("done before with these settings, kept")
      return done
    files.begin(out, made)
    weights = next(iter(samplers.values())).weights(params)
    del params
    results = {
      **made,
      "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
      "versions": train.versions()
      | {name: metadata.version(name) for name in _PACKAGES},
      "git": train.git_commit(),
    }
    lines: list[Line] = []
    num_tokens = 0
    for one in asked:
      ways = [(one.name, samplers[one.samples])]
      if greedy is not None:
        ways.append((f"{one.name}/greedy", greedy))
      for name, sampler in ways:
        lines_QG, tokens = answers.drawn(
          run,
          name,
          one,
          prompts[one.name],
          config=config,
          sampler=sampler,
          weights=weights,
          pool=pool,
          verdicts=verdicts,
        )
        is_pairwise = verdicts is not None and verdicts.objective == "pairwise"
        found, own = _measured(lines_QG, is_pairwise), results["sets"][one.name]
        if sampler is greedy:
          own["greedy"] = found
        else:
          own |= found
        lines += [
          {**line, "greedy": sampler is greedy} for own in lines_QG for line in own
        ]
        num_tokens += tokens
  files.finish(out, lines, results)
  said = {"done in": terminal.duration(time.monotonic() - began)}
  if num_tokens:
    drawn_s = run.clock.take()["time/rollout_s"]
    said["drawn"] = f"{num_tokens:,} tokens, in {terminal.duration(drawn_s)}"
  console.print(terminal.pairs(said), "")
  return results


def _measured(lines_QG: Sequence[Sequence[Line]], pairwise: bool) -> dict[str, Any]:
  """Measures of a set, and of its categories where there are several."""
  found = measures.summary(lines_QG, pairwise=pairwise)
  by_category: dict[str, list[Sequence[Line]]] = {}
  for own in lines_QG:
    by_category.setdefault(own[0]["category"], []).append(own)
  if len(by_category) > 1:
    found["categories"] = {
      name: measures.summary(own, pairwise=pairwise)
      for name, own in sorted(by_category.items())
    }
  return found


def _settings(
  source: export.Source,
  reward_model: export.Source | None,
  config: Mapping[str, Any],
  asked: Sequence[Set],
  prompts: Mapping[str, Sequence[Sequence[int]]],
  run: Run,
) -> dict[str, Any]:
  """All that answers and verdicts depend on, but for the weights and the versions."""
  drawing = {k: v for k, v in config["eval"].items() if k not in ("sets", "samples")}
  of_model = {
    "made_from": dict(source.made_from),
    "model": source.model.name,
    "parameters": parameters.num_params(source.model),
    "tokenizer": source.tokenizer.fingerprint,
    "compute_dtype": np.dtype(run.compute_dtype).name,
  }
  judged_by = {}
  if reward_model is not None:
    judged_by = {"made_from": dict(reward_model.made_from), **config["reward_model"]}
  of_sets = {
    one.name: {
      "data": one.data,
      "source": one.problems.name,
      "counts": one.problems.counts,
      "samples": one.samples,
      "problems_digest": trees.digest(
        [dataclasses.astuple(problem) for problem in one.problems]
      ),
      "prompts_digest": trees.digest(prompts[one.name]),
    }
    for one in asked
  }
  made = setup.depends_on(
    {**of_model, **config, "eval": drawing},
    {"reward_model": judged_by, "sets": of_sets},
  )
  return json.loads(json.dumps(made, default=str))


def _resolved(
  source: export.Source, config: Mapping[str, Any], asked: Sequence[Set], run: Run
) -> dict[str, Any]:
  """The table before the work begins."""
  drawing, template = config["eval"], config["template"]
  dtype = np.dtype(run.compute_dtype).name
  return {
    **source.made_from,
    "parameters": f"{parameters.num_params(source.model):,} in {dtype}",
    "devices": _devices(),
    "sets": ", ".join(
      f"{one.name} ({len(one.problems):,} × {one.samples})" for one in asked
    ),
    "template": template["template"] + (template["suffix"] and ", with a suffix"),
    "drawn at": f"temperature {drawing['temperature']:g}, top-p {drawing['top_p']:g}, "
    f"up to {drawing['max_tokens']:,} tokens",
    "format": config["reward"]["format"]["kind"],
    "output": run.workdir,
  }


def _devices() -> str:
  return f"{jax.device_count()} × {jax.devices()[0].device_kind}"
