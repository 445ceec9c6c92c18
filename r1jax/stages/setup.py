"""From a config to what its stages need: their settings, a tokenizer, a model.

A config names its stages in order; `config.NAME` holds the settings of the stage NAME.
Other sections are shared: a stage sees those that it does not have itself.
"""

import contextlib
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import optim, prng, trees
from r1jax.data import examples, problems, templates
from r1jax.data import tokenizer as tokenizers
from r1jax.errors import InputError, nearest, one_of
from r1jax.models import parameters
from r1jax.models.config import ModelConfig, changed
from r1jax.models.presets import PRESETS
from r1jax.objectives.advantages import group_advantages
from r1jax.objectives.grpo import grpo
from r1jax.sharding import Partition
from r1jax.stages.grpo import prepare_grpo, train_grpo
from r1jax.stages.sft import prepare_sft, train_sft
from r1jax.training import state as states
from r1jax.weights import paths

# Sections that concern the run as a whole; stages do not see them.
GLOBAL = frozenset(
  {"seed", "stages", "mesh", "model", "tokenizer", "checkpoint", "log"}
  | {"on_change", "cpu_devices", "profile"}
)
# Parts of a stage's settings that change nothing in what it makes.
FREE = (
  *("eval.every", "eval.batch", "eval.slots", "reward.num_workers"),
  "optim.offload",
)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_LINES = 5000  # of a corpus that a vocabulary is trained on
_VOCAB_MULTIPLE = 64  # so that it splits over devices


def keywords(function: Callable, *, without: Sequence[str] = ()) -> dict[str, bool]:
  """{keyword-only argument: whether it must be given}, and positional `source`."""
  return {
    name: parameter.default is parameter.empty
    for name, parameter in inspect.signature(function).parameters.items()
    if (parameter.kind is parameter.KEYWORD_ONLY or name == "source")
    and name not in without
  }


_TEMPLATE = keywords(templates.encode, without=("length",))
_OPTIM = keywords(optim.make_optimizer)
_LORA = dict.fromkeys(("rank", "alpha", "paths"), True)
# What each section of a stage may hold, and whether it must.
SECTIONS: dict[str, dict[str, dict[str, bool]]] = {
  "sft": {
    "examples": keywords(examples.load_examples),
    "template": _TEMPLATE,
    "optim": _OPTIM,
    "moe": dict.fromkeys(("balance_coef", "bias_rate"), True),
    "lora": _LORA,
    "training": dict.fromkeys(
      ("rows", "microbatches", "row_length", "remat", "mtp_coef"), True
    ),
  },
  "grpo": {
    "data": keywords(problems.load_problems),
    "eval": dict.fromkeys(
      ("every", "sets", "max_tokens", "batch", "slots", "samples", "temperature"), True
    )
    | dict.fromkeys(
      ("top_p", "repetition_penalty", "min_tokens", "stop_strings"), False
    ),
    "template": _TEMPLATE,
    "rollout": dict.fromkeys(
      (
        *("prompts", "group_size", "prompt_length", "max_tokens", "slots"),
        *("temperature", "top_k", "top_p", "min_p", "stop_strings"),
        *("draft", "draft_tokens", "oversample", "lag", "weights", "cache"),
      ),
      True,
    ),
    "reward": dict.fromkeys(
      (
        *("weights", "normalise", "language", "num_workers", "timeout_s"),
        *("batch_timeout_s", "memory_limit_mb"),
      ),
      True,
    ),
    "advantage": keywords(group_advantages),
    "truncated": dict.fromkeys(("kind", "penalty"), True),
    "loss": keywords(grpo) | {"importance_cap": True},
    "moe": dict.fromkeys(("balance_coef", "bias_rate", "replay"), True),
    "lora": _LORA,
    "reference": {"refresh_every": True},
    "optim": _OPTIM,
    "training": dict.fromkeys(("rows", "row_length", "minibatches", "remat"), True),
  },
}
_VALUES = {
  "sft": ("kind", "init", "num_steps", "train_on"),
  "grpo": ("kind", "init", "num_steps", "decontaminate"),
}
# Kind of stage -> (reads and checks, runs with what was read).
STAGES: dict[str, tuple[Callable, Callable]] = {
  "sft": (prepare_sft, train_sft),
  "grpo": (prepare_grpo, train_grpo),
}


def stage_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """{name: settings} of every stage, in order.

  Args:
    config: the whole config as plain dicts.

  Raises:
    InputError: a stage without settings, a section or key that is missing or unknown.
  """
  names = tuple(config["stages"])
  if not names or len(set(names)) != len(names):
    raise InputError(f"config.stages={names}: name each stage once, one at least")
  for name in names:
    if not isinstance(config.get(name), Mapping):
      raise InputError(f"config.stages names {name!r}, and there is no config.{name}")
  known = {*GLOBAL, *names, *(key for kind in _VALUES for key in _wanted(kind))}
  for key, value in config.items():
    # Settings of a stage that is not run may stay.
    if key not in known and not (isinstance(value, Mapping) and "kind" in value):
      raise InputError(f"config.{key} is not known{nearest(key, known)}")
  found = {}
  for place, name in enumerate(names):
    own = config[name]
    kind = one_of(own.get("kind", ""), STAGES, key=f"config.{name}.kind")
    wanted = _wanted(kind)
    shared = {k: v for k, v in config.items() if k in wanted and k not in GLOBAL}
    settings = shared | own
    _check(settings, dict.fromkeys(wanted, True), f"config.{name}")
    for section, fields in SECTIONS[kind].items():
      where = f"config.{name}.{section}" if section in own else f"config.{section}"
      _check(settings[section], fields, where)
    if settings["init"] and settings["init"] not in names[:place]:
      raise InputError(
        f"config.{name}.init={settings['init']!r}: must be '' (config.model) or a "
        f"stage before it ({', '.join(names[:place]) or 'there is none'})"
      )
    found[name] = settings
  return found


