"""Evaluates a model on sets of problems, as DeepSeek-R1 was unless told otherwise.

    python -m r1jax.evaluate --checkpoint=RUN --out=DIR
    python -m r1jax.evaluate --model=PATH --set=math500 --set=gsm8k,split=test --out=DIR

RUN is a run directory (its last stage is taken), RUN/checkpoints/STAGE, or one of the
steps in there; it is asked as it was in training, on the sets that it was evaluated on
there unless others are named. PATH is a .gguf file, a Hugging Face folder or
hf://org/name. --set=[NAME=]SOURCE[,key=value...] has the settings of `load_problems`
and `samples`: --set=svamp=jsonl,path=svamp.json,prompt_field=Body, or
--set=reasoning_gym,task=chain_sum,size=100,task_args.min_terms=2. Everything else is
--config (configs/evaluate.py), such as --config.eval.samples=64 or --config.greedy.
--reward_model=RUN/checkpoints/STAGE chooses among the answers.

DIR gets samples.jsonl (every answer with its prompt, what was read of it, whether that
is right), results.json (all numbers, settings, versions, digests of the data) and
results.md (the table). The same command gives the same files, and continues where it
was stopped. Exit codes: 0 done, 2 bad input, 130 and 143 stopped by Ctrl-C or SIGTERM
with everything kept.
"""

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from r1jax import export, train
from r1jax.command import parse_flags
from r1jax.errors import InputError, refuse
from r1jax.evaluate import files, table
from r1jax.evaluate.evaluation import evaluate
from r1jax.stages.run import Stopped

_CONFIG = "configs/evaluate.py"
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """`parse_flags`, with a config where none is named.

  As the flag's default it would be read, with what follows `--config.`, where mistakes
  have no handler yet.
  """
  if not any(word.lstrip("-").split("=")[0] == "config" for word in argv[1:]):
    argv = [argv[0], f"--config={_CONFIG}", *argv[1:]]
  return parse_flags(argv, _check_flags)


def _check_flags() -> None:
  given = flags.FLAGS
  export.check_flags(
    checkpoint=given.checkpoint, model=given.model, out=given.out, step=given.step
  )


def main(argv: Sequence[str]) -> None:
  """Exits with 2 and one line where the input is bad; see the module."""
  del argv
  given = flags.FLAGS
  if not given["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  console = Console(highlight=False)
  stop, out = train.StopSignal(), Path(given.out)
  stop.install()
  try:
    if given.model:
      source = export.of_model(given.model)
    else:
      source = export.of_checkpoint(given.checkpoint, given.step)
    reward_model = None
    if given.reward_model:
      reward_model = export.of_checkpoint(given.reward_model, None)
    results = evaluate(
      source,
      out,
      config=given.config.to_dict(),
      sets=given.set,
      reward_model=reward_model,
      dtype=given.dtype,
      tp=given.tp,
      overwrite=given.overwrite,
      stop_asked=stop,
      console=console,
    )
  except InputError as e:
    refuse(e)
  except Stopped as e:
    console.print(f"{e}; the same command continues", markup=False, soft_wrap=True)
    sys.exit(128 + stop.number)
  except OSError as e:
    if e.errno not in _UNWRITABLE:
      raise
    refuse(f"cannot write to --out={out}: {os.strerror(e.errno)}")
  print(table.markdown(results))
  for name in files.KEPT:
    print(shlex.quote(str(out / name)))


if __name__ == "__main__":
  flags.DEFINE_string("checkpoint", None, "A run directory, or a part of one.")
  flags.DEFINE_string("model", None, "A model, in place of a checkpoint.")
  flags.DEFINE_integer("step", None, "Of the checkpoint; the last by default.")
  flags.DEFINE_multi_string("set", [], "[NAME=]SOURCE[,key=value...]; may be repeated.")
  flags.DEFINE_string("out", None, "The folder that is written.")
  flags.DEFINE_string("reward_model", None, "RUN/checkpoints/STAGE of a reward model.")
  flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "Of the parameters."
  )
  flags.DEFINE_integer("tp", 1, "Devices that the model is split over.")
  flags.DEFINE_bool("overwrite", False, "Write over another evaluation.")
  config_flags.DEFINE_config_file("config", lock_config=True)
  app.run(main, flags_parser=_parse_flags)
