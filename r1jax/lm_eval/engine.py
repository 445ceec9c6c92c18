"""A model that scores continuations and draws answers, as lm-eval's tasks ask.

Letters: B rows, L tokens in a row, Q prompts, P prompt slots, T completion slots.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from r1jax import prng, terminal
from r1jax.data import packing
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import InputError, nearest
from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.sampling import decode, logits, loop_state, stops
from r1jax.sharding import Partition
from r1jax.training.logprobs import token_logprobs
from r1jax.types import TokenRows

# Names that tasks have for the most tokens of an answer; the first that is there.
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_LIMIT = 256  # lm-eval's
_CONTROLS = ("top_p", "top_k", "min_p", "repetition_penalty", "min_tokens")
_MULTIPLE = 128  # row and prompt lengths, so that few are compiled


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How an answer is drawn.

  Attributes:
    until: texts that end it, and are no part of it.
    max_tokens: T.
    controls: (name, value) of `logits.controls`.
  """

  until: tuple[str, ...]
  max_tokens: int
  controls: tuple[tuple[str, float], ...]

  @classmethod
  def of(cls, given: Mapping[str, Any]) -> "Drawing":
    """That of a task's `generation_kwargs`, as lm-eval understands them.

    Without `do_sample` a temperature above 0 samples; with `do_sample: false` none
    does; with `do_sample: true` it is 1 where it is not given.

    Raises:
      InputError: a setting that is not known here, or one that contradicts another.
    """
    left = {name: value for name, value in given.items() if value is not None}
    until = left.pop("until", ())
    limits = [left.pop(name) for name in _LIMITS if name in left]
    do_sample = left.pop("do_sample", None)
    temperature = left.pop("temperature", 1.0 if do_sample else 0.0)
    if temperature < 0 or (do_sample and temperature == 0):
      raise InputError(
        f"generation_kwargs: do_sample={do_sample} and temperature={temperature} do "
        "not go together; --gen_kwargs=do_sample=False is greedy"
      )
    if left.pop("num_beams", 1) != 1:
      raise InputError(
        f"generation_kwargs: num_beams={given['num_beams']}: there is no beam search; "
        "set --gen_kwargs=num_beams=1"
      )
    if do_sample is False or temperature == 0:
      controls = {"temperature": 0.0}
      names = ("repetition_penalty", "min_tokens")  # the others draw nothing else
    else:
      controls, names = {"temperature": float(temperature)}, _CONTROLS
    controls |= {name: left[name] for name in names if name in left}
    for name in left:
      if name not in _CONTROLS:
        known = ("until", *_LIMITS, "do_sample", "temperature", *_CONTROLS, "num_beams")
        raise InputError(
          f"generation_kwargs: {name}={left[name]!r} is not known"
          f"{nearest(name, known)}; allowed: {', '.join(known)}"
        )
    max_tokens = int(limits[0] if limits else _DEFAULT_LIMIT)
    if max_tokens < 1:
      raise InputError(
        f"generation_kwargs: max_gen_toks={max_tokens}: must be 1 or more"
      )
    until = (until,) if isinstance(until, str) else tuple(until)
    return cls(tuple(text for text in until if text), max_tokens, (*controls.items(),))


