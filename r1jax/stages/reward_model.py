"""Training a model that gives answers, or their steps, a score.

One loop for all of them, with R1's numbers (arXiv 2501.12948, supplement) as defaults:
"pairwise" learns which of two answers is preferred (helpfulness), "pointwise" whether
an answer is safe or right, "outcome" the same after every token of it, which is the
chance of a right answer from that prefix on, and "process" whether each step is right.
Items of a step are packed anew, so that a step has as many of them as it says.

Letters: B rows in a microbatch, L tokens in a row, M microbatches.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import limits, sharding
from r1jax.data import judged, stream
from r1jax.data.judged import Judged
from r1jax.errors import InputError, one_of
from r1jax.evals import scores as quality
from r1jax.evals.intervals import wilson
from r1jax.objectives import reduce, scalar_models
from r1jax.stages import made, scalar_model, sets
from r1jax.stages.run import Run, Stage
from r1jax.stages.scalar_model import ScalarModel, Scorer, probability
from r1jax.training import experts
from r1jax.training import state as states
from r1jax.training import step as steps
from r1jax.training.marks import Item, ItemRows, check_sizes, pack_items
from r1jax.training.values import token_values
from r1jax.types import Mean, Statistic


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a stage has read and checked before any stage begins.

  Attributes:
    items, held_out: to train on, and to look at.
    microbatches: that a step may need, whatever its items.
  """

  items: Sequence[Item]
  held_out: Sequence[Item]
  microbatches: int


def prepare_reward_model(
  run: Run, name: str, config: Mapping[str, Any]
) -> Prepared | None:
  """Reads the data; None where an earlier stage makes it.

  Raises:
    InputError: what would not work later.
  """
  training, shards = config["training"], run.partition.size("batch")
  if training["rows"] < 1 or training["rows"] % shards:
    raise InputError(
      f"config.training.rows={training['rows']} does not split over {shards} devices; "
      f"a multiple of {shards} is needed"
    )
  one_of(config["reads"], scalar_model.READS, key="config.reads")
  if config["objective"] == "process" and config["reads"] != "all":
    raise InputError(
      f"config.reads={config['reads']!r} with config.objective='process': the steps "
      "are those of the whole answer; set it to 'all'"
    )
  experts.check(run.model, **config["moe"], bias_rate=0.0)
  ScalarModel.of(run, config).optimizer(config["optim"])
  made.check(config)
  return None if config["data"]["stage"] else ready(run, name, config)


