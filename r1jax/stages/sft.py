"""Supervised training on worked examples: pre-training on a corpus, or a cold start.

Letters: B rows in a microbatch, L tokens in a row, M microbatches.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from r1jax import limits, sharding
from r1jax.data import packing, stream, templates
from r1jax.errors import InputError, one_of
from r1jax.objectives.sft import cross_entropy
from r1jax.stages import lineage, sets, supervised
from r1jax.stages.run import Run, Stage
from r1jax.stages.trainable import Trainable
from r1jax.training import experts
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.training.logprobs import token_logprobs
from r1jax.types import Mean, Statistic, TokenRows

TRAIN_ON = ("all", "completion")


def prepare_sft(
  run: Run, name: str, config: Mapping[str, Any]
) -> tuple[TokenRows, float] | None:
  """All examples in rows of one length, and the share of padding in them.

  None where an earlier stage has yet to make the examples.

  Raises:
    InputError: what would not work later.
  """
  del name
  supervised.check(run, config)
  one_of(config["train_on"], TRAIN_ON, key="config.train_on")
  if config["epochs"] < 0:
    raise InputError(f"config.epochs={config['epochs']}: must be 0 (off) or more")
  return None if sets.is_to_come(config["examples"]) else packed(run, config)


def train_sft(
  run: Run,
  name: str,
  config: Mapping[str, Any],
  prepared: tuple[TokenRows, float] | None,
) -> None:
  """Walks batches of packed rows; leaves a checkpoint of the last.

  Config: `examples` (`data.examples.load_examples`), `template`, `init` (a stage, or ""
  for `config.model`), `num_steps`, or fewer where `epochs` of the examples are fewer,
  `train_on` ("all" tokens, or those of the "completion"), `optim`
  (`optim.make_optimizer`), `moe` (`experts.check`), `lora` (`models.lora.Lora`), and
  `training`: `row_length`, `rows` and `microbatches` of a step, `remat`, `mtp_coef`.
  """
  training = config["training"]
  rows, waste = packed(run, config) if prepared is None else prepared
  num_rows = rows_of_step(run, name, config, len(rows.tokens_BL))
  num_steps = steps_of(run, name, config, len(rows.tokens_BL), num_rows)
  trainable = Trainable.of(run, config)
  optimizer, rate = trainable.optimizer(
    config["optim"]
    # A path that was to end with the steps ends with them.
    | ({"total_steps": num_steps} if ends_with_steps(config) else {})
  )
  specs = trainable.specs
  shardings = states.state_shardings(specs, optimizer, run.partition, np.float32)
  batch_sharding = run.partition.sharding(None, "batch")

  with Stage(run, name, num_steps=num_steps) as stage:
    abstract = states.abstract_state(specs, optimizer, run.partition, np.float32)
    state = stage.take_up({"train": abstract})
    if state is None:
      params = trainable.fresh(name, config["init"])
      state = states.state_of(params, specs, optimizer, run.partition)
    else:
      state = state["train"]
    frozen = trainable.frozen(config["init"])
    trainable.announce(name)

    order = stream.Stream(
      range(len(rows.tokens_BL)),
      batch=num_rows,
      seed=run.seed,
      key="the rows of a step, config.training.rows times config.training.microbatches",
    )
    train = steps.make_update(
      functools.partial(loss, run, config),
      optimizer,
      shardings,
      batch_sharding,
      bias_rate=config["moe"]["bias_rate"],
    )
    for step in stage.steps():
      with run.clock("update"):
        index = order.at(step - 1)
        batch = supervised.take(
          rows,
          index,
          microbatches=training["microbatches"],
          size=training["rows"],
        )
        forward = limits.forward_work(run.machine, run.model, [batch])
        num_tokens = float(batch.mask_BL.sum())
        batch = sharding.place(batch, batch_sharding)
        learning_rate = rate(step - 1)
        used = -(-len(index) // training["rows"])
        state, seen = train(state, frozen, batch, used, num_tokens)
        # The devices are at this step, the host at what is left of the one before.
        stage.settle()
      stage.end_step(
        step,
        {"optim/lr": learning_rate, "pack/waste": waste},
        {"train": state},
        statistics=[seen],
        work={"update": forward.times(trainable.update_passes)},
      )


def rows_of_step(run: Run, name: str, config: Mapping[str, Any], num_rows: int) -> int:
  """How many rows a step is on: of a set whose size nobody could know, all at most."""
  wanted = config["training"]["rows"] * config["training"]["microbatches"]
  if wanted <= num_rows or not sets.is_to_come(config["examples"]):
    return wanted
  run.say(f"{name}: a step is on all {num_rows} rows that there are, and not {wanted}")
  return num_rows


def steps_of(
  run: Run, name: str, config: Mapping[str, Any], num_rows: int, rows_of_step: int
) -> int:
  """How many steps there are, `num_steps` at most; noted where the rows decide it."""
  most, epochs = config["num_steps"], config["epochs"]
  if not epochs:
    return most
  wanted = math.ceil(epochs * num_rows / rows_of_step)
  lineage.note_end(run, name, wanted)
  cut = f", of which config.num_steps allows {most}" if wanted > most else ""
  run.say(f"{name}: {epochs:g} epochs of {num_rows} rows are {wanted} steps{cut}")
  return min(wanted, most)


def ends_with_steps(config: Mapping[str, Any]) -> bool:
  """Whether the path of the learning rate ends with the last step."""
  return config["optim"]["total_steps"] == config["num_steps"]


def loss(
  run: Run, config: Mapping[str, Any], params: Any, frozen: Any, rows: TokenRows
) -> tuple[jax.Array, dict[str, Statistic]]:
  """(sum of the cross-entropy and what is added to it, metrics) of a microbatch."""
  mtp_coef = config["training"]["mtp_coef"]
  balance_coef = config["moe"]["balance_coef"]
  scores = token_logprobs(
    run.model,
    Trainable.of(run, config).policy(params, frozen),
    rows,
    remat=config["training"]["remat"],
    balance=balance_coef != 0,
    further=mtp_coef != 0,
    partition=run.partition,
  )
  total, count = cross_entropy(scores.logp_BL, rows.mask_BL)
  seen: dict[str, Statistic] = {"loss/cross_entropy": Mean(total, count)}
  if mtp_coef:
    # DeepSeek-V3 (arXiv 2412.19437) eq. 24 and 25.
    further, num_further = cross_entropy(
      scores.further_BL, rows.mask_BL * (rows.positions_BL > 1)
    )
    seen["loss/mtp"] = Mean(further, num_further)
    total += mtp_coef * further
  for routed in (scores.routed, scores.further_routed):
    if routed is not None and balance_coef:
      added, more = experts.balance_loss(routed, rows.mask_BL, balance_coef)
      total += added
      seen = more | seen
  seen |= experts.loads(run.model, scores, rows)
  return total, jax.lax.stop_gradient(seen)


def packed(run: Run, config: Mapping[str, Any]) -> tuple[TokenRows, float]:
  """All examples in rows of one length, and the share of padding in them."""
  sequences, trained_from = [], []
  for example in sets.examples(run, config["examples"]):
    ids = templates.prompt_ids(
      config["template"]["template"],
      example.problem,
      run.tokenizer,
      **{k: v for k, v in config["template"].items() if k != "template"},
    )
    trained_from.append(1 if config["train_on"] == "all" else len(ids))
    sequences.append(
      [*ids, *run.tokenizer.encode(example.completion), run.tokenizer.eos_id]
    )
  if not sequences:
    raise InputError("there are no examples; look at config.examples")
  pack = packing.pack(
    sequences, trained_from, row_length=config["training"]["row_length"]
  )
  return pack.rows, pack.waste
