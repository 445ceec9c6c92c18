"""Four formats of a path of thought."""

import pytest

from r1jax.data import formats
from r1jax.errors import InputError
from tests import learners

SHOTS = [
  formats.Exemplar("1 + 1?", " It is two. The answer is 2.\n", "2"),
  formats.Exemplar("2 + 2?", "So 4.", "4"),
]
FORM = {"names": formats.FORMATS, "cue": "Think.", "answer_form": "It is {answer}."}


def test_a_path_becomes_four_examples():
  made = list(formats.expanded("54 * 2?", "50 * 2 + 8 = 108", "108", SHOTS, **FORM))
  path, alone = "50 * 2 + 8 = 108", "It is 108."
  assert made == [
    (
      "few_shot_thought",
      "Q: 1 + 1?\nA: It is two. The answer is 2.\n\nQ: 2 + 2?\nA: So 4.\n\n"
      "Q: 54 * 2?\nA:",
      path,
    ),
    (
      "few_shot_answer",
      "Q: 1 + 1?\nA: It is 2.\n\nQ: 2 + 2?\nA: It is 4.\n\nQ: 54 * 2?\nA:",
      alone,
    ),
    ("cue", "Q: 54 * 2?\nA: Think.", path),
    ("question", "Q: 54 * 2?\nA:", alone),
  ]


def test_an_exemplar_does_not_answer_its_own_question():
  form = {**FORM, "names": ("few_shot_answer", "question")}
  (_, few, _), (_, bare, _) = formats.expanded("2 + 2?", "So 4.", "4", SHOTS, **form)
  assert few == "Q: 1 + 1?\nA: It is 2.\n\nQ: 2 + 2?\nA:"
  assert bare == "Q: 2 + 2?\nA:"


def test_exemplars_of_a_file(tmp_path):
  lines = [{"question": "q", "thought": "t", "answer": "a", "more": 1}]
  path = learners.jsonl(tmp_path / "shots.jsonl", lines)
  assert formats.read_exemplars(path) == [formats.Exemplar("q", "t", "a")]
  learners.jsonl(tmp_path / "shots.jsonl", [{"question": "q", "answer": "a"}])
  with pytest.raises(InputError, match=r"shots\.jsonl:1: no field 'thought'"):
    formats.read_exemplars(path)
  (tmp_path / "shots.jsonl").write_text("")
  with pytest.raises(InputError, match=r"config\.formats\.exemplars=.* has no line"):
    formats.read_exemplars(path)