def ready(run: Run, name: str, config: Mapping[str, Any]) -> Prepared:
  """What is trained on and looked at.

  Raises:
    InputError: nothing is left, or does not fit.
  """
  training = config["training"]
  items, held_out = load(run, name, config)
  _order(run, config, items)
  sizes = [item.size for item in [*items, *held_out]]
  check_sizes(sizes, training["row_length"])
  # By best fit every row but one holds so many.
  fits = training["row_length"] // max(sizes)
  return Prepared(items, held_out, -(-training["batch"] // (fits * training["rows"])))


def load(
  run: Run, name: str, config: Mapping[str, Any]
) -> tuple[list[Item], list[Item]]:
  """Items to train on and held-out ones, which share no prompt."""
  objective, data = config["objective"], config["data"]
  found, counts = made.load(
    run, config, objective, without=("held_out", "balance_lengths")
  )
  items = {line.problem.id: item_of(run, config, line) for line in found}
  kept = [line for line in found if items[line.problem.id] is not None]
  counts["steps_in_one_token"] = len(found) - len(kept)
  if data["balance_lengths"] and objective == "pairwise":
    lengths = [[len(a) for a in items[line.problem.id].answers] for line in kept]
    places = judged.balance_lengths(*zip(*lengths, strict=True), seed=run.seed)
    counts["dropped_to_balance_lengths"] = len(kept) - len(places)
    kept = [kept[place] for place in places]
  if not kept:
    raise InputError(
      f"nothing is left of config.data: {sets.counts(counts)}; where the chosen "
      "answer is always the longer one, config.data.balance_lengths leaves none"
    )
  split = judged.hold_out(kept, data["held_out"], seed=run.seed)
  run.say(f"{name}: {sets.counts(counts)}; held out {len(split[1])}")
  train, held = ([items[line.problem.id] for line in part] for part in split)
  return train, held


def item_of(run: Run, config: Mapping[str, Any], line: Judged) -> Item | None:
  """A line as ids; None where two of its steps end in one token."""
  prompt = scalar_model.prompt_ids(run, config["template"], line.problem)
  encode, end = run.tokenizer.encode, run.tokenizer.eos_id
  answers = [
    scalar_model.read_part(config["reads"], run, [*encode(text), end])
    for text in line.answers
  ]
  marks: list[Sequence[int]] = [[len(answer) - 1] for answer in answers]
  labels = line.labels
  if config["objective"] == "outcome":
    marks = [range(len(answers[0]))]
    labels = labels * len(answers[0])
  if config["objective"] == "process":
    found = judged.tokens_at(run.tokenizer, answers[0], line.answers[0], line.ends)
    if found is None:
      return None
    marks = [found]
  return Item(prompt, answers, marks, labels, line.margin)


def train_reward_model(
  run: Run, name: str, config: Mapping[str, Any], prepared: Prepared | None
) -> None:
  """Walks `num_steps` batches of items; leaves a checkpoint of the last.

  Config: `objective`, `reads`, `data` (`judged.load_judged`, `stage`, `held_out`
  and `balance_lengths`), `template`, `init` (a stage, or "" for `config.model`),
  `num_steps`, `optim`, `moe`, `lora`, `eval` and `training`: items of a step (`batch`),
  `rows` and `row_length` of a microbatch, `remat`.
  """
  training = config["training"]
  if prepared is None:
    prepared = ready(run, name, config)
  scalar = ScalarModel.of(run, config)
  optimizer, rate = scalar.optimizer(config["optim"])
  specs = scalar.specs
  shardings = states.state_shardings(specs, optimizer, run.partition, np.float32)
  batch_sharding = run.partition.sharding(None, "batch")
  shape = (prepared.microbatches, training["rows"], training["row_length"])

  with Stage(run, name, num_steps=config["num_steps"]) as stage:
    abstract = states.abstract_state(specs, optimizer, run.partition, np.float32)
    state = stage.take_up({"train": abstract})
    if state is None:
      params = scalar.fresh(name, config["init"])
      state = states.state_of(params, specs, optimizer, run.partition)
    else:
      state = state["train"]
    frozen = scalar.frozen(config["init"])
    scalar.decoder.announce(name)
    order = _order(run, config, prepared.items)
    train = steps.make_update(
      functools.partial(loss, run, config), optimizer, shardings, batch_sharding
    )
    evaluate = None
    if prepared.held_out:
      scorer = Scorer(
        run, config, rows=training["rows"], row_length=training["row_length"]
      )
      evaluate = functools.partial(
        evaluation, scorer, config["objective"], prepared.held_out, frozen
      )
      if stage.first_step == 1:
        stage.evaluation(0, functools.partial(evaluate, state.params))

    for step in stage.steps():
      with run.clock("pack"):
        items = order.at(step - 1)
        rows, used, waste = pack_items(
          items, row_length=shape[-1], num_rows=shape[0] * shape[1]
        )
        of_steps = config["objective"] == "process"
        count = sum(len(item.labels) if of_steps else 1 for item in items)
        batch = jax.tree.map(lambda leaf: leaf.reshape(shape), rows)
        # Nothing goes through the vocabulary.
        read = batch.rows.replace(mask_BL=np.zeros(shape, np.float32))
        forward = limits.forward_work(run.machine, run.model, [read])
      with run.clock("update"):
        batch = sharding.place(batch, batch_sharding)
        learning_rate = rate(step - 1)
        state, seen = train(state, frozen, batch, -(-used // shape[1]), float(count))
        stage.settle()
      every = config["eval"]["every"]
      due = step == config["num_steps"] or (every > 0 and step % every == 0)
      stage.end_step(
        step,
        {
          "optim/lr": learning_rate,
          "pack/waste": waste,
          "data/epoch": step * training["batch"] / len(prepared.items),
        },
        {"train": state},
        statistics=[seen],
        work={"update": forward.times(scalar.decoder.update_passes)},
        evaluate=functools.partial(evaluate, state.params)
        if evaluate is not None and due
        else None,
      )


def _order(
  run: Run, config: Mapping[str, Any], items: Sequence[Item]
) -> stream.Stream[Item]:
  batch = config["training"]["batch"]
  return stream.Stream(items, batch=batch, seed=run.seed, key="config.training.batch")


def weights(objective: str, rows: ItemRows) -> tuple[jax.Array, jax.Array]:
  """(weight of every token's cost, count that these rows add to the denominator).

  Pairs and answers count 1 each, whatever their lengths; of "process" every step does.
  """
  mask_BL, length_BL = jnp.asarray(rows.rows.mask_BL), rows.rows.length_BL
  if objective == "pairwise":
    mask_BL = mask_BL * rows.label_BL
  reduction = "sequence_mean" if objective == "outcome" else "token_mean"
  return reduce.token_weights(mask_BL, length_BL, reduction=reduction)


def loss(
  run: Run, config: Mapping[str, Any], params: Any, frozen: Any, rows: ItemRows
) -> tuple[jax.Array, dict[str, Statistic]]:
  """(sum of the loss and what is added to it, metrics) of a microbatch."""
  balance_coef = config["moe"]["balance_coef"]
  found = token_values(
    run.model,
    ScalarModel.of(run, config).policy(params, frozen),
    rows.rows,
    remat=config["training"]["remat"],
    balance=balance_coef != 0,
    partition=run.partition,
  )
  weight_BL, count = weights(config["objective"], rows)
  score_BL, mask_BL = found.scores_BL, rows.rows.mask_BL
  if config["objective"] == "pairwise":
    other_BL = jnp.take_along_axis(score_BL, rows.other_BL, axis=1)
    cost_BL = scalar_models.pairwise(score_BL, other_BL, rows.margin_BL)
    right_BL = 0.5 * (jnp.sign(score_BL - other_BL) + 1)
  else:
    cost_BL = scalar_models.pointwise(score_BL, rows.label_BL)
    right_BL = (score_BL > 0) == (rows.label_BL > 0.5)
  total = reduce.weighted_sum(cost_BL, weight_BL)
  seen: dict[str, Statistic] = {
    "loss/score": Mean(total, count),
    "score/accuracy": Mean(reduce.weighted_sum(right_BL, weight_BL), count),
    "score/mean": Mean(score_BL.sum(), mask_BL.sum()),
  }
  if balance_coef:
    # The two answers of a pair add up to one.
    share_BL = mask_BL / 2 if config["objective"] == "pairwise" else weight_BL
    added, more = experts.balance_loss(found.routed, share_BL, balance_coef)
    total, seen = total + added, seen | more
  return total, jax.lax.stop_gradient(seen)


def evaluation(
  scorer: Scorer,
  objective: str,
  held_out: Sequence[Item],
  frozen: Any,
  trained: Any,
) -> dict[str, float]:
  """`eval/held_out/...`: accuracy with its interval, calibration, AUC.

  Of pairs the accuracy is that of the preferred answer's score being the higher one,
  and the Brier score that of sigmoid(difference). Of others both are of probabilities:
  of whole answers, or of steps.
  """
  prompts = [item.prompt for item in held_out for _ in item.answers]
  answers = [answer for item in held_out for answer in item.answers]
  at = [own for item in held_out for own in item.marks]
  if objective == "outcome":
    at = [own[-1:] for own in at]
  found = np.concatenate(scorer(trained, frozen, prompts, answers, at))
  if objective == "pairwise":
    chosen, rejected = found.reshape(-1, 2).T
    label, prob = np.ones(len(chosen)), probability(chosen - rejected)
    accuracy, seen = quality.pair_accuracy(chosen, rejected), {}
  else:
    labels = [item.labels for item in held_out]
    if objective == "outcome":
      labels = [own[-1:] for own in labels]
    label, prob = np.concatenate(labels), probability(found)
    is_right = label > 0.5
    accuracy, seen = float(np.mean((found > 0) == is_right)), {}
    if is_right.any() and not is_right.all():
      seen["auc"] = quality.auc(found, is_right)
  low, high = wilson(accuracy * len(label), len(label))
  seen |= {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
  seen |= {"brier": quality.brier(prob, label), "n": len(label)}
  return {f"eval/held_out/{key}": value for key, value in seen.items()}