class Engine:
  """A model that scores continuations and draws answers, a batch at a time.

  Args:
    params: stacked, on the devices of `partition`; while answers are drawn they lie
      there twice, see `parameters.unstacked`.
    batch: rows scored, and prompts answered, at a time.
    think_end: text behind which an answer begins: `until` then speaks of what follows
      its last occurrence, and that is all that is returned; an answer without it is
      taken whole. "" is off.
    console: where the progress is shown, and said what is left out; None is nowhere.

  Raises:
    InputError: a batch that the devices do not divide.
  """

  def __init__(
    self,
    c: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    partition: Partition,
    *,
    batch: int,
    seed: int = 0,
    think_end: str = "",
    console: Console | None = None,
  ):
    if batch < 1 or batch % partition.size("batch"):
      raise InputError(
        f"--batch_size={batch}: must be a multiple of {partition.size('batch')}, the "
        "parts that a batch is split into over the devices"
      )
    self.c, self.tokenizer = c, tokenizer
    self._params = params
    self._partition = partition
    self._batch = batch
    self._key = prng.at(prng.root(seed), "lm_eval")
    self._think_end = think_end
    self._console = Console(stderr=True, quiet=True) if console is None else console
    everywhere = partition.sharding()
    self._score = jax.jit(
      functools.partial(_score, c, partition), out_shardings=everywhere
    )
    self._draw = jax.jit(
      functools.partial(_draw, c, partition),
      static_argnames="plan",
      out_shardings=everywhere,
    )
    specs = parameters.unstacked(parameters.param_specs(c))
    self._by_layer = jax.jit(
      parameters.unstacked, out_shardings=partition.of_specs(specs)
    )

  def scores(
    self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
  ) -> list[tuple[float, bool]]:
    """Of each (context ids, continuation ids): the log-prob of the continuation, and
    whether a greedy draw gives it.

    Contexts lose what lies further back than the model reaches.

    Raises:
      InputError: a pair with an empty context, or a continuation that is too long.
    """
    if not pairs:
      return []
    most = self.c.max_length + 1  # what follows the last token is not asked
    sequences, first, sharing = [], [], collections.defaultdict(list)
    for i, (context, continuation) in enumerate(pairs):
      if not context or len(continuation) >= most:
        raise InputError(
          f"{len(continuation)} tokens behind {len(context)} cannot be scored by a "
          f"model of {self.c.max_length} positions"
        )
      whole = [*context, *continuation][-most:]
      sequences.append(whole)
      first.append(len(whole) - len(continuation))
      sharing[tuple(whole[: first[-1]])].append(i)
    self._say_cut(
      sum(len(s) < len(a) + len(b) for s, (a, b) in zip(sequences, pairs, strict=True)),
      len(pairs),
    )
    pack = packing.pack(
      sequences,
      first,
      row_length=_rounded(max(map(len, sequences))),
      groups=[
        packing.Group(members, len(context) if len(members) > 1 else 0)
        for context, members in sharing.items()
      ],
    )
    logp_BL, is_best_BL = self._scored(pack.rows)
    found = []
    for row, columns, begin in zip(pack.row_of, pack.columns, first, strict=True):
      place = (row, columns[begin:])
      found.append((float(logp_BL[place].sum()), bool(is_best_BL[place].all())))
    return found

  def _scored(self, rows: TokenRows) -> tuple[np.ndarray, np.ndarray]:
    """(log-probs float64, whether each is a greedy draw) of all rows, [B, L]."""
    parts = []
    num_rows = len(rows.tokens_BL)
    with terminal.Progress("scores", num_rows, console=self._console) as progress:
      for begin in range(0, num_rows, self._batch):
        part = jax.tree.map(
          lambda leaf, begin=begin: _filled(
            leaf[begin : begin + self._batch], self._batch
          ),
          rows,
        )
        parts.append(jax.device_get(self._score(self._params, part)))
        progress.step(min(begin + self._batch, num_rows), {})
    logp_BL = np.concatenate([logp for logp, _ in parts], dtype=np.float64)
    return logp_BL, np.concatenate([is_best for _, is_best in parts])

  def answers(self, asked: Sequence[tuple[str, Drawing]]) -> list[str]:
    """The answer to each text; to a text that is asked again, another sample.

    Raises:
      InputError: `until` that cannot be looked for, or no room for a prompt.
    """
    times = collections.Counter()
    by_drawing = collections.defaultdict(list)
    for i, (text, drawing) in enumerate(asked):
      number = prng.number_of(f"{times[text, drawing]}/{text}")
      times[text, drawing] += 1
      by_drawing[drawing].append((i, self.tokenizer.encode(text, begin=True), number))
    found = [""] * len(asked)
    params = self._by_layer(self._params)
    with terminal.Progress("answers", len(asked), console=self._console) as progress:
      done = 0
      for drawing, prompts in by_drawing.items():
        room = self.c.max_length - drawing.max_tokens
        if room < 1:
          raise InputError(
            f"generation_kwargs: max_gen_toks={drawing.max_tokens} leaves no room for "
            f"a prompt in the model's {self.c.max_length} positions; set "
            "--gen_kwargs=max_gen_toks=N"
          )
        self._say_cut(sum(len(ids) > room for _, ids, _ in prompts), len(prompts))
        length = _rounded(max(min(len(ids), room) for _, ids, _ in prompts))
        draw = self._drawer(drawing, params)
        for begin in range(0, len(prompts), self._batch):
          part = prompts[begin : begin + self._batch]
          texts = draw(
            [ids[-room:] for _, ids, _ in part], [n for *_, n in part], length
          )
          for (i, *_), text in zip(part, texts, strict=True):
            found[i] = self._cut_off(text, drawing.until)
          done += len(part)
          progress.step(done, {})
    return found

  def _drawer(
    self, drawing: Drawing, params: dict
  ) -> Callable[[Sequence[Sequence[int]], Sequence[int], int], list[str]]:
    """(prompts, numbers that key their draws, P) -> texts, for up to a batch."""
    added, stop_ids = self.tokenizer.added, {*self.tokenizer.stop_ids}
    strings = []
    for text in drawing.until:
      if added.get(text):  # a control token, which is in no text
        stop_ids.add(self.tokenizer.id_of(text))
      elif not self._think_end:
        strings.append(text)
    table_YV = None
    if strings:
      # One state a byte, and three that are always there.
      needed = sum(len(text.encode()) for text in strings) + 3
      states = max(stops.NUM_STATES, 1 << (needed - 1).bit_length())
      spelled = [self.tokenizer.token_bytes(i) for i in range(self.c.vocab)]
      table_YV = stops.table(strings, spelled, num_states=states)
    try:
      controls = logits.controls(
        self._batch,
        max_tokens=drawing.max_tokens,
        stop_ids=sorted(stop_ids),
        stop_strings=bool(strings),
        **dict(drawing.controls),
      )
    except InputError as e:
      raise InputError(f"generation_kwargs: {e}") from e
    penalty = dict(drawing.controls).get("repetition_penalty", 1.0)
    plan = loop_state.Plan(
      samples=1, max_tokens=drawing.max_tokens, penalises=penalty != 1.0
    )

    def draw(prompts, numbers, length):
      tokens_QP = np.zeros((self._batch, length), np.int32)
      length_Q = np.ones(self._batch, np.int32)
      for row, ids in enumerate(prompts):
        tokens_QP[row, : len(ids)] = ids
        length_Q[row] = len(ids)
      # Rows that fill up the batch draw one token.
      limit_Q = np.where(np.arange(self._batch) < len(prompts), drawing.max_tokens, 1)
      number_Q = _filled(np.asarray(numbers, np.int32), self._batch)
      tokens_QT, drawn_Q = jax.device_get(
        self._draw(
          params,
          loop_state.Prompts(tokens_QP, length_Q, number_Q),
          controls.replace(max_tokens=limit_Q.astype(np.int32)),
          self._key,
          table_YV,
          plan=plan,
        )
      )
      return [
        self.tokenizer.decode(row_T[:n], skip_special=True)
        for row_T, n in zip(tokens_QT[: len(prompts)], drawn_Q, strict=False)
      ]

    return draw

  def _cut_off(self, text: str, until: Sequence[str]) -> str:
    """What lies behind the thought, and before the first of `until`."""
    if self._think_end:
      text = text.rpartition(self._think_end)[2].lstrip()
    ends = [place for string in until if (place := text.find(string)) >= 0]
    return text[: min(ends, default=len(text))]

  def _say_cut(self, number: int, of: int) -> None:
    if number:
      self._console.print(
        f"{number:,} of {of:,} prompts lose their beginning: with what follows them "
        f"they are longer than the model's {self.c.max_length:,} positions"
      )


