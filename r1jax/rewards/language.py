"""Language consistency: is the thought written in the language asked for?

Words are told apart by their script, and those in Latin letters, which many languages
share, by py3langid. Of the detectors tried (also fastText's lid.176, lingua, CLD2) it
alone was never wrong on 139 labelled segments of 30 letters or more; it needs nothing
but numpy and brings its model along.
"""

import bisect
import dataclasses
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1jax.errors import one_of

# Blocks of Unicode by script; only their letters and the marks on them make words.
_BLOCKS = {
  "latin": ((0x41, 0x24F), (0x1E00, 0x1EFF)),
  "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
  "cyrillic": ((0x400, 0x52F),),
  "hebrew": ((0x590, 0x5FF),),
  "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
  "devanagari": ((0x900, 0x97F),),
  "bengali": ((0x980, 0x9FF),),
  "tamil": ((0xB80, 0xBFF),),
  "thai": ((0xE00, 0xE7F),),
  "hangul": ((0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3)),
  "kana": ((0x3041, 0x3096), (0x309D, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF)),
  "han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F)),
}
# Written without spaces: every letter is a word.
_UNSPACED = ("thai", "kana", "han")
_LATIN = (
  *("en", "fr", "de", "es", "it", "pt", "nl", "pl", "tr", "vi"),
  *("sv", "da", "no", "fi", "cs", "ro", "hu", "id"),
)
# Language -> the scripts that its words are written in.
LANGUAGES: dict[str, tuple[str, ...]] = {
  **dict.fromkeys(_LATIN, ("latin",)),
  "zh": ("han",),
  "ja": ("kana", "han"),
  "ko": ("hangul",),
  "ru": ("cyrillic",),
  "ar": ("arabic",),
  "he": ("hebrew",),
  "hi": ("devanagari",),
  "bn": ("bengali",),
  "ta": ("tamil",),
  "th": ("thai",),
  "el": ("greek",),
}
# Functions and units, the same in every language.
_SYMBOLS = (
  "sin|cos|tan|cot|log|ln|exp|lim|max|min|gcd|lcm|mod|sqrt|km|cm|mm|kg|mg|ml|mph"
)
_NO_PROSE = re.compile(
  r"```.*?(?:```|\Z)|`[^`\n]*`"
  r"|\$\$.*?(?:\$\$|\Z)|\\\[.*?(?:\\\]|\Z)|\\\(.*?(?:\\\)|\Z)"
  r"|\$(?=\S)[^$\n]*?(?<=\S)\$(?!\d)"  # "$5 and $6" are prices
  r"|\\begin\{(?P<name>[^{}\n]*)\}.*?(?:\\end\{(?P=name)\}|\Z)"
  r"|https?://\S+|\\[A-Za-z]+",
  re.DOTALL,
)
_SHORTEST = 20  # letters of a sentence that the detector is asked about alone
_PIECE = 40  # letters of the pieces that a long one is cut into, at least
_UNDECIDABLE = 12  # letters, of which nothing can be said


def score(text: str, problem: Mapping[str, Any] | None = None, *, target: str) -> float:
  """Words of the thought in the target language over all its words, in [0, 1].

  DeepSeek-R1 report (arXiv 2501.12948), section 2.3.2: 18 target words of 20 give 0.9.

  Words: what is left of the thought without code (in backticks), formulas (in LaTeX's
  delimiters and environments), LaTeX commands, addresses and numbers. A word is a run
  of letters of one script; in Chinese, Japanese and Thai every letter is one. Names
  with digits or underscores and single Latin or Greek letters are symbols, no words.

  Languages: one that has its script for itself has all words in it, but that Chinese
  characters are Japanese in a sentence with kana. Words in Latin letters are taken
  sentence by sentence (short ones together, long ones in pieces) to the detector, which
  chooses among the languages with Latin letters here; a thought with too few of them to
  tell has them all in the target language.

  Measured on the 70 thoughts (940 words, half of them of several languages) that
  tests/rewards/language_test.py keeps for that: words taken for another language than
  they are 1.3 % for "en", 0.4 % for "zh", 0 for "ja", 0.7 to 1.3 % for "de", "es" and
  "fr"; the share is off by 0.009 on average for "en", 0.003 for "zh", and 0.03 for the
  last three, mostly of English thoughts of a word or two. Else wrong are names out of
  code without backticks, and less than a sentence in another Latin language.

  Departs: the report does not say how it counts. Languages that share a script other
  than Latin (Ukrainian with Russian, Persian with Arabic) count as one. A thought
  without any word, or no thought, gives 0: silence is not consistency.

  Args:
    text: the completion, without the prompt. The thought ends at the first `</think>`
      and starts at `<think>` before it, or at the beginning where the prompt has opened
      it; an unfinished thought goes to the end.
    target: a key of LANGUAGES.
  """
  del problem
  one_of(target, LANGUAGES, key="config.reward.language")
  verdicts = [verdict for _, verdict in judged(thought(text), target)]
  return sum(verdicts) / len(verdicts) if verdicts else 0.0


