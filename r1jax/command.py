"""What the commands that take a config do alike."""

from collections.abc import Callable, Sequence

from absl import flags

from r1jax.errors import InputError, refuse


def parse_flags(
  argv: Sequence[str], check: Callable[[], None] = lambda: None
) -> list[str]:
  """For `app.run`: the flags of a command with --config; the words that are left.

  Exits with 2 and one line where they are bad.

  Args:
    check: raises InputError where the command's other flags are.
  """
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise InputError(f"{rest[1:]} is not expected; settings are --config.key=value")
    if flags.FLAGS["config"].value is None:
      raise InputError("--config=configs/NAME.py is needed")
    check()
    flags.FLAGS.config.to_dict()  # a file that could not be read says so here
  except (AttributeError, LookupError) as e:
    refuse(f"no such setting: {_innermost(e)}")
  except ModuleNotFoundError as e:
    refuse(f"{e} by the config; run the command in the folder that holds configs/")
  except (flags.Error, OSError, InputError) as e:
    refuse(e)
  return rest


def _innermost(error: Exception) -> str:
  """The text of an error that may have been wrapped in others."""
  inner = error.args[0] if error.args else ""
  return _innermost(inner) if isinstance(inner, Exception) else str(inner)
