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
from r1jax.data import examples, filters, judged, problems, templates
from r1jax.data import tokenizer as tokenizers
from r1jax.errors import InputError, nearest, one_of
from r1jax.models import parameters
from r1jax.models.config import ModelConfig, changed
from r1jax.models.presets import PRESETS
from r1jax.objectives.corrections import importance
from r1jax.objectives.policy_gradient import policy_gradient
from r1jax.sharding import Partition
from r1jax.stages.average import average, prepare_average
from r1jax.stages.distill import prepare_distill, train_distill
from r1jax.stages.expert import prepare_expert, train_expert
from r1jax.stages.grpo import prepare_grpo, train_grpo
from r1jax.stages.held_out import evaluate_held_out, prepare_evaluation
from r1jax.stages.pairs import LEARNT_FROM, make_pairs, prepare_pairs
from r1jax.stages.preference import prepare_preference, train_preference
from r1jax.stages.rejection import make_rejection, prepare_rejection
from r1jax.stages.reward_model import prepare_reward_model, train_reward_model
from r1jax.stages.run import DATA_KINDS, Run
from r1jax.stages.sft import prepare_sft, train_sft
from r1jax.training import state as states
from r1jax.weights import paths

# Sections that concern the run as a whole; stages do not see them.
GLOBAL = frozenset(
  {"seed", "stages", "mesh", "model", "tokenizer", "checkpoint", "log"}
  | {"on_change", "cpu_devices", "profile"}
)
# Of these a stage may have its own, which are then its model's.
MODEL = ("model", "tokenizer")
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
_ROLLOUT = (
  *("prompts", "group_size", "prompt_length", "max_tokens", "slots", "temperature"),
  *("top_k", "top_p", "min_p", "stop_strings", "draft", "draft_tokens"),
  *("weights", "cache"),
)
_REWARD = (
  *("weights", "categories", "format", "language", "repetition_ngram", "judge", "code"),
  *("num_workers", "timeout_s", "batch_timeout_s", "memory_limit_mb"),
)
_EVAL = (
  *("sets", "max_tokens", "batch", "slots", "samples", "temperature", "top_p"),
  *("repetition_penalty", "min_tokens", "stop_strings"),
)
# What each section of a stage may hold, and whether it must.
SECTIONS: dict[str, dict[str, dict[str, Any]]] = {
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
  "pairs": {
    "data": keywords(problems.load_problems),
    "template": _TEMPLATE,
    "rollout": dict.fromkeys(_ROLLOUT, True),
    "reward": dict.fromkeys((*_REWARD, "models"), True),
    "judge": {
      "kind": True,
      "reads": True,
      "judgements": True,
      "model": dict.fromkeys(
        ("path", "stage", "prompts", "prompt_length", "max_tokens", "temperature"), True
      ),
    },
    "choose": dict.fromkeys(
      ("kind", "per_problem", "min_gap", "threshold", "balance_lengths"), True
    ),
    "steps": dict.fromkeys(("rollouts", "labels"), True),
  },
  "preference": {
    "data": keywords(judged.load_judged, without=("objective",)) | {"stage": True},
    "template": _TEMPLATE,
    "loss": {"kind": True, "beta": False, "gamma": False, "nll_coef": False},
    "optim": _OPTIM,
    "moe": dict.fromkeys(("balance_coef", "bias_rate"), True),
    "lora": _LORA,
    "training": dict.fromkeys(("rows", "microbatches", "row_length", "remat"), True),
  },
  "reward_model": {
    "data": keywords(judged.load_judged, without=("objective",))
    | dict.fromkeys(("stage", "held_out", "balance_lengths"), True),
    "template": _TEMPLATE,
    "optim": _OPTIM,
    "moe": {"balance_coef": True},
    "lora": _LORA,
    "eval": {"every": True},
    "training": dict.fromkeys(("batch", "rows", "row_length", "remat"), True),
  },
  "evaluation": {
    "eval": dict.fromkeys(_EVAL, True),
    "template": _TEMPLATE,
    "rollout": {"prompt_length": True},
    "reward": dict.fromkeys(_REWARD, True),
  },
  "expert": {
    "data": keywords(problems.load_problems),
    "eval": dict.fromkeys(_EVAL, True),
    "template": _TEMPLATE,
    "rollout": dict.fromkeys(_ROLLOUT, True),
    "reward": dict.fromkeys((*_REWARD, "models"), True),
    "keep": dict.fromkeys(("set", "part", "threshold", "per_problem"), True),
    "tags": dict.fromkeys(("good", "bad"), True),
    "moe": dict.fromkeys(("balance_coef", "bias_rate"), True),
    "lora": _LORA,
    "optim": _OPTIM,
    "training": dict.fromkeys(
      ("rows", "microbatches", "row_length", "remat", "mtp_coef"), True
    ),
  },
  "average": {},
  "rejection": {
    "data": keywords(problems.load_problems),
    "template": _TEMPLATE,
    "rollout": dict.fromkeys(_ROLLOUT, True),
    "reward": dict.fromkeys((*_REWARD, "models"), True),
    "choose": dict.fromkeys(("kind", "part", "least"), True),
    "keep": dict.fromkeys(
      (*filters.MEASURES, "truncated", "least", "foreign_words", "per_problem"), True
    ),
    "rewrite": dict.fromkeys(("form", "endpoint"), True),
    "formats": dict.fromkeys(
      ("names", "exemplars", "num_exemplars", "cue", "answer_form"), True
    ),
  },
  "distill": {
    "examples": dict.fromkeys(keywords(examples.load_examples), False),
    "data": dict.fromkeys(keywords(problems.load_problems), False),
    "template": _TEMPLATE,
    "teacher": dict.fromkeys(("path", "stage"), True),
    "loss": dict.fromkeys(("divergence", "beta", "temperature"), True),
    "rollout": dict.fromkeys(_ROLLOUT, True),
    "moe": dict.fromkeys(("balance_coef", "bias_rate"), True),
    "lora": _LORA,
    "optim": _OPTIM,
    "training": dict.fromkeys(("rows", "microbatches", "row_length", "remat"), True),
  },
  "grpo": {
    "data": keywords(problems.load_problems),
    "eval": dict.fromkeys((*_EVAL, "every"), True),
    "template": _TEMPLATE,
    "rollout": dict.fromkeys((*_ROLLOUT, "oversample", "max_age", "lag"), True),
    "reward": dict.fromkeys((*_REWARD, "normalise", "models"), True),
    "shaping": dict.fromkeys(
      (
        *("overlong_buffer", "cosine_correct", "cosine_wrong", "cosine_exceeded"),
        *("shortest_bonus", "outcome_gate"),
      ),
      True,
    ),
    "filter": dict.fromkeys(("kind", "max_rounds"), True),
    "curriculum": dict.fromkeys(("kind", "decay", "floor"), True),
    "advantage": dict.fromkeys(
      ("estimator", "steps", "std", "eps", "kl_coef", "gamma", "gae_lambda"), True
    ),
    "truncated": dict.fromkeys(("kind", "penalty"), True),
    "loss": keywords(policy_gradient) | keywords(importance),
    "critic": {"clip": True, "optim": _OPTIM},
    "moe": dict.fromkeys(("balance_coef", "bias_rate", "replay"), True),
    "lora": _LORA,
    "reference": dict.fromkeys(("refresh_every", "kl_target", "kl_horizon"), True),
    "optim": _OPTIM,
    "training": dict.fromkeys(
      ("rows", "row_length", "minibatches", "epochs", "remat"), True
    ),
  },
}
_VALUES = {
  "average": ("kind", "stages", "weights"),
  "sft": ("kind", "init", "num_steps", "epochs", "train_on"),
  "evaluation": ("kind", "init"),
  "pairs": ("kind", "init", "labels"),
  "preference": ("kind", "init", "num_steps"),
  "distill": ("kind", "init", "num_steps", "on_policy"),
  "expert": (
    *("kind", "init", "num_steps", "decontaminate", "round_steps", "patience"),
    *("dev", "asks"),
  ),
  "reward_model": ("kind", "init", "num_steps", "objective", "reads"),
  "rejection": ("kind", "init", "decontaminate", "held_out", "also", "shares"),
  "grpo": ("kind", "init", "num_steps", "decontaminate"),
}
# Kind of stage -> (reads and checks, runs with what was read).
STAGES: dict[str, tuple[Callable, Callable]] = {
  "sft": (prepare_sft, train_sft),
  "average": (prepare_average, average),
  "evaluation": (prepare_evaluation, evaluate_held_out),
  "pairs": (prepare_pairs, make_pairs),
  "preference": (prepare_preference, train_preference),
  "expert": (prepare_expert, train_expert),
  "distill": (prepare_distill, train_distill),
  "rejection": (prepare_rejection, make_rejection),
  "reward_model": (prepare_reward_model, train_reward_model),
  "grpo": (prepare_grpo, train_grpo),
}


