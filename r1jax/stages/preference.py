"""Training on pairs of answers of which one is preferred: DPO, RPO, SimPO.

What the reference, which is what the stage begins with, thinks of every answer is
computed once, before the first step, and lies in the checkpoints: two numbers a pair,
where scoring in every step would cost a forward pass and a second set of weights.

Letters: B rows in a microbatch, L tokens in a row, P pairs that a row has room for,
M microbatches.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from r1jax import limits, sharding
from r1jax.data import stream, templates
from r1jax.errors import InputError
from r1jax.objectives import preference, reduce
from r1jax.stages import made, sets, supervised
from r1jax.stages.run import Run, Stage
from r1jax.stages.trainable import Trainable
from r1jax.training import experts, pairs
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.training.logprobs import TokenScores, token_logprobs
from r1jax.training.pairs import PairRows
from r1jax.types import Statistic


def prepare_preference(
  run: Run, name: str, config: Mapping[str, Any]
) -> tuple[PairRows, float] | None:
  """What `packed` makes of a file; None where an earlier stage makes the pairs.

  Raises:
    InputError: what would not work later.
  """
  supervised.check(run, config)
  preference.settings_of(config["loss"])
  made.check(config)
  return None if config["data"]["stage"] else packed(run, name, config)


def packed(run: Run, name: str, config: Mapping[str, Any]) -> tuple[PairRows, float]:
  """All pairs in rows of one length, and the share of padding in them.

  Raises:
    InputError: no pairs, or such that do not fit.
  """
  found, counts = made.load(run, config, "pairwise")
  run.say(f"{name}: pairs {sets.counts(counts)}")
  how = {key: value for key, value in config["template"].items() if key != "template"}
  template = config["template"]["template"]
  encode, end = run.tokenizer.encode, run.tokenizer.eos_id
  prompts, answers = [], []
  for pair in found:
    if pair.problem.messages and template != "chat":
      raise InputError(
        f"pair {pair.problem.id!r} has 'messages', which config.template.template="
        f"{template!r} cannot write; set it to 'chat', or give a 'prompt'"
      )
    prompts.append(templates.prompt_ids(template, pair.problem, run.tokenizer, **how))
    if not prompts[-1]:
      raise InputError(f"the prompt of pair {pair.problem.id!r} has no tokens")
    answers.append([[*encode(answer), end] for answer in pair.answers])
  rows, waste = pairs.pack_pairs(
    prompts, answers, row_length=config["training"]["row_length"]
  )
  _order(run, config, rows)
  return rows, waste


def train_preference(
  run: Run,
  name: str,
  config: Mapping[str, Any],
  prepared: tuple[PairRows, float] | None,
) -> None:
  """Walks `num_steps` batches of packed pairs; leaves a checkpoint of the last.

  Config: `data` (`data.judged.load_judged`, of which a `margin` is not read, and
  `stage`), `template`, `init` (a stage, or "" for `config.model`), `num_steps`, `loss`
  (`kind`, and what that function of `objectives.preference` takes), `optim`, `moe`,
  `lora`, and `training`: `row_length`, `rows` and `microbatches` of a step, `remat`.
  """
  training = config["training"]
  trainable = Trainable.of(run, config)
  optimizer, rate = trainable.optimizer(config["optim"])
  specs = trainable.specs
  shardings = states.state_shardings(specs, optimizer, run.partition, np.float32)
  batch_sharding = run.partition.sharding(None, "batch")
  everywhere = run.partition.sharding()
  rows, waste = prepared or packed(run, name, config)
  has_reference = config["loss"]["kind"] in preference.WITH_REFERENCE
  held = {"train": states.abstract_state(specs, optimizer, run.partition, np.float32)}
  if has_reference:
    held["ref"] = jax.ShapeDtypeStruct(
      rows.column_BP2.shape, np.float32, sharding=everywhere
    )

  with Stage(run, name, num_steps=config["num_steps"]) as stage:
    state = stage.take_up(held)
    frozen = trainable.frozen(config["init"])
    trainable.announce(name)
    if state is None:
      params = trainable.fresh(name, config["init"])
      state = {"train": states.state_of(params, specs, optimizer, run.partition)}
      if has_reference:
        # A fresh adapter changes nothing, so that this is the reference also there.
        found = reference(run, config, params, frozen, rows)
        state["ref"] = sharding.place(found, everywhere)
    if has_reference:
      rows = rows.replace(ref_BP2=jax.device_get(state["ref"]))
    order, num_rows = _order(run, config, rows), len(rows.is_pair_BP)
    step_rows = training["rows"] * training["microbatches"]
    train = steps.make_update(
      functools.partial(loss, run, config),
      optimizer,
      shardings,
      batch_sharding,
      bias_rate=config["moe"]["bias_rate"],
    )
    for step in stage.steps():
      with run.clock("update"):
        batch = supervised.take(
          rows,
          order.at(step - 1),
          microbatches=training["microbatches"],
          size=training["rows"],
        )
        forward = limits.forward_work(run.machine, run.model, [batch.rows])
        num_pairs = float(batch.is_pair_BP.sum())
        state["train"], seen = train(
          state["train"],
          frozen,
          sharding.place(batch, batch_sharding),
          training["microbatches"],
          num_pairs,
        )
        stage.settle()
      stage.end_step(
        step,
        {
          "optim/lr": rate(step - 1),
          "preference/pairs": num_pairs,
          "data/epoch": step * step_rows / num_rows,
          "pack/waste": waste,
        },
        dict(state),
        statistics=[seen],
        work={"update": forward.times(trainable.update_passes)},
      )


def _order(run: Run, config: Mapping[str, Any], rows: PairRows) -> stream.Stream[int]:
  """The rows of each step."""
  training = config["training"]
  return stream.Stream(
    range(len(rows.is_pair_BP)),
    batch=training["rows"] * training["microbatches"],
    seed=run.seed,
    key="the rows of a step, config.training.rows times config.training.microbatches",
  )


def reference(
  run: Run, config: Mapping[str, Any], params: Any, frozen: Any, rows: PairRows
) -> np.ndarray:
  """`PairRows.ref_BP2` of all rows."""
  training = config["training"]
  batch_sharding = run.partition.sharding(None, "batch")
  trained = run.partition.of_specs(Trainable.of(run, config).specs)
  score = steps.make_score(
    functools.partial(log_probs, run, config), trained, batch_sharding
  )
  gather = jax.jit(lambda x: x, out_shardings=run.partition.sharding())
  num_rows, found = len(rows.is_pair_BP), []
  for first in range(0, num_rows, training["rows"]):
    with run.clock("score"):
      index = range(first, min(first + training["rows"], num_rows))
      batch = supervised.take(rows, index, microbatches=1, size=training["rows"])
      batch = sharding.place(batch, batch_sharding)
      (scored_BP2,) = jax.device_get(gather(score(params, frozen, batch, 1)))
      found.append(scored_BP2[: len(index)])
  return np.concatenate(found)


def log_probs(
  run: Run, config: Mapping[str, Any], params: Any, frozen: Any, rows: PairRows
) -> jax.Array:
  """[B, P, 2] of the answers of a microbatch."""
  scores = score_rows(run, config, params, frozen, rows)
  return pairs.of_answers(scores.logp_BL, rows)


def score_rows(
  run: Run,
  config: Mapping[str, Any],
  params: Any,
  frozen: Any,
  rows: PairRows,
  *,
  balance: bool = False,
) -> TokenScores:
  return token_logprobs(
    run.model,
    Trainable.of(run, config).policy(params, frozen),
    rows.rows,
    remat=config["training"]["remat"],
    balance=balance,
    partition=run.partition,
  )


def loss(
  run: Run, config: Mapping[str, Any], params: Any, frozen: Any, rows: PairRows
) -> tuple[jax.Array, dict[str, Statistic]]:
  """(sum of the loss of pairs and what is added to it, metrics) of a microbatch."""
  balance_coef = config["moe"]["balance_coef"]
  scores = score_rows(run, config, params, frozen, rows, balance=balance_coef != 0)
  total, _, seen = preference.preference(
    pairs.of_answers(scores.logp_BL, rows),
    rows.ref_BP2,
    pairs.lengths(rows),
    rows.is_pair_BP,
    **preference.settings_of(config["loss"]),
  )
  if balance_coef:
    # The two answers of a pair add up to one.
    share_BL = reduce.share_of_sequence(rows.rows.mask_BL, rows.rows.length_BL)
    added, more = experts.balance_loss(scores.routed, share_BL / 2, balance_coef)
    total, seen = total + added, seen | more
  return total, jax.lax.stop_gradient(
    seen | experts.loads(run.model, scores, rows.rows)
  )
