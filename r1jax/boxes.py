r"""What stands in `\boxed{…}`, where solutions and answers mark their result."""

import re

_BRACE = re.compile(r"\\boxed\{|[{}]")


def last_boxed(text: str) -> str | None:
  r"""Content of the last complete `\boxed{…}`, with braces balanced; None without."""
  last, opened = (-1, -1), []
  for match in _BRACE.finditer(text, max(0, text.find("\\boxed{"))):
    if match[0] != "}":
      opened.append(match.end() if match[0] != "{" else None)
    elif opened:
      begin = opened.pop()
      if begin is not None:
        last = max(last, (begin, match.start()))
  return text[slice(*last)].strip() if last[0] >= 0 else None
