"""Mixed formats of one worked-out answer, as self-improvement trains on them.

Huang et al. 2022 (arXiv 2210.11610), section 3.2: every path of thought becomes four
examples, so that what is learnt depends neither on a form of prompt nor on exemplars.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from etils import epath

from r1jax.data import builders
from r1jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Exemplar:
  """A question that is answered in a prompt.

  Attributes:
    thought: the answer with the path to it.
    answer: the answer alone.
  """

  question: str
  thought: str
  answer: str


def read_exemplars(path: epath.PathLike) -> list[Exemplar]:
  """Lines with `question`, `thought` and `answer` of a JSONL file.

  Raises:
    InputError: no such file, a bad line, none.
  """
  names = tuple(field.name for field in dataclasses.fields(Exemplar))
  found = [
    Exemplar(**record)
    for _, record in builders.read_lines(
      path,
      lambda record: builders.text_fields(record, names),
      on_bad_line="error",
      key="config.formats.exemplars",
    )
  ]
  if not found:
    raise InputError(f"config.formats.exemplars={str(path)!r} has no line")
  return found


def asked(
  question: str, exemplars: Sequence[Exemplar] = (), *, answer_form: str = ""
) -> str:
  """The prompt of a question, behind exemplars where there are some.

  Args:
    answer_form: exemplars give their answer alone, in this form; "" is with its path.
  """
  shots = "".join(
    f"Q: {one.question}\nA: "
    f"{stated(answer_form, one.answer) if answer_form else one.thought.strip()}\n\n"
    for one in exemplars
  )
  return f"{shots}Q: {question}\nA:"


def stated(answer_form: str, answer: str) -> str:
  """An answer alone; "{answer}" is its slot in the form."""
  return answer_form.replace("{answer}", answer)


def expanded(
  question: str,
  completion: str,
  answer: str,
  exemplars: Sequence[Exemplar],
  *,
  names: Sequence[str],
  cue: str,
  answer_form: str,
) -> Iterator[tuple[str, str, str]]:
  """(format, prompt, completion) of a path in each of some FORMATS.

  Args:
    completion: the path with its answer.
    answer: the answer alone.
    exemplars: of the few-shot formats; one of the same question is left out, since it
      would give the answer away.
  """
  shots = [one for one in exemplars if one.question != question]
  alone = stated(answer_form, answer)
  made = {
    "few_shot_thought": (asked(question, shots), completion),
    "few_shot_answer": (asked(question, shots, answer_form=answer_form), alone),
    "cue": (f"{asked(question)} {cue}", completion),
    "question": (asked(question), alone),
  }
  for name in names:
    yield name, *made[name]


# With exemplars and a path, with exemplars and the answer alone, with the cue to think
# and a path, and with nothing but the question and the answer alone.
FORMATS = ("few_shot_thought", "few_shot_answer", "cue", "question")
