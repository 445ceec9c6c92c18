"""How a policy is updated from answers: packed, scored, given advantages, learnt from.

Letters: Q problems, G samples per problem, B = Q * G answers; of the update M
microbatches, B rows in each, L tokens in a row.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import limits, prng, sharding
from r1jax.errors import InputError, one_of
from r1jax.objectives import corrections
from r1jax.sampling import logits
from r1jax.stages import advantages, reference
from r1jax.stages.advantages import Advantages
from r1jax.stages.collect import CONTROLS
from r1jax.stages.critic import Critic, explained
from r1jax.stages.model_part import Steps
from r1jax.stages.run import Run
from r1jax.stages.trainable import Trainable
from r1jax.training import experts
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.training.logprobs import TokenScores, token_logprobs
from r1jax.training.minibatches import Minibatch, minibatches
from r1jax.training.policy import policy_loss, scored, unscored
from r1jax.types import Experience, Statistic, TokenRows

# What the weights at the start of a step say of tokens, and later epochs need again.
_KEPT = ("logp_old_BL", "logp_ref_BL", "importance_BL")


@dataclasses.dataclass(frozen=True)
class Answers:
  """What a step learns from.

  Attributes:
    prompts: ids of each of Q prompts.
    completions: ids of each of B answers, G to each prompt.
    logp: of their tokens, as drawn.
    trained_QG: 1 where the tokens may be trained on.
    experts: what `rollouts.experts_of` returns.
  """

  prompts: Sequence[Sequence[int]]
  completions: Sequence[Sequence[int]]
  logp: Sequence[np.ndarray]
  trained_QG: np.ndarray
  experts: Sequence[np.ndarray] | None


class Learner:
  """The trained tree, what it is compared with, and the programs that change it.

  Args:
    config: all settings of the stage.
    layout: where each answer goes in an update, settings of `minibatches.room`.
    critic: of PPO, or None.

  Attributes:
    train: the policy's `TrainState`.
    frozen: see `Trainable`.
    rate: learning rate by update.
    updates: those of a step.
  """

  def __init__(
    self,
    run: Run,
    name: str,
    config: Mapping[str, Any],
    layout: Mapping[str, int],
    critic: Critic | None,
  ):
    self._run, self._name, self._config = run, name, config
    self._layout = layout
    self._critic = critic
    self._trainable = Trainable.of(run, config)
    self._optimizer, self.rate = self._trainable.optimizer(config["optim"])
    self._epochs = config["training"]["epochs"]
    self.updates = self._epochs * config["training"]["minibatches"]
    by_token = advantages.reads_tokens(config)
    self._fetches = by_token or self._epochs > 1
    self._needs_old = by_token or self.updates > 1
    # The host needs all of them, or those that are learnt from by other weights.
    self._first_scored = 0 if self._fetches else 1
    self._has_reference = reference.is_used(config)
    self._coefficient = reference.Coefficient(config)
    shardings = states.state_shardings(
      self._trainable.specs, self._optimizer, run.partition, np.float32
    )
    self._batch_sharding = run.partition.sharding(None, "batch")
    everywhere = run.partition.sharding()
    self._score = steps.make_score(
      functools.partial(scores_alone, run, config),
      shardings.params,
      self._batch_sharding,
    )
    self._update = steps.make_update(
      functools.partial(loss, run, config),
      self._optimizer,
      shardings,
      self._batch_sharding,
      bias_rate=config["moe"]["bias_rate"],
    )
    correction = {k: v for k, v in config["loss"].items() if k.startswith("correction")}
    self._with_old = jax.jit(functools.partial(scored, **correction))
    self._without_old = functools.partial(
      unscored,
      correction=correction["correction"],
      correction_veto=correction["correction_veto"],
    )
    self._everywhere = jax.jit(lambda tree: tree, out_shardings=everywhere)
    self._merged = jax.jit(
      lambda means: functools.reduce(lambda a, b: a.merge(b), means),
      out_shardings=everywhere,
    )
    self._copy = jax.jit(
      lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings.params
    )

  def abstract(self) -> dict[str, Any]:
    """What a checkpoint of `state` is restored into."""
    held: dict[str, Any] = {
      "train": states.abstract_state(
        self._trainable.specs, self._optimizer, self._run.partition, np.float32
      )
    }
    if self._has_reference:
      held["ref"] = held["train"].params
    if self._critic is not None:
      held["critic"] = self._critic.abstract()
    if (adapted := self._coefficient.held()) is not None:
      held["kl"] = abstract_everywhere(adapted, self._run)
    return held

  def begin(self, state: Mapping[str, Any] | None) -> None:
    """Goes on from a checkpoint's state, or None: begins with what `init` names."""
    run, init = self._run, self._config["init"]
    if state is None:
      params = self._trainable.fresh(self._name, init)
      self.train = states.state_of(
        params, self._trainable.specs, self._optimizer, run.partition
      )
      self._ref = self._copy(params) if self._has_reference else None
      self._taught = None if self._critic is None else self._critic.fresh(init)
    else:
      self.train, self._ref, self._taught = map(state.get, ("train", "ref", "critic"))
      if "kl" in state:
        self._coefficient.take_up(state["kl"])
    self.frozen = self._trainable.frozen(init)
    self._trainable.announce(self._name)

  def state(self) -> dict[str, Any]:
    """What a checkpoint must hold of it."""
    found = {
      "train": self.train,
      "ref": self._ref,
      "critic": self._taught,
      "kl": on_devices(self._coefficient.held(), self._run),
    }
    return {key: value for key, value in found.items() if value is not None}

  def pack(
    self,
    answers: Answers,
    step: int,
    *,
    epoch: int = 1,
    tokens: Mapping[str, Sequence[np.ndarray]],
  ) -> list[Minibatch]:
    """The mini-batches of an epoch, see `minibatches`."""
    num_prompts, group_size = answers.trained_QG.shape
    return minibatches(
      order=shuffled(
        self._run, self._name, step, num_prompts * group_size, epoch=epoch
      ),
      prompts=answers.prompts,
      prompt_of=np.repeat(np.arange(num_prompts), group_size),
      completions=answers.completions,
      tokens={"logp_behaviour_BL": answers.logp, **tokens},
      trained=answers.trained_QG.reshape(-1),
      **self._layout,
      reduction=self._config["loss"]["reduction"],
      length_constant=self._config["loss"]["length_constant"],
      experts=answers.experts,
    )

  def work(self, batches: Sequence[Minibatch]) -> dict[str, limits.Work]:
    """By phase, what its speed is computed from."""
    forward = limits.forward_work(
      self._run.machine, self._run.model, [batch.experience.rows for batch in batches]
    )
    has_critic = self._critic is not None
    passes = self._epochs * (self._trainable.update_passes + 3 * has_critic)
    found = {"update": forward.times(passes)}
    scores = self._has_reference + has_critic
    if scores:
      found["score"] = forward.times(scores)
    if self._needs_old:
      rows = [batch.experience.rows for batch in batches[self._first_scored :]]
      old = limits.forward_work(self._run.machine, self._run.model, rows)
      least_s = scores * forward.least_s + old.least_s
      found["score"] = limits.Work((forward if scores else old).tokens, least_s)
    return found

  def score(
    self, batches: Sequence[Minibatch]
  ) -> tuple[dict[str, list[np.ndarray]], list[dict[str, Statistic]]]:
    """Places mini-batches, and adds what is said of them before the first update.

    Returns:
      ({field: for each answer a number for each token}, empty where the host does not
      need it, and metrics).
    """
    said, statistics = [], []
    for number, batch in enumerate(batches):
      own: dict[str, jax.Array] = {}
      place = functools.partial(sharding.place, shardings=self._batch_sharding)
      is_scored = self._needs_old and number >= self._first_scored
      if self._needs_old and not is_scored:
        batch.experience = self._without_old(batch.experience)
      experience = place(batch.experience)
      rows = experience.rows
      if is_scored:
        scores = self._score(self.train.params, self.frozen, rows, batch.count)
        experience, seen = self._with_old(scores, experience)
        statistics.append(seen)
      if self._has_reference:
        scores = self._score(self._ref, self.frozen, rows, batch.count)
        own["logp_ref_BL"] = scores.logp_BL
        if self._config["loss"]["kl_coef"] != 0:
          experience = experience.replace(logp_ref_BL=scores.logp_BL)
      if self._critic is not None:
        own["values"] = self._critic.values(self._taught, rows, batch.count)
      fields = {name: getattr(experience, name) for name in _KEPT}
      said.append({name: x for name, x in fields.items() if x is not None} | own)
      batch.experience = experience
    if not self._fetches:
      return {}, statistics
    return by_answer(batches, jax.device_get(self._everywhere(said))), statistics

  def advantages(
    self,
    batches: Sequence[Minibatch],
    answers: Answers,
    tokens: Mapping[str, Sequence[np.ndarray]],
    reward_QG: np.ndarray,
    greedy_Q: np.ndarray | None,
    steps: Steps | None,
  ) -> tuple[Advantages, dict[str, float]]:
    """(those of each token, laid in the mini-batches too, and metrics)."""
    in_reward = self._coefficient.next()["advantage"]
    made = advantages.advantages(
      self._config,
      reward_QG,
      answers.trained_QG,
      [len(ids) for ids in answers.completions],
      greedy_Q=greedy_Q,
      logp=tokens["logp_old_BL"] if in_reward else None,
      logp_ref=tokens["logp_ref_BL"] if in_reward else None,
      values=tokens.get("values"),
      steps=steps,
      kl_coef=in_reward,
    )
    for batch in batches:
      laid = sharding.place(batch.laid(made.tokens), self._batch_sharding)
      batch.experience = batch.experience.replace(advantage_BL=laid)
    seen = {}
    if made.kl is not None:
      seen["reward/kl"] = made.kl
    if self._coefficient.adapts:
      seen["policy/kl_coef"] = sum(self._coefficient.now.values())
    if made.returns is not None:
      seen |= explained(tokens["values"], made.returns, answers.trained_QG.reshape(-1))
    return made, seen

  def update(
    self,
    step: int,
    batches: Sequence[Minibatch],
    answers: Answers,
    tokens: Mapping[str, Sequence[np.ndarray]],
    made: Advantages,
  ) -> list[dict[str, Statistic]]:
    """All epochs over the mini-batches, the first of which are given; metrics."""
    statistics = []
    beside = self.frozen, np.float32(self._coefficient.now["loss"])
    for epoch in range(1, self._epochs + 1):
      if epoch > 1:
        kept = {name: tokens[name] for name in _KEPT if name in tokens}
        if self._config["loss"]["kl_coef"] == 0:
          kept.pop("logp_ref_BL", None)
        kept["advantage_BL"] = made.tokens
        batches = self.pack(answers, step, epoch=epoch, tokens=kept)
        for batch in batches:
          batch.experience = sharding.place(batch.experience, self._batch_sharding)
      for batch in batches:
        self.train, seen = self._update(
          self.train, beside, batch.experience, batch.count, batch.denominator
        )
        statistics.append(seen)
        if self._critic is not None:
          self._taught, seen = self._critic.update(
            self._taught, batch, tokens["values"], made.returns
          )
          statistics.append(seen)
    if self._coefficient.adapts:
      means = [seen["loss/kl"] for seen in statistics if "loss/kl" in seen]
      if means:
        merged = self._merged(means)
        self._coefficient.saw(merged.total, merged.count)
      else:
        kl = () if made.kl is None else (made.kl,)
        self._coefficient.saw(np.float32(sum(kl)), np.float32(len(kl)))
    every = self._config["reference"]["refresh_every"]
    if self._has_reference and every > 0 and step % every == 0:
      self._ref = self._copy(self.train.params)
    return statistics