def stage_sections(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """{name: settings} of every stage, in order, as they are: those of a run that an
  earlier version has made may lack some.

  Args:
    config: the whole config as plain dicts.

  Raises:
    InputError: a stage without settings, or of no known kind.
  """
  names = tuple(config["stages"])
  if not names or len(set(names)) != len(names):
    raise InputError(f"config.stages={names}: name each stage once, one at least")
  for name in names:
    if not isinstance(config.get(name), Mapping):
      raise InputError(f"config.stages names {name!r}, and there is no config.{name}")
    if name in GLOBAL:
      raise InputError(f"config.stages: {name!r} is a section of the run; rename it")
  found = {}
  for name in names:
    own = {key: value for key, value in config[name].items() if key not in MODEL}
    kind = one_of(own.get("kind", ""), STAGES, key=f"config.{name}.kind")
    wanted = _wanted(kind)
    shared = {k: v for k, v in config.items() if k in wanted and k not in GLOBAL}
    found[name] = shared | own
  return found


def stage_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The same of a run to be made.

  Raises:
    InputError: as `stage_sections`; a section or key that is missing or unknown; stages
      that do not go together.
  """
  sections = stage_sections(config)
  names = tuple(sections)
  known = {*GLOBAL, *names, *(key for kind in _VALUES for key in _wanted(kind))}
  for key, value in config.items():
    # Settings of a stage that is not run may stay.
    if key not in known and not (isinstance(value, Mapping) and "kind" in value):
      raise InputError(f"config.{key} is not known{nearest(key, known)}")
  found = {}
  for place, (name, settings) in enumerate(sections.items()):
    kind = settings["kind"]
    for key in MODEL:
      if key in config[name]:
        fields = dict.fromkeys(config[key], True)
        _check(config[name][key], fields, f"config.{name}.{key}")
    _check(settings, dict.fromkeys(_wanted(kind), True), f"config.{name}")
    for section, fields in SECTIONS[kind].items():
      is_own = section in config[name]
      where = f"config.{name}.{section}" if is_own else f"config.{section}"
      _check(settings[section], fields, where)
    for key, stage in inputs(settings).items():
      if stage not in names[:place]:
        raise InputError(
          f"config.{name}.{key}={stage!r}: must be '' or a stage before it "
          f"({', '.join(names[:place]) or 'there is none'})"
        )
      allowed = _made_by(key)
      if found[stage]["kind"] not in allowed:
        raise InputError(
          f"config.{name}.{key}={stage!r} is of the kind {found[stage]['kind']!r}; "
          f"name one of the kind {' or '.join(map(repr, allowed))}"
        )
      if key == "data.stage":
        labels, learns = found[stage]["labels"], settings.get("objective", "pairwise")
        if labels != LEARNT_FROM.get(learns, labels):
          raise InputError(
            f"config.{name}.data.stage={stage!r} makes {labels!r} labels, from which "
            f"{learns!r} is not learned; change config.{stage}.labels, or name another"
          )
      is_weights = key.split(".")[0] in ("init", "stages")
      if is_weights and of_stage(config, stage) != of_stage(config, name):
        raise InputError(
          f"config.{name}.{key}={stage!r} has another model; give both stages the same "
          "sections `model` and `tokenizer`"
        )
    found[name] = settings
  return found


def inputs(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
  """{key: the earlier stage that it names} of a stage's settings, at any depth.

  Keys are `init`, `stage`, and the places of `stages`, a list.
  """
  found = {}
  for key, value in settings.items():
    path = f"{prefix}{key}"
    if isinstance(value, Mapping):
      found |= inputs(value, f"{path}.")
    elif key == "stages":
      found |= {f"{path}.{place}": stage for place, stage in enumerate(value)}
    elif key in ("init", "stage") and value:
      found[path] = value
  return found


def _made_by(key: str) -> tuple[str, ...]:
  """Kinds of stages that make what a key of `inputs` wants."""
  special = {
    "reward": ("reward_model",),
    "data": ("pairs",),
    "examples": ("rejection",),
    "also": ("rejection",),
  }
  weights = [kind for kind in STAGES if kind not in (*DATA_KINDS, "reward_model")]
  return special.get(key.split(".")[0], tuple(weights))


def of_stage(config: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The sections `MODEL` of a stage: its own, or those of the run."""
  return {key: config[name].get(key, config[key]) for key in MODEL}


def check_tokenizers(run: Run, stages: Mapping[str, Mapping[str, Any]]) -> None:
  """Raises InputError where a stage asks a model that reads other tokens."""
  for name, settings in stages.items():
    for key, stage in inputs(settings).items():
      reads_text = key.split(".")[0] in ("data", "examples", "also", "judge")
      if reads_text or run.of(stage).tokenizer.fingerprint == (
        run.of(name).tokenizer.fingerprint
      ):
        continue
      raise InputError(
        f"config.{name}.{key}={stage!r} has another tokenizer than {name!r}; name a "
        "stage that shares it"
      )


def _wanted(kind: str) -> tuple[str, ...]:
  return (*SECTIONS[kind], *_VALUES[kind])


def _check(section: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> None:
  """`fields` are {key: whether it must be there}, of a section in it its own fields."""
  if not isinstance(section, Mapping):
    raise InputError(f"{where}={section!r}: must be a section")
  for key in section:
    if key not in fields:
      raise InputError(f"{where}.{key} is not known{nearest(key, fields)}")
  missing = [key for key, needed in fields.items() if needed and key not in section]
  if missing:
    raise InputError(f"{where}.{missing[0]} is missing")
  for key, inner in fields.items():
    if isinstance(inner, Mapping):
      _check(section[key], inner, f"{where}.{key}")


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
