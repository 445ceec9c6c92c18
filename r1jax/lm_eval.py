"""lm-eval's tasks, answered by our models.

    python -m r1jax.lm_eval --checkpoint=RUN --tasks=NAME,FILE.yaml
    python -m r1jax.lm_eval --model=PATH --tasks=NAME [--apply_chat_template]

RUN and PATH are as `r1jax.export` takes them. Tasks are lm-eval's own by name, those of
--include_path, or a YAML file; what they are made of is its business, and so are the
table at the end and the JSON of --output_path. Log-probs are those of training, packed,
what answers begin with in common scored once; answers are drawn by the engine of the
rollouts, each from (seed, its text, how often it was asked), whatever the batch.

Needs lm-eval: pip install "r1jax[lm_eval]". Exit codes: 0 done, 2 bad input.

Letters: B rows, L tokens in a row, Q prompts, P prompt slots, T completion slots.
"""

import collections
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from etils import epath
from rich.console import Console

from r1jax import export, prng, sharding, terminal
from r1jax.checkpoints import write_json
from r1jax.data import packing, templates
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import InputError, nearest, refuse
from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.sampling import decode, logits, loop_state, stops
from r1jax.sharding import SAMPLE_RULES, Partition
from r1jax.training.logprobs import token_logprobs
from r1jax.types import TokenRows

if TYPE_CHECKING:
  from lm_eval.api.model import LM

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


def as_lm(engine: Engine, about: Mapping[str, Any]) -> "LM":
  """The engine as lm-eval's `simple_evaluate` and `evaluate` take models.

  Args:
    about: goes into the results' `config`.
  """
  from lm_eval import utils
  from lm_eval.api.model import TemplateLM

  c, tokenizer = engine.c, engine.tokenizer

  class R1jax(TemplateLM):
    """See `Engine`."""

    max_length = c.max_length
    tokenizer_name = tokenizer.fingerprint
    eot_token_id = tokenizer.eos_id
    # What an empty context is scored behind.
    prefix_token_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id

    def tok_encode(self, string, add_special_tokens=None, **unused):
      return tokenizer.encode(string, begin=add_special_tokens is not False)

    def _loglikelihood_tokens(self, requests, **unused):
      return engine.scores([(context, rest) for _, context, rest in requests])

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
      pairs, owner = [], []
      for i, request in enumerate(requests):
        [text] = request.args
        windows = utils.get_rolling_token_windows(
          tokenizer.encode(text), self.prefix_token_id, c.max_length, context_len=1
        )
        for window in windows:
          pairs.append(utils.make_disjoint_window(window))
          owner.append(i)
      total = np.zeros(len(requests))
      np.add.at(total, owner, [logp for logp, _ in engine.scores(pairs)])
      return total.tolist()

    def generate_until(self, requests, disable_tqdm=False):
      asked = [request.args for request in requests]
      return engine.answers([(text, Drawing.of(how)) for text, how in asked])

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
      text = templates.render_chat(
        chat_history, tokenizer, add_generation_prompt=add_generation_prompt
      )
      if add_generation_prompt:
        return text
      # The last message is what the answer begins with: its turn stays open.
      begun = chat_history[-1]["content"]
      before, found, _ = text.rpartition(begun)
      if not found:
        raise InputError(f"the chat template changes {begun!r}, which an answer begins")
      return before + begun

    def chat_template(self, chat_template=False):
      return (tokenizer.chat_template or "") if chat_template else None

    def get_model_info(self):
      return dict(about)

  return R1jax()


def load(source: export.Source, *, dtype: str, tp: int) -> tuple[dict, Partition]:
  """Parameters, whole on every group of `tp` devices that answers its own prompts.

  Raises:
    InputError: the model does not split over `tp` devices, or these do not.
  """
  if tp < 1 or jax.device_count() % tp:
    raise InputError(f"--tp={tp}: must divide the {jax.device_count()} devices here")
  if dtype == "auto":
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  partition = Partition(sharding.make_mesh({"data": -1, "tp": tp}), SAMPLE_RULES)
  try:
    shardings = partition.of_specs(parameters.param_specs(source.model))
  except InputError as e:
    raise InputError(f"--tp={tp}: {e}") from e
  params = jax.tree.map(
    lambda leaf, at: jax.device_put(leaf.astype(jnp.dtype(dtype)), at),
    source.load(),
    shardings,
  )
  return params, partition


