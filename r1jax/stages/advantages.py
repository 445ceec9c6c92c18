"""From judged answers to the advantage of every token, on the host.

Rewards of an answer come first: weighted parts, points for its length, what truncation
does. Then the estimator compares answers; some need log-probs, or a critic's values, of
each token.

Letters: Q prompts, G samples per prompt, B = Q * G answers, T tokens of one answer.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.errors import InputError, one_of
from r1jax.objectives import advantages as estimators
from r1jax.objectives import reduce, shaping
from r1jax.rewards.combine import combine
from r1jax.stages import categories, model_part
from r1jax.stages.model_part import Steps
from r1jax.types import Problem

# What a setting is where it does nothing.
_OFF = {"std": "none", "eps": 0.0, "gamma": 1.0, "gae_lambda": 1.0}


@dataclasses.dataclass(frozen=True)
class Rewards:
  """Of all answers to some prompts.

  Attributes:
    parts_QG: by name; "shaping" among them where lengths have points. NaN where a
      problem does not have the part.
    total_QG: what is logged: the weighted parts, and the points for lengths.
    cut_QG: where the length limit ended the answer.
    taken_QG: what advantages are made of.
    trained_QG: 1 where the tokens may be trained on.
  """

  parts_QG: Mapping[str, np.ndarray]
  total_QG: np.ndarray
  cut_QG: np.ndarray
  taken_QG: np.ndarray
  trained_QG: np.ndarray


def rewards(
  config: Mapping[str, Any],
  parts_QG: Mapping[str, np.ndarray],
  problems: Sequence[Problem],
  length_QG: np.ndarray,
  stopped_QG: np.ndarray,
) -> Rewards:
  """What a stage's `reward`, `shaping` and `truncated` make of judged answers.

  Args:
    problems: Q of them, whose categories decide on the weights.
    length_QG: tokens.
    stopped_QG: whether the answer ended by itself.
  """
  weights_Q = categories.weights(config, problems)
  total_QG = combine(parts_QG, weights_Q, normalise=config["reward"]["normalise"])
  points_QG = points(config, parts_QG["accuracy"], length_QG)
  if points_QG is not None:
    parts_QG = {**parts_QG, "shaping": points_QG}
    total_QG = total_QG + points_QG
  cut_QG = ~stopped_QG
  taken_QG, trained_QG = reduce.apply_truncated(
    total_QG,
    cut_QG,
    truncated=config["truncated"]["kind"],
    penalty=config["truncated"]["penalty"],
  )
  return Rewards(parts_QG, total_QG, cut_QG, taken_QG, trained_QG)


def points(
  config: Mapping[str, Any], correct_QG: np.ndarray, length_QG: np.ndarray
) -> np.ndarray | None:
  """Points for the length of answers, float32; None where the stage gives none.

  Args:
    correct_QG: NaN where there is no gold; such answers have none of the points that
      depend on being right or wrong.
  """
  own, max_tokens = config["shaping"], config["rollout"]["max_tokens"]
  made = []
  if own["overlong_buffer"]:
    buffer = own["overlong_buffer"]
    made.append(shaping.soft_overlong(length_QG, max_tokens=max_tokens, buffer=buffer))
  if own["cosine_correct"] or own["cosine_wrong"]:
    cosine_QG = shaping.cosine_length(
      correct_QG,
      length_QG,
      max_tokens=max_tokens,
      correct=own["cosine_correct"],
      wrong=own["cosine_wrong"],
      exceeded=own["cosine_exceeded"],
    )
    made.append(np.where(np.isnan(correct_QG), 0, cosine_QG))
  if own["shortest_bonus"]:
    bonus = own["shortest_bonus"]
    made.append(shaping.shortest_correct(correct_QG, length_QG, bonus=bonus))
  if not made:
    return None
  points_QG = sum(made)
  if own["outcome_gate"]:
    points_QG = shaping.outcome_gate(correct_QG, points_QG)
  return np.asarray(points_QG, np.float32)


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where `advantage`, `shaping` or `truncated` cannot be."""
  own = config["advantage"]
  name = one_of(
    own["estimator"], estimators.ESTIMATORS, key="config.advantage.estimator"
  )
  _check_steps(config)
  reads = _reads(name)
  for key, off in _OFF.items():
    if key not in reads and own[key] != off:
      raise InputError(
        f"config.advantage.{key}={own[key]!r} does nothing with "
        f"config.advantage.estimator={name!r}; leave it {off!r}"
      )
  if name == "gae":
    one_of(own["std"], ("population", "none"), key="config.advantage.std")
  one_of(own["std"], estimators.STD_KINDS, key="config.advantage.std")
  for key in ("gamma", "gae_lambda"):
    if not 0 <= own[key] <= 1:
      raise InputError(f"config.advantage.{key}={own[key]}: must be in [0, 1]")
  for key in ("eps", "kl_coef"):
    if not own[key] >= 0:
      raise InputError(f"config.advantage.{key}={own[key]}: must be 0 or more")
  pairs = [config["shaping"][f"cosine_{which}"] for which in ("correct", "wrong")]
  if any(pairs) and any(len(pair) != 2 for pair in pairs):
    raise InputError(
      f"config.shaping.cosine_correct={pairs[0]} and cosine_wrong={pairs[1]}: two "
      "numbers each, or () both for none"
    )
  if name == "remax" and model_part.MAJORITY in categories.parts(config):
    raise InputError(
      f"config.advantage.estimator={name!r} with a weight for "
      f"{model_part.MAJORITY!r}: its greedy answer is one that nothing can agree "
      "with; choose another estimator"
    )
  nothing_QG = np.zeros((1, 1))
  rewards(
    config,
    dict.fromkeys([*categories.parts(config), "accuracy"], nothing_QG),
    [Problem("", "", "", "")],
    nothing_QG,
    nothing_QG > 0,
  )