def _wanted(kind: str) -> tuple[str, ...]:
  return (*SECTIONS[kind], *_VALUES[kind])


def _check(section: Mapping[str, Any], fields: Mapping[str, bool], where: str) -> None:
  if not isinstance(section, Mapping):
    raise InputError(f"{where}={section!r}: must be a section")
  for key in section:
    if key not in fields:
      raise InputError(f"{where}.{key} is not known{nearest(key, fields)}")
  missing = [key for key, needed in fields.items() if needed and key not in section]
  if missing:
    raise InputError(f"{where}.{missing[0]} is missing")


@contextlib.contextmanager
def keys_of(name: str, config: Mapping[str, Any]) -> Iterator[None]:
  """Errors of a stage name keys where the config has them.

  Below the commands a key is `config.optim.eps`; it stands in `config.NAME.optim.eps`
  where the stage has a section `optim` of its own.
  """
  try:
    yield
  except InputError as e:
    raise InputError(relocated(str(e), name, config)) from e


def relocated(text: str, name: str, config: Mapping[str, Any]) -> str:
  return re.sub(
    r"\bconfig\.(\w+)",
    lambda key: f"config.{name}.{key[1]}" if key[1] in config[name] else key[0],
    text,
  )


def depends_on(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
  """All that the result of a stage depends on, without `FREE` parts."""
  kept = dict(settings)
  for path in FREE:
    section, key = path.split(".")
    if section in kept:
      kept[section] = {k: v for k, v in kept[section].items() if k != key}
  return kept | dict(more)


def make_tokenizer(
  config: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], workdir: Path
) -> tokenizers.Tokenizer:
  """The tokenizer of a run: from `config.tokenizer.path`, from the model's own files,
  or trained on the examples of the first stage and kept in the run directory.

  Raises:
    InputError: nothing to read or to train on; not the one that the model has.
  """
  path, model_path = config["tokenizer"]["path"], config["model"]["path"]
  if model_path:
    model_path = paths.local_path(model_path)
  if path or model_path:
    tokenizer = tokenizers.load_tokenizer(path or model_path)
    if path and model_path:
      own = tokenizers.load_tokenizer(model_path)
      if own.fingerprint != tokenizer.fingerprint:
        raise InputError(
          f"config.tokenizer.path={path!r} is not the vocabulary of the model in "
          f"{str(model_path)!r} ({tokenizer.vocab_size} pieces against "
          f"{own.vocab_size}); leave config.tokenizer.path '' to take the model's own"
        )
    return tokenizer
  name, first = next(iter(stages.items()))
  if first["kind"] != "sft":
    raise InputError(
      "config.model.path and config.tokenizer.path are '', and the first stage "
      f"{name!r} has no examples to train a tokenizer on; set one of the paths"
    )
  how = {key: value for key, value in config["tokenizer"].items() if key != "path"}
  # As JSON, so that a config which was read back from a run names the same file.
  made_from = trees.digest(json.dumps([how, first["examples"]], sort_keys=True))
  kept = workdir / "tokenizer" / f"{made_from}.model"
  if kept.exists():
    return tokenizers.load_tokenizer(kept)
  source = dict(first["examples"])
  if source.get("size") is not None:
    source["size"] = min(source["size"], _LINES)
  lines = [
    example.problem.prompt + example.completion
    for example in examples.load_examples(**source)[:_LINES]
  ]
  return tokenizers.train_sentencepiece(lines, path=kept, **how)


def make_model(
  config: Mapping[str, Any], tokenizer: tokenizers.Tokenizer, partition: Partition
) -> tuple[ModelConfig, Callable[[], Any]]:
  """The shape of the model, and a function that makes its parameters, float32.

  Raises:
    InputError: an unknown preset or field, no such file, a vocabulary that is too
      large for the model, dimensions that do not split over the mesh.
  """
  section = config["model"]
  if section["path"]:
    model = paths.read_config(section["path"])
    if section["shape"]:
      raise InputError("config.model.shape is set, but the model's file has a shape")
  else:
    preset = PRESETS[one_of(section["preset"], PRESETS, key="config.model.preset")]
    vocab = -(-tokenizer.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    model = changed(preset, {"vocab": vocab, **section["shape"]})
  if tokenizer.vocab_size > model.vocab:
    raise InputError(
      f"the tokenizer has {tokenizer.vocab_size} pieces and the model {model.vocab} "
      "rows for them: it is of another model; look at config.tokenizer.path"
    )
  specs = parameters.param_specs(model)
  shardings = partition.of_specs(specs)
  if not section["path"]:
    make = functools.partial(
      states.init_params, specs, prng.root(config["seed"]), partition, jnp.float32
    )
    return model, make

  def load() -> Any:
    path = section["path"]
    return paths.load_model(path, dtype=jnp.float32, shardings=shardings)[1]

  return model, load


def compute_dtype(name: str) -> Any:
  """ "auto" is float32 on CPU, where bfloat16 is no faster, and bfloat16 elsewhere."""
  one_of(name, ("auto", *DTYPES), key="config.model.compute_dtype")
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return DTYPES[name]
