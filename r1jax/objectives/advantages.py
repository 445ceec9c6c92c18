"""Advantages from rewards. numpy, on the host.

`GROUP` estimators give an answer one advantage, `TOKEN` estimators one to each of its
tokens. The second kind reads rewards token by token, which `token_rewards` makes of an
answer's reward and of the divergence from a reference.

Letters: Q prompts, G samples per prompt, N answers, T tokens of one answer, K steps of
one answer.
"""

from collections.abc import Callable, Sequence

import numpy as np

from r1jax.errors import one_of

STD_KINDS = ("population", "sample", "none")


def grpo(
  reward_QG: np.ndarray, *, std: str = "population", eps: float = 0.0
) -> np.ndarray:
  """(reward - group mean) / (group std + eps), one number per answer.

  DeepSeekMath (arXiv 2402.03300) section 4.1.2; R1 uses the same. The papers do not say
  which deviation they mean: "population" divides by G, "sample" by G - 1, and "none"
  leaves the centred reward as Dr. GRPO (arXiv 2503.20783) does.

  A group whose rewards are all equal has advantage exactly 0. This is decided by
  comparing the rewards: in float32 the mean of equal numbers can miss them by a
  rounding error, which a division by the deviation would blow up to size 1.

  Args:
    reward_QG: rewards in points.
    eps: added to the deviation. 0 is safe, and keeps advantages the same when rewards
      are scaled and shifted.
  """
  return _normalised(reward_QG, axis=1, std=std, eps=eps)


def rloo(reward_QG: np.ndarray) -> np.ndarray:
  """Reward less the mean of the group's other rewards.

  Ahmadian et al. (arXiv 2402.14740) section 3: G / (G - 1) of the centred reward. A
  group of one has no other and gives 0.
  """
  group_size = reward_QG.shape[1]
  return grpo(reward_QG, std="none") * (group_size / max(group_size - 1, 1))


def remax(reward_QG: np.ndarray, greedy_Q: np.ndarray) -> np.ndarray:
  """Reward less that of the greedy answer to the same prompt.

  Li et al. (arXiv 2310.10505). It asks for one more answer of each prompt.
  """
  return reward_QG - np.asarray(greedy_Q)[:, None]


def batch_std(reward_QG: np.ndarray, *, eps: float = 0.0) -> np.ndarray:
  """(reward - group mean) / (std of all rewards of the batch + eps).

  Lite PPO (arXiv 2508.08221): a group where nearly all rewards agree is not blown up.
  The deviation divides by Q G.
  """
  scale = 0.0 if reward_QG.max() == reward_QG.min() else reward_QG.std()
  return _over(grpo(reward_QG, std="none"), scale, eps)


def reinforce_pp_baseline(reward_QG: np.ndarray, *, eps: float = 0.0) -> np.ndarray:
  """(reward - group mean), then brought to deviation 1 over the batch.

  REINFORCE++ with baseline (arXiv 2501.03262). Group means being taken off, the mean
  over the batch is 0 already.
  """
  return _normalised(grpo(reward_QG, std="none"), axis=(0, 1), eps=eps)


def token_rewards(
  reward_N: np.ndarray,
  logp: Sequence[np.ndarray],
  logp_ref: Sequence[np.ndarray],
  *,
  kl_coef: float,
) -> list[np.ndarray]:
  """-kl_coef * (logp - logp_ref) on each token, and the reward on the last one.

  The KL inside of the reward, by k1 (Ouyang et al., arXiv 2203.02155; REINFORCE++).

  Args:
    logp, logp_ref: [T] of each answer, which has one token at least.
  """
  made = []
  for reward, own, ref in zip(reward_N, logp, logp_ref, strict=True):
    points_T = -kl_coef * (np.asarray(own, np.float64) - np.asarray(ref, np.float64))
    points_T[-1] += reward
    made.append(points_T)
  return made


def returns(rewards: Sequence[np.ndarray], *, gamma: float) -> list[np.ndarray]:
  """R[t] = reward[t] + gamma R[t + 1], with 0 after the last token."""
  nothing = [np.zeros(len(points_T)) for points_T in rewards]
  return gae(rewards, nothing, gamma=gamma, gae_lambda=1.0)[1]