def check(config: Mapping[str, Any]) -> None:
  """Raises InputError where `loss` of a stage cannot be."""
  own = config["loss"]
  one_of(own["correction"], corrections.KINDS, key="config.loss.correction")
  level = own["correction_level"]
  one_of(level, corrections.LEVELS, key="config.loss.correction_level")
  if not own["correction_cap"] > 0 or not 0 <= own["correction_veto"] < 1:
    raise InputError(
      f"config.loss.correction_cap={own['correction_cap']} and correction_veto="
      f"{own['correction_veto']}: above 0, and 0 or more and below 1"
    )
  # What tracing the loss would say, once other stages have been run.
  x_BL = jax.ShapeDtypeStruct((1, 1), jnp.float32)
  id_BL = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  rows = TokenRows(id_BL, id_BL, id_BL, x_BL, x_BL)
  jax.eval_shape(
    functools.partial(policy_loss, **own),
    TokenScores(x_BL, x_BL, x_BL),
    Experience(rows, x_BL, x_BL, logp_ref_BL=x_BL),
  )


def by_answer(
  batches: Sequence[Minibatch], said: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, list[np.ndarray]]:
  """{field: for each answer a number for each token} from [M, B, L] of mini-batches."""
  found: dict[str, dict[int, np.ndarray]] = {}
  for batch, own in zip(batches, said, strict=True):
    for name, x_MBL in own.items():
      found.setdefault(name, {}).update(batch.taken(x_MBL))
  return {name: [own[b] for b in range(len(own))] for name, own in found.items()}


