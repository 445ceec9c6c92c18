"""lm-eval's tasks, answered by our models.

    python -m r1jax.lm_eval --checkpoint=RUN --tasks=NAME,FILE.yaml
    python -m r1jax.lm_eval --model=PATH --tasks=NAME [--apply_chat_template]

RUN and PATH are as `r1jax.export` takes them. Tasks are lm-eval's own by name, those of
--include_path, or a YAML file; what they are made of is its business, and so are the
table at the end and the JSON of --output_path. Log-probs are those of training, packed,
what answers begin with in common scored once; answers are drawn by the engine of the
rollouts, each from (seed, its text, how often it was asked), whatever the batch.

Needs lm-eval: pip install -e '.[lm_eval]'. Exit codes: 0 done, 2 bad input.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from rich.console import Console

from r1jax import export
from r1jax.checkpoints import write_json
from r1jax.data import templates
from r1jax.errors import InputError, nearest, refuse
from r1jax.lm_eval.engine import Drawing, Engine
from r1jax.models import parameters

if TYPE_CHECKING:
  from lm_eval.api.model import LM


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
    raise InputError(f"pip install -e '.[lm_eval]' is needed: {e}") from e
  out = values.output_path
  if out and not epath.Path(out).parent.is_dir():
    raise InputError(f"--output_path={out}: there is no such folder")
  tasks, index = known_tasks(values.tasks, values.include_path)
  if values.model:
    source = export.of_model(values.model)
  else:
    source = export.of_checkpoint(values.checkpoint, values.step)
  params, partition = export.load_on(source, dtype=values.dtype, tp=values.tp)
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