@dataclasses.dataclass(frozen=True)
class Consistency:
  """`score` for a target. Read from a pickle it has its detector loaded, so that reward
  workers, which are forked after that, share one."""

  target: str

  def __call__(self, text: str, problem: Mapping[str, Any] | None = None) -> float:
    return score(text, problem, target=self.target)

  def __setstate__(self, state: Mapping[str, Any]) -> None:
    self.__dict__.update(state)
    if self.target in _LATIN:
      _detector()


def thought(text: str) -> str:
  before, closed, _ = text.partition("</think>")
  _, opened, after = before.partition("<think>")
  return after if opened else before if closed else ""


def judged(text: str, target: str) -> list[tuple[str, bool]]:
  """Every word in order, and whether it is of the target language."""
  found: list[tuple[str, bool]] = []
  latin: list[list[int]] = []  # places of the Latin words of each sentence
  for sentence in _sentences(text):
    places = []
    has_kana = any(script == "kana" for script, _ in sentence)
    for script, word in sentence:
      is_target = script in LANGUAGES[target]
      if script == "han":
        is_target = target == ("ja" if has_kana else "zh")
      if script == "latin" and is_target:
        places.append(len(found))
      found.append((word, is_target))
    if places:
      latin.append(places)
  words = [word for word, _ in found]
  for window in _windows(latin, words):
    said = " ".join(words[at] for at in window)
    if len(said) >= _UNDECIDABLE and _detector().classify(said)[0] != target:
      for at in window:
        found[at] = (words[at], False)
  return found


def _sentences(text: str) -> Iterator[list[tuple[str, str]]]:
  """(script, word) of each sentence."""
  sentence = []
  prose = _NO_PROSE.sub(" ", unicodedata.normalize("NFC", text))
  for match in _pieces().finditer(prose):
    kind = match.lastgroup
    if kind == "end":
      yield sentence
      sentence = []
    elif kind != "symbol":
      sentence.append((kind, match[0]))
  yield sentence


def _windows(
  sentences: Sequence[Sequence[int]], words: Sequence[str]
) -> Iterator[Sequence[int]]:
  """Places of words, grouped so that a detector can tell their language.

  A window is a sentence; one too short for that waits for the next, or joins the last
  where there is none; a long one is cut into even pieces.
  """
  waiting: list[int] = []
  window: list[int] = []
  for sentence in sentences:
    waiting += sentence
    if sum(len(words[at]) for at in waiting) >= _SHORTEST:
      yield from _cut(window, words)
      window, waiting = waiting, []
  yield from _cut(window + waiting, words)


def _cut(window: Sequence[int], words: Sequence[str]) -> Iterator[Sequence[int]]:
  """A window in as many even pieces as have `_PIECE` letters."""
  ends = list(itertools.accumulate(len(words[at]) for at in window))
  num_pieces = max(ends[-1] // _PIECE, 1) if ends else 0
  for piece in range(num_pieces):
    low, high = (
      bisect.bisect_left(ends, ends[-1] * k / num_pieces) for k in (piece, piece + 1)
    )
    yield window[low + (piece > 0) : high + 1]


@functools.cache
def _pieces() -> re.Pattern[str]:
  """Words by script, ends of sentences and symbols; what matches none is passed by."""
  letters = {name: _letters(blocks) for name, blocks in _BLOCKS.items()}
  latin, greek = letters["latin"], letters["greek"]
  name = rf"[{latin}{greek}]*[\d_][{latin}{greek}\d_]*"
  symbol = (
    rf"(?:[A-Z]+|[{latin}{greek}]|{_SYMBOLS})(?![{latin}{greek}]|['’][{latin}])|{name}"
  )
  kinds = {"symbol": symbol}
  for name, those in letters.items():
    run = "" if name in _UNSPACED else f"+(?:['’][{those}]+)*"
    kinds[name] = f"[{those}]{run}"
  kinds |= {"other": r"[^\W\d_]", "end": r"[.!?;:…\n。！？；：।؟]"}
  return re.compile("|".join(f"(?P<{kind}>{form})" for kind, form in kinds.items()))


def _letters(blocks: Sequence[tuple[int, int]]) -> str:
  """Inside of a character class."""
  of_blocks = (chr(code) for first, last in blocks for code in range(first, last + 1))
  found = [c for c in of_blocks if unicodedata.category(c)[0] in "LM"]
  spans: list[list[str]] = []
  for c in found:
    if spans and ord(c) == ord(spans[-1][1]) + 1:
      spans[-1][1] = c
    else:
      spans.append([c, c])
  return "".join(f"{first}-{last}" for first, last in spans)


@functools.cache
def _detector() -> Any:
  from py3langid.langid import MODEL_FILE, LanguageIdentifier

  detector = LanguageIdentifier.from_model_file(MODEL_FILE)
  detector.set_languages(_LATIN)
  return detector