def shuffled(
  run: Run, name: str, step: int, rows: int, *, epoch: int = 1
) -> np.ndarray:
  """The order in which rows of a rollout are dealt to mini-batches."""
  again = "" if epoch == 1 else f"/{epoch}"
  seed = prng.host_seed(run.seed, f"{name}/shuffle{again}", step)
  return np.random.default_rng(seed).permutation(rows)


def abstract_everywhere(tree: Any, run: Run) -> Any:
  """What leaves that lie on every device are restored into."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=run.partition.sharding()
    ),
    tree,
  )


def on_devices(tree: Any, run: Run) -> Any:
  """Leaves of the host on every device; those that are on devices stay as they are."""
  return jax.tree.map(
    lambda leaf: (
      leaf
      if isinstance(leaf, jax.Array)
      else sharding.place(leaf, run.partition.sharding())
    ),
    tree,
  )


def score_rows(
  run: Run,
  config: Mapping[str, Any],
  params: Any,
  frozen: Any,
  rows: TokenRows,
  **asked: bool,
) -> TokenScores:
  """Log-probs of a microbatch under the distribution that it was drawn from.

  Args:
    asked: further arguments of `token_logprobs`.
  """
  sampling = {key: config["rollout"][key] for key in CONTROLS}
  return token_logprobs(
    run.model,
    Trainable.of(run, config).policy(params, frozen),
    rows,
    temperature=sampling["temperature"],
    shape_logits=logits.shaper(**sampling),
    remat=config["training"]["remat"],
    partition=run.partition,
    **asked,
  )


def scores_alone(
  run: Run, config: Mapping[str, Any], params: Any, frozen: Any, rows: TokenRows
) -> TokenScores:
  """Without where tokens went, which only the loss needs."""
  return score_rows(run, config, params, frozen, rows).replace(routed=None)


def loss(
  run: Run,
  config: Mapping[str, Any],
  params: Any,
  beside: tuple[Any, jax.Array],
  experience: Experience,
) -> tuple[jax.Array, dict[str, Statistic]]:
  """(sum of the loss, metrics) of a microbatch.

  Args:
    beside: the frozen tree, and the coefficient of the KL, read where the experience
      has log-probs of a reference.
  """
  frozen, kl_coef = beside
  balance_coef = config["moe"]["balance_coef"]
  scores = score_rows(
    run,
    config,
    params,
    frozen,
    experience.rows,
    balance=balance_coef != 0,
    entropy_gradient=config["loss"]["entropy_coef"] != 0,
  )
  settings = {
    **config["loss"],
    "kl_coef": 0.0 if experience.logp_ref_BL is None else kl_coef,
  }
  total, seen = policy_loss(scores, experience, balance_coef=balance_coef, **settings)
  return total, seen | experts.loads(run.model, scores, experience.rows)