def known_tasks(names: Sequence[str], include_path: str | None) -> tuple[list, Any]:
  """(tasks of these names, patterns and files, lm-eval's index of all it knows).

  Raises:
    InputError: nothing goes by such a name.
  """
  from lm_eval.tasks import TaskManager

  if not names:
    raise InputError("--tasks=NAME,… is needed: lm-eval's tasks, or YAML files")
  index = TaskManager(include_path=include_path)
  found = []
  for name in names:
    matching = index.match_tasks([name])
    if not matching and Path(name).is_file():
      matching = [name]
    if not matching:
      raise InputError(
        f"--tasks={name}: lm-eval knows no such task{nearest(name, index.all_tasks)}, "
        "and there is no such file; --include_path=FOLDER adds tasks of your own"
      )
    found += matching
  return found, index


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise InputError(f"{rest[1:]} is not expected; settings are --key=value")
    values = flags.FLAGS
    if bool(values.checkpoint) == bool(values.model):
      raise InputError("one of --checkpoint=RUN and --model=PATH is needed")
    if values.model and values.step is not None:
      raise InputError(f"--step={values.step} goes with --checkpoint")
  except (flags.Error, InputError) as e:
    refuse(e)
  return rest


def evaluate(values: flags.FlagValues) -> dict[str, Any]:
  """What lm-eval finds, as `simple_evaluate` returns it.

  Raises:
    InputError: no lm-eval, no such task, data that cannot be had, or a bad setting.
  """
  try:
    import lm_eval
  except ImportError as e:
    raise InputError(f'pip install "r1jax[lm_eval]" is needed: {e}') from e
  out = values.output_path
  if out and not epath.Path(out).parent.is_dir():
    raise InputError(f"--output_path={out}: there is no such folder")
  tasks, index = known_tasks(values.tasks, values.include_path)
  if values.model:
    source = export.of_model(values.model)
  else:
    source = export.of_checkpoint(values.checkpoint, values.step)
  params, partition = load(source, dtype=values.dtype, tp=values.tp)
  engine = Engine(
    source.model,
    params,
    source.tokenizer,
    partition,
    batch=values.batch_size,
    seed=values.seed,
    think_end=values.think_end_token,
    console=Console(stderr=True, highlight=False),
  )
  about = {
    **source.made_from,
    "model_num_parameters": parameters.num_params(source.model),
    "model_dtype": str(jax.tree.leaves(params)[0].dtype),
    "seed": values.seed,
  }
  try:
    return lm_eval.simple_evaluate(
      as_lm(engine, about),
      tasks=tasks,
      task_manager=index,
      num_fewshot=values.num_fewshot,
      limit=values.limit,
      batch_size=values.batch_size,
      gen_kwargs=values.gen_kwargs,
      apply_chat_template=values.apply_chat_template,
      system_instruction=values.system_instruction,
    )
  except OSError as e:  # what fetches and reads data raises kinds of it
    raise InputError(
      f"--tasks={','.join(values.tasks)}: lm-eval could not read a data set "
      f"({type(e).__name__}: {e})"
    ) from e


def main(argv: Sequence[str]) -> None:
  """Exits with 2 and one line where the input is bad; see the module."""
  del argv
  values = flags.FLAGS
  if not values["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  try:
    results = evaluate(values)
  except InputError as e:
    refuse(e)
  from lm_eval import utils

  if values.output_path:
    text = json.dumps(results, default=utils.handle_non_serializable)
    write_json(values.output_path, json.loads(text))
  print(utils.make_table(results))
  if results.get("groups"):
    print(utils.make_table(results, "groups"))
  if values.output_path:
    print(f"every request and answer: {values.output_path}", file=sys.stderr)


if __name__ == "__main__":
  flags.DEFINE_string("checkpoint", None, "A run directory, or a part of one.")
  flags.DEFINE_string("model", None, "A .gguf file, a folder or hf://org/name.")
  flags.DEFINE_integer("step", None, "Of the checkpoint; the last by default.")
  flags.DEFINE_list("tasks", [], "lm-eval's tasks by name or pattern, or YAML files.")
  flags.DEFINE_string("include_path", None, "A folder with further tasks.")
  flags.DEFINE_integer("num_fewshot", None, "Examples; the task's number by default.")
  flags.DEFINE_float("limit", None, "Documents of each task, or below 1 their share.")
  flags.DEFINE_string("gen_kwargs", None, "a=b,c=d over the tasks' generation_kwargs.")
  flags.DEFINE_bool("apply_chat_template", False, "Ask by the model's chat template.")
  flags.DEFINE_string("system_instruction", None, "A system message.")
  flags.DEFINE_string("think_end_token", "", "Answers are what follows this text.")
  flags.DEFINE_integer("batch_size", 16, "Rows scored and prompts answered at a time.")
  flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "Of the parameters."
  )
  flags.DEFINE_integer("tp", 1, "Devices that the model is split over.")
  flags.DEFINE_integer("seed", 0, "Names the draws.")
  flags.DEFINE_string("output_path", None, "A JSON file with results and samples.")
  app.run(main, flags_parser=_parse_flags)
