"""The learner's loss of every recipe, from rewards to the gradient, in float64.

Written from the papers' formulas, answer by answer, without jax, without the packed
rows and without the numbers of `recipes.py`; slopes are derived by hand.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Answers:
  """What a learner sees of Q x G answers, group after group.

  Attributes:
    reward: [Q, G].
    greedy: [Q], reward of the greedy answer.
    logp, old, ref, value: [T] of each of the Q G answers; the values are the critic's.
  """

  reward: np.ndarray
  greedy: np.ndarray
  logp: list[np.ndarray]
  old: list[np.ndarray]
  ref: list[np.ndarray]
  value: list[np.ndarray]


def answers(seed=0, questions=3, group_size=4, drift=0.3):
  """Random ones; the second group has equal rewards."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, 7, questions * group_size)
  reward = rng.integers(0, 2, (questions, group_size)) + 0.5 * rng.integers(0, 2, 4)
  reward[0, :2], reward[-1, :2], reward[1] = (0, 1), (1, 0), 1
  logp = [-rng.exponential(size=n) - 0.05 for n in lengths]

  def near(scale):
    return [x + scale * rng.normal(size=len(x)) for x in logp]

  values = [rng.normal(size=n) for n in lengths]
  return Answers(
    reward, rng.normal(size=questions), logp, near(drift), near(0.4), values
  )


# Advantages: (answers) -> [T] of each.


def same_for_all_tokens(b, adv):
  return [np.full(len(x), a) for x, a in zip(b.logp, np.ravel(adv), strict=True)]


def z_scores(b):
  adv = np.zeros_like(b.reward)
  for q, r in enumerate(b.reward):
    if len(set(r)) > 1:
      adv[q] = (r - np.mean(r)) / np.sqrt(np.mean((r - np.mean(r)) ** 2))
  return same_for_all_tokens(b, adv)


def centred(b):
  return same_for_all_tokens(b, b.reward - b.reward.mean(1, keepdims=True))


def leave_one_out(b, kl):
  reward = b.reward - kl * np.reshape(
    [np.sum(x - y) for x, y in zip(b.old, b.ref, strict=True)], b.reward.shape
  )
  size = reward.shape[1]
  others = (reward.sum(1, keepdims=True) - reward) / (size - 1)
  return same_for_all_tokens(b, reward - others)


def over_greedy(b):
  return same_for_all_tokens(b, b.reward - b.greedy[:, None])


def over_batch_std(b):
  deviation = np.sqrt(np.mean((b.reward - b.reward.mean()) ** 2))
  return same_for_all_tokens(
    b, (b.reward - b.reward.mean(1, keepdims=True)) / deviation
  )


def centred_then_whitened(b):
  adv = b.reward - b.reward.mean(1, keepdims=True)
  return same_for_all_tokens(b, (adv - adv.mean()) / adv.std())


def whiten(advantages):
  tokens = np.concatenate(advantages)
  return [(a - tokens.mean()) / tokens.std() for a in advantages]


def rewards_by_token(b, kl):
  rewards = [-kl * (x - y) for x, y in zip(b.old, b.ref, strict=True)]
  for own, reward in zip(rewards, b.reward.ravel(), strict=True):
    own[-1] += reward
  return rewards


def reinforce_pp(b, kl):
  sums = [[own[t:].sum() for t in range(len(own))] for own in rewards_by_token(b, kl)]
  return whiten([np.asarray(own) for own in sums])


def monte_carlo(b, kl):
  """GAE with lambda and gamma 1: what follows, less the value."""
  made = []
  for own, value in zip(rewards_by_token(b, kl), b.value, strict=True):
    made.append(np.asarray([own[t:].sum() - value[t] for t in range(len(own))]))
  return whiten(made)


# Costs of one answer's tokens and their slopes by its log-probs, each token's own:
# (logp, old, advantage) -> (cost [T], slope [T]).


def clipped(low, high):
  def cost(logp, old, adv):
    w = np.exp(logp - old)
    plain, bounded = w * adv, np.clip(w, 1 - low, 1 + high) * adv
    return -np.minimum(plain, bounded), np.where(plain <= bounded, -w * adv, 0.0)

  return cost