def _check_steps(config: Mapping[str, Any]) -> None:
  """Raises InputError where `advantage.steps` and the estimator do not go together."""
  own = config["advantage"]
  steps, name = own["steps"], own["estimator"]
  if bool(steps) != (name == "process"):
    raise InputError(
      f"config.advantage.steps={steps!r} with config.advantage.estimator={name!r}: "
      "'process' needs a name in config.reward.models there, others ''"
    )
  if not steps:
    return
  for key, weights in categories.all_weights(config).items():
    if steps not in weights:
      raise InputError(f"{key} has no {steps!r}, which config.advantage.steps names")
  if own["kl_coef"] or config["reward"]["normalise"] != "none":
    raise InputError(
      f"config.advantage.kl_coef={own['kl_coef']} and config.reward.normalise="
      f"{config['reward']['normalise']!r}: with config.advantage.estimator='process' "
      "leave them 0 and 'none'"
    )


def step_rewards(
  config: Mapping[str, Any],
  judged: Rewards,
  problems: Sequence[Problem],
  steps: Steps | None,
) -> Steps | None:
  """Rewards of steps, for "process"; None for others.

  A step has its score by the model, times the weight. All else of an answer's reward
  (other parts, points for its length) is had at its last step. Departs: DeepSeekMath
  (arXiv 2402.03300) section 4.1.3 has nothing else.

  Args:
    steps: what the model says of all answers to the problems.
  """
  if steps is None:
    return None
  part = config["advantage"]["steps"]
  weight_Q = np.asarray([own[part] for own in categories.weights(config, problems)])
  samples = judged.taken_QG.shape[1]
  rest_B = (judged.taken_QG - weight_Q[:, None] * judged.parts_QG[part]).reshape(-1)
  made = []
  for b, (own_K, rest) in enumerate(zip(steps.rewards, rest_B, strict=True)):
    points_K = weight_Q[b // samples] * np.asarray(own_K, np.float64)
    points_K[-1] += rest
    made.append(points_K)
  return Steps(made, steps.ends)


def reads_tokens(config: Mapping[str, Any]) -> bool:
  """Whether log-probs of the tokens are needed before advantages can be made."""
  own = config["advantage"]
  return own["estimator"] in ("reinforce_pp", "gae") or own["kl_coef"] != 0


def _reads(name: str) -> set[str]:
  """Settings that an estimator reads."""
  found = inspect.signature(estimators.ESTIMATORS[name]).parameters.keys() & _OFF.keys()
  # Advantages of GAE may be brought to mean 0 and deviation 1 afterwards.
  return found | ({"std", "eps"} if name == "gae" else set())


@dataclasses.dataclass(frozen=True)
class Advantages:
  """Of the tokens of each answer, float [T].

  Attributes:
    tokens: advantages.
    returns: what a critic should have said; None without one.
    kl: nats a token from the reference, of tokens that are trained on; None where it is
      not in the reward.
  """

  tokens: Sequence[np.ndarray]
  returns: Sequence[np.ndarray] | None = None
  kl: float | None = None

  @property
  def mean_B(self) -> np.ndarray:
    """Of each answer the mean over its tokens."""
    return np.asarray([own_T.mean() for own_T in self.tokens])


def advantages(
  config: Mapping[str, Any],
  reward_QG: np.ndarray,
  trained_QG: np.ndarray,
  lengths: Sequence[int],
  *,
  greedy_Q: np.ndarray | None = None,
  logp: Sequence[np.ndarray] | None = None,
  logp_ref: Sequence[np.ndarray] | None = None,
  values: Sequence[np.ndarray] | None = None,
  steps: Steps | None = None,
  kl_coef: float = 0.0,
) -> Advantages:
  """What a stage's `advantage` makes of rewards.

  Args:
    reward_QG: points.
    trained_QG: 0 where an answer is not trained on. Its reward counts for its group
      where another of it is; its tokens are in no mean or deviation.
    lengths: tokens of each of the B answers, one at least.
    greedy_Q: reward of the greedy answer to each prompt, for "remax".
    logp, logp_ref: of the tokens of each answer, under the policy and the reference;
      None where `kl_coef` is 0.
    values: what a critic says before each token, for "gae".
    steps: rewards of the steps of each answer, for "process".
    kl_coef: points a nat, that the KL takes off the reward.
  """
  own = config["advantage"]
  name = own["estimator"]
  how = {key: own[key] for key in _reads(name)}
  nothing = [np.zeros(length) for length in lengths]
  rewards = estimators.token_rewards(
    reward_QG.reshape(-1),
    nothing if logp is None else logp,
    nothing if logp_ref is None else logp_ref,
    kl_coef=kl_coef,
  )
  chosen = np.flatnonzero(trained_QG.reshape(-1))
  kl = None
  if logp_ref is not None and len(chosen):
    apart = [logp[b] - logp_ref[b] for b in chosen]
    kl = float(np.concatenate(apart).mean(dtype=np.float64))
  if name in estimators.GROUP:
    if kl_coef:
      sums = np.asarray([points_T.sum() for points_T in rewards])
      reward_QG = sums.reshape(reward_QG.shape)
    made_QG, taken_Q = np.zeros(reward_QG.shape), trained_QG.any(axis=1)
    if taken_Q.any():
      given = [reward_QG] if greedy_Q is None else [reward_QG, greedy_Q]
      made_QG[taken_Q] = estimators.GROUP[name](*(x[taken_Q] for x in given), **how)
    pairs = zip(lengths, made_QG.reshape(-1), strict=True)
    tokens = [np.full(length, one) for length, one in pairs]
    return Advantages(tokens, kl=kl)
  tokens, returns = list(nothing), None
  if name == "process":
    samples = reward_QG.shape[1]
    for q in np.flatnonzero(trained_QG.any(axis=1)):
      group = slice(q * samples, (q + 1) * samples)
      given = (steps.rewards[group], steps.ends[group], lengths[group])
      tokens[group] = estimators.process(*given, **how)
    return Advantages(tokens, kl=kl)
  if not len(chosen):
    return Advantages(tokens, None if values is None else nothing, kl)
  learnt = [rewards[b] for b in chosen]
  if name == "gae":
    how = {key: own[key] for key in ("gamma", "gae_lambda")}
    made, targets = estimators.gae(learnt, [values[b] for b in chosen], **how)
    if own["std"] != "none":
      made = estimators.whitened(made, eps=own["eps"])
    returns = list(nothing)
    for b, target in zip(chosen, targets, strict=True):
      returns[b] = target
  else:
    made = estimators.TOKEN[name](learnt, **how)
  for b, one in zip(chosen, made, strict=True):
    tokens[b] = one
  return Advantages(tokens, returns, kl)
