"""A decoder in this process as a judge; see `rewards.judge.Ask`."""

import collections
import json
from collections.abc import Sequence
from typing import Any

from r1jax import prng, trees
from r1jax.data import templates
from r1jax.data.tokenizer import Tokenizer
from r1jax.rewards.endpoint import Messages
from r1jax.stages.rollouts import Sampler
from r1jax.types import Problem


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