def by_answer(low, high):
  def cost(logp, old, adv):
    s = np.exp(np.mean(logp - old))
    plain, bounded = s * adv, np.clip(s, 1 - low, 1 + high) * adv
    return -np.minimum(plain, bounded), np.where(plain <= bounded, -s * adv, 0.0)

  return cost


def weighted(least, most):
  def cost(logp, old, adv):
    w = np.clip(np.exp(logp - old), least, most)
    return -w * adv * logp, -w * adv

  return cost


def gated(tau_positive, tau_negative):
  def cost(logp, old, adv):
    w = np.exp(logp - old)
    tau = np.where(adv > 0, tau_positive, tau_negative)
    gate = 1 / (1 + np.exp(-tau * (w - 1)))
    return -4 / tau * gate * adv, -4 * gate * (1 - gate) * w * adv

  return cost


def likelihood(logp, old, adv):
  return -adv * logp, -adv


# Divergences from the reference, as costs.


def k2(logp, ref):
  return 0.5 * (ref - logp) ** 2, logp - ref


def k3(logp, ref):
  d = ref - logp
  return np.exp(d) - d - 1, 1 - np.exp(d)


# What a token weighs in the loss: (number of answers, of tokens, of its answer's).


def mean_of_means(num_answers, num_tokens, length):
  return 1 / (num_answers * length)


def mean_of_tokens(num_answers, num_tokens, length):
  return 1 / num_tokens


def over_constant(constant):
  return lambda num_answers, num_tokens, length: 1 / (num_answers * constant)


RECIPES = {
  "grpo_r1": (z_scores, clipped(10, 10), (0.001, k3), mean_of_means),
  "grpo": (z_scores, clipped(0.2, 0.2), (0.04, k3), mean_of_means),
  "dr_grpo": (centred, clipped(0.2, 0.2), None, over_constant(3000)),
  "dapo": (z_scores, clipped(0.2, 0.28), None, mean_of_tokens),
  "gspo": (z_scores, by_answer(3e-4, 4e-4), None, mean_of_means),
  "gspo_token": (z_scores, by_answer(3e-4, 4e-4), None, mean_of_means),
  "cispo": (z_scores, weighted(0, 5), None, mean_of_tokens),
  "sapo": (z_scores, gated(1.0, 1.05), None, mean_of_means),
  "rloo": (lambda b: leave_one_out(b, 0.03), likelihood, None, over_constant(1)),
  "remax": (over_greedy, likelihood, None, over_constant(1)),
  "reinforce_pp": (
    lambda b: reinforce_pp(b, 0.001),
    clipped(0.2, 0.2),
    None,
    mean_of_tokens,
  ),
  "reinforce_pp_baseline": (
    centred_then_whitened,
    clipped(0.2, 0.2),
    (0.01, k2),
    mean_of_tokens,
  ),
  "ppo": (lambda b: monte_carlo(b, 0.02), clipped(0.2, 0.2), None, mean_of_tokens),
  "lite_ppo": (over_batch_std, clipped(0.2, 0.2), None, mean_of_tokens),
}


def loss(name, b):
  """(loss, its slope by the log-probs of each answer, advantages of its tokens)."""
  advantage, cost, kl, weight = RECIPES[name]
  advantages = advantage(b)
  kept = range(len(b.logp))
  if name == "dapo":
    size = b.reward.shape[1]
    kept = [i for i in kept if len({r >= 1 for r in b.reward[i // size]}) == 2]
  num_tokens = sum(len(b.logp[i]) for i in kept)
  total, slopes = 0.0, [np.zeros(len(x)) for x in b.logp]
  for i in kept:
    logp = b.logp[i]
    costs, slope = cost(logp, b.old[i], advantages[i])
    if kl is not None:
      coef, estimate = kl
      more, more_slope = estimate(logp, b.ref[i])
      costs, slope = costs + coef * more, slope + coef * more_slope
    share = weight(len(kept), num_tokens, len(logp))
    total += share * costs.sum()
    slopes[i] = share * slope
  return total, slopes, advantages
