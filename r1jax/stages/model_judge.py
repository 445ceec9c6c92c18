"""A decoder in this process as a judge; see `rewards.judge.Ask`."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax import prng, trees
from r1jax.data import templates
from r1jax.data import tokenizer as tokenizers
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.rewards.endpoint import Messages
from r1jax.stages.rollouts import Sampler
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.types import Problem
from r1jax.weights import paths


class ModelJudge:
  """Conversations in, replies out, drawn by a sampler of the model that judges.

  Every process must ask the same, and nothing else may run on the devices of several
  meanwhile: so it is for stages that label data, not for a `JudgedPool`, which each
  process asks for its own share while a rollout is drawn.

  Args:
    tokenizer: the model's, with a chat template.
    sampler: of one answer a prompt.
    weights: what it draws with (`Sampler.weights`).
    prompt_length: most tokens of a prompt, the sampler's; a longer one has no reply.
    seed: of the draws. A draw depends on it, on the conversation and on how many like
      it were asked before in the same call.

  Attributes:
    counts: since the beginning: `calls` and `failed` (prompts that are too long).
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    sampler: Sampler,
    weights: Any,
    *,
    prompt_length: int,
    seed: int,
  ):
    self._tokenizer = tokenizer
    self._sampler = sampler
    self._weights = weights
    self._prompt_length = prompt_length
    self._key = prng.at(prng.root(seed), "judge")
    self.counts: collections.Counter[str] = collections.Counter()

  def __call__(self, prompts: Sequence[Messages]) -> list[str]:
    """The reply to each conversation, in order; "" where there is none."""
    replies = [""] * len(prompts)
    seen: collections.Counter[str] = collections.Counter()
    asked: list[tuple[int, list[int], Problem]] = []
    for i, messages in enumerate(prompts):
      text = templates.render_chat(list(messages), self._tokenizer)
      ids = self._tokenizer.encode(text)
      name = trees.digest(json.dumps(list(map(dict, messages)), sort_keys=True))
      if len(ids) <= self._prompt_length:
        asked.append((i, ids, Problem(f"{name}/{seen[name]}", text, "", "exact")))
      seen[name] += 1
    self.counts.update(calls=len(asked), failed=len(prompts) - len(asked))
    for start in range(0, len(asked), self._sampler.num_prompts):
      places, ids, problems = zip(
        *asked[start : start + self._sampler.num_prompts], strict=True
      )
      rollout = self._sampler(self._weights, ids, problems, self._key)
      texts = self._sampler.texts(self._sampler.completions(rollout))
      for place, text in zip(places, texts, strict=True):
        replies[place] = text
    return replies


def of_section(run: Run, section: Mapping[str, Any]) -> Callable[[], ModelJudge]:
  """What makes the judge of `config.judge.model`; its weights are read when it is made.

  Raises:
    InputError: no model or two, one without a chat template, sizes that do not fit.
  """
  path, stage = section["path"], section["stage"]
  if bool(path) == bool(stage):
    raise InputError(
      f"config.judge.model.path={path!r} and stage={stage!r}: give one of the two"
    )
  if stage:
    its = run.of(stage)
    read = functools.partial(its.params_of, stage)
  else:
    try:
      local = paths.local_path(path)
    except InputError as e:
      raise InputError(str(e).replace("config.model.", "config.judge.model.")) from e
    its = dataclasses.replace(
      run, model=paths.read_config(local), tokenizer=tokenizers.load_tokenizer(local)
    )
    shardings = run.partition.of_specs(parameters.param_specs(its.model))

    def read() -> Any:
      return paths.load_model(local, dtype=np.float32, shardings=shardings)[1]

  if its.tokenizer.chat_template is None:
    raise InputError(
      f"config.judge.model.path={path!r}, stage={stage!r}: a judge is asked as in a "
      "conversation, and this model's tokenizer has no chat template; name another one"
    )
  sizes = {key: section[key] for key in ("prompts", "prompt_length", "max_tokens")}
  for key, value in sizes.items():
    if value < 1:
      raise InputError(f"config.judge.model.{key}={value}: must be 1 or more")
  room = sizes["prompt_length"] + sizes["max_tokens"]
  if room > its.model.max_length:
    raise InputError(
      f"config.judge.model.prompt_length + max_tokens = {room} are more than the "
      f"{its.model.max_length} positions of the judge; lower one"
    )
  controls = {"temperature": section["temperature"]}
  sampler = Sampler(its, Trainable(its, None), samples=1, controls=controls, **sizes)

  def make() -> ModelJudge:
    return ModelJudge(
      its.tokenizer,
      sampler,
      sampler.weights(read()),
      prompt_length=sizes["prompt_length"],
      seed=run.seed,
    )

  return make
