"""Errors that a user can act on."""

import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn


class InputError(Exception):
  """Bad input: a key, a file, a value. Commands print it as one line and exit 2.

  The message says what was given, what is allowed and which config key to change.
  """


def one_of(value: str, allowed: Iterable[str], *, key: str) -> str:
  """Returns `value` if it is among `allowed`, else raises naming the nearest one."""
  allowed = list(allowed)
  if value in allowed:
    return value
  raise InputError(
    f"{key}={value!r} is not known{nearest(value, allowed)}; "
    f"allowed: {', '.join(sorted(allowed))}"
  )


def nearest(name: str, allowed: Iterable[str]) -> str:
  """A clause ' (did you mean ...?)', or nothing where no name is near."""
  close = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
  return f" (did you mean {close[0]!r}?)" if close else ""


def refuse(error: Exception | str) -> NoReturn:
  """Ends a command with 2, the exit code for bad input, and one line that says why."""
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  sys.exit(2)
