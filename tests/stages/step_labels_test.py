"""Steps are labelled by where completions of their prefixes lead."""

import pytest

from r1jax.data import judged
from r1jax.errors import InputError
from r1jax.stages.step_labels import label_steps
from r1jax.types import Problem
from tests import learners

PROBLEM = Problem("p/1", "q", "7", "math")


def verify(text, problem):
  return text.rstrip().endswith(problem.answer)


@pytest.mark.parametrize(
  ("labels", "want"), [("hard", [1, 0, 1]), ("soft", [0.375, 0, 1])]
)
def test_each_step_has_its_share_of_hits(labels, want):
  """method.md, section 12: 3 of 8 is 1 if hard, 0.375 if soft."""
  text = "one\ntwo\nis 7"
  hits = {"one\n": 3, "one\ntwo\n": 0}

  def sample(asked, num_rollouts):
    assert asked == [(PROBLEM, "one\n"), (PROBLEM, "one\ntwo\n")]
    return [
      [f"so {7 if i < hits[prefix] else 8}" for i in range(num_rollouts)]
      for _, prefix in asked
    ]

  (line,) = label_steps([(PROBLEM, text)], sample=sample, verify=verify, labels=labels)
  assert line == {
    "prompt": "q",
    "completion": text,
    "ends": [4, 8, 12],
    "labels": want,
    "hits": [3, 0, 8],
  }


def test_lines_are_read_back_as_training_data(tmp_path):
  messages = ({"role": "user", "content": "q"},)
  spoken = Problem("p/2", "q", "7", "math", messages=messages)
  solutions = [(PROBLEM, "a\n7"), (spoken, "8"), (PROBLEM, " \n")]
  lines = list(
    label_steps(
      solutions,
      sample=lambda asked, n: [["7"] * n for _ in asked],
      verify=verify,
      num_rollouts=2,
    )
  )
  path = learners.jsonl(tmp_path / "steps.jsonl", lines)
  found, counts = judged.load_judged(objective="process", path=path)
  assert counts["kept"] == 2  # one has no step
  assert [line.labels for line in found] == [(1, 1), (0,)]
  assert found[1].problem.messages == messages


def test_what_cannot_be_is_refused():
  asked = {"sample": None, "verify": verify}
  with pytest.raises(InputError, match=r"labels='sof'.*mean 'soft'"):
    next(label_steps([(PROBLEM, "7")], **asked, labels="sof"))
  with pytest.raises(InputError, match="num_rollouts=0"):
    next(label_steps([(PROBLEM, "7")], **asked, num_rollouts=0))
  with pytest.raises(ValueError, match="1 completions, not 8"):
    next(label_steps([(PROBLEM, "a\n7")], sample=lambda *_: [["7"]], verify=verify))
  # One step asks for nothing.
  assert len(list(label_steps([(PROBLEM, "7")], **asked))) == 1