def reinforce_pp(
  rewards: Sequence[np.ndarray], *, gamma: float, eps: float = 0.0
) -> list[np.ndarray]:
  """Returns, brought to mean 0 and deviation 1 over all tokens of the batch.

  REINFORCE++ (arXiv 2501.03262), there with gamma 1 and the KL inside of the rewards.
  """
  return whitened(returns(rewards, gamma=gamma), eps=eps)


def gae(
  rewards: Sequence[np.ndarray],
  values: Sequence[np.ndarray],
  *,
  gamma: float,
  gae_lambda: float,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Generalised advantages, and the returns that a critic learns.

  Schulman et al. (arXiv 1506.02438) Eq. 16, with V = 0 after the last token:
  delta[t] = reward[t] + gamma V[t + 1] - V[t],
  A[t] = delta[t] + gamma lambda A[t + 1], return[t] = A[t] + V[t].

  Args:
    rewards: [T] of each answer.
    values: [T], value of the state that token t is drawn in.
  """
  advantages, targets = [], []
  for points_T, values_T in zip(rewards, values, strict=True):
    values_T = np.asarray(values_T, np.float64)
    delta_T = np.asarray(points_T, np.float64) - values_T
    delta_T[:-1] += gamma * values_T[1:]
    own_T, later = np.zeros(len(delta_T)), 0.0
    for t in reversed(range(len(delta_T))):
      own_T[t] = later = delta_T[t] + gamma * gae_lambda * later
    advantages.append(own_T)
    targets.append(own_T + values_T)
  return advantages, targets


def whitened(advantages: Sequence[np.ndarray], *, eps: float = 0.0) -> list[np.ndarray]:
  """Mean 0 and deviation 1 over all tokens of all answers."""
  lengths = [len(own_T) for own_T in advantages]
  together = _normalised(np.concatenate(list(advantages)), axis=0, eps=eps)
  return np.split(together, np.cumsum(lengths)[:-1])


def process(
  step_rewards: Sequence[np.ndarray],
  step_ends: Sequence[np.ndarray],
  lengths: Sequence[int],
  *,
  std: str = "population",
  eps: float = 0.0,
) -> list[np.ndarray]:
  """Process supervision: on each token, the normalised rewards of its step and later.

  DeepSeekMath (arXiv 2402.03300) section 4.1.3. Rewards are normalised over the steps
  of all answers of the group together, not of each answer by itself.

  Args:
    step_rewards: [K] of each answer of one group.
    step_ends: [K] index of the last token of each step, in the answer.
    lengths: tokens of each answer; those behind the last step have 0.
  """
  counts = [len(points_K) for points_K in step_rewards]
  pooled = np.concatenate([np.asarray(p, np.float64) for p in step_rewards])
  pooled = _normalised(pooled, axis=0, std=std, eps=eps)
  made = []
  parts = np.split(pooled, np.cumsum(counts)[:-1])
  for own_K, ends_K, length in zip(parts, step_ends, lengths, strict=True):
    at_T = np.zeros(length)
    np.add.at(at_T, np.asarray(ends_K, np.int64), own_K)
    made.append(at_T[::-1].cumsum()[::-1])
  return made


GROUP: dict[str, Callable[..., np.ndarray]] = {
  "grpo": grpo,
  "rloo": rloo,
  "remax": remax,
  "batch_std": batch_std,
  "reinforce_pp_baseline": reinforce_pp_baseline,
}
TOKEN: dict[str, Callable] = {
  "reinforce_pp": reinforce_pp,
  "gae": gae,
  "process": process,
}
ESTIMATORS = GROUP | TOKEN


def _normalised(
  x: np.ndarray, *, axis, std: str = "population", eps: float
) -> np.ndarray:
  """Mean 0 and deviation 1 along axes; exactly 0 where all are equal."""
  one_of(std, STD_KINDS, key="config.advantage.std")
  x = np.asarray(x)
  equal = x.max(axis, keepdims=True) == x.min(axis, keepdims=True)
  centred = np.where(equal, 0.0, x - x.mean(axis, keepdims=True))
  if std == "none":
    return centred
  count = x.size // equal.size
  freedom = count if std == "population" else max(count - 1, 1)
  deviation = np.sqrt((centred**2).sum(axis, keepdims=True) / freedom)
  return _over(centred, deviation, eps)


def _over(centred: np.ndarray, deviation, eps: float) -> np.ndarray:
  """centred / (deviation + eps), 0 where the deviation is."""
  return centred / np.where(deviation > 0, deviation + eps, 1.0)