def _score(
  c: ModelConfig, partition: Partition, params: dict, rows: TokenRows
) -> tuple[jax.Array, jax.Array]:
  """(log-probs, whether a greedy draw gives the token), [B, L]."""

  def greedy(logits_CV):
    same = logits.controls(len(logits_CV), temperature=0.0, max_tokens=1)
    return logits.log_distribution(logits_CV, same)

  scores = token_logprobs(c, params, rows, shape_logits=greedy, partition=partition)
  return scores.logp_BL, scores.shaped_logp_BL == 0


def _draw(
  c: ModelConfig,
  partition: Partition,
  params: dict,
  prompts: loop_state.Prompts,
  controls: logits.Controls,
  key: jax.Array,
  stops_YV: jax.Array | None,
  *,
  plan: loop_state.Plan,
) -> tuple[jax.Array, jax.Array]:
  """(tokens_QT, length_Q)."""
  rollout = decode.generate(
    c, params, prompts, controls, key, plan, stops_YV=stops_YV, partition=partition
  )
  return rollout.tokens_BT, rollout.length_B


def _rounded(length: int) -> int:
  return -(-length // _MULTIPLE) * _MULTIPLE


def _filled(array: np.ndarray, count: int) -> np.ndarray:
  """With zeros behind it, `count` long."""
  return np.pad(array, [(0, count - len(array))] + [(0, 0)] * (array.ndim - 1))
