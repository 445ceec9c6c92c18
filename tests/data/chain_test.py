"""Tests of the chain task: arithmetic, splits, worked text."""

import re

import pytest
import reasoning_gym
from absl.testing import absltest, parameterized

from r1jax.data import chain
from r1jax.errors import InputError


def draw(**args):
  return reasoning_gym.create_dataset("op_chain", **{"size": 300, "seed": 5, **args})


EXAMPLE = {
  "question": "3 a+4 b*3 c-2 d*7 = ?",
  "answer": "3",
  "metadata": {"start": 3, "ops": ["+4", "*3", "-2", "*7"], "values": [7, 1, 9, 3]},
}


class ChainTest(parameterized.TestCase):
  def test_answers_follow_from_the_question_text(self):
    for entry in draw(min_steps=1, max_steps=9, modulus=10):
      start, *steps, equals, mark = entry["question"].split(" ")
      self.assertEqual((equals, mark), ("=", "?"))
      self.assertBetween(len(steps), 1, 9)
      value = int(start)
      for letter, step in zip("abcdefghi", steps, strict=False):
        found = re.fullmatch(rf"{letter}([-+*])(\d)", step)
        value = eval(f"{value}{found[1]}{found[2]}") % 10
      self.assertEqual(entry["answer"], str(value))

  def test_entry_is_a_function_of_seed_and_index(self):
    self.assertEqual(draw()[7], draw()[7])
    self.assertNotEqual(draw()[7]["question"], draw()[8]["question"])
    self.assertNotEqual(draw()[7]["question"], draw(seed=6000)[7]["question"])

  def test_operations_are_equally_likely_whatever_their_ranges(self):
    data = draw(operands={"+": (1, 2, 3, 4, 5, 6), "*": (3,)}, size=1000)
    ops = [op for entry in data for op in entry["metadata"]["ops"]]
    self.assertEqual(set(ops), {"+1", "+2", "+3", "+4", "+5", "+6", "*3"})
    self.assertAlmostEqual(ops.count("*3") / len(ops), 0.5, delta=0.03)

  def test_splits_share_no_question(self):
    seen = {
      split: {entry["question"] for entry in draw(split=split, size=1000, min_steps=2)}
      for split in chain.SPLITS
    }
    self.assertEmpty(seen["corpus"] & seen["train"])
    self.assertEmpty(seen["corpus"] & seen["heldout"])
    self.assertEmpty(seen["train"] & seen["heldout"])
    for split, questions in seen.items():
      self.assertEqual({chain.split_of(question) for question in questions}, {split})

  def test_split_shares(self):
    names = [chain.split_of(entry["question"]) for entry in draw(size=5000)]
    for split, share in chain.SPLITS.items():
      self.assertAlmostEqual(names.count(split) / len(names), share, delta=0.03)

  def test_corpus_text(self):
    self.assertEqual(chain.corpus_text(EXAMPLE, "direct"), "<answer>3</answer>")
    self.assertEqual(
      chain.corpus_text(EXAMPLE, "think"),
      "<think>a+4=7 b*3=1 c-2=9 d*7=3</think><answer>3</answer>",
    )
    mixed = chain.corpus_text(EXAMPLE, "think", languages=("en", "zh"))
    steps = mixed.removesuffix("</think><answer>3</answer>").split(" ")
    self.assertEqual(steps[1::2], ["a+4=7", "b*3=1", "c-2=9", "d*7=3"])
    self.assertEqual({step[-4:] for step in steps[::2]} | {"再"}, {"then", "再"})
    with self.assertRaisesRegex(InputError, "languages='eng'.*did you mean 'en'"):
      chain.corpus_text(EXAMPLE, "think", languages=("eng",))
    with self.assertRaisesRegex(InputError, "mode='thimk'.*did you mean 'think'"):
      chain.corpus_text(EXAMPLE, "thimk")

  @parameterized.parameters(
    ("3", 1.0), (" 3\n", 1.0), ("4", 0.0), ("13", 0.0), ("", 0.0), (None, 0.0)
  )
  def test_score(self, answer, want):
    self.assertEqual(draw().score_answer(answer, EXAMPLE), want)

  @parameterized.parameters(
    ({"min_steps": 0}, "min_steps=0"),
    ({"min_steps": 5, "max_steps": 4}, "max_steps=4"),
    ({"max_steps": 53}, "max_steps=53"),
    ({"modulus": 1}, "modulus=1"),
    ({"split": "held_out"}, "did you mean 'heldout'"),
    ({"operands": {}}, "operands is empty"),
    ({"operands": {"/": (2,)}}, "operands='/'"),
    ({"operands": {"+": ()}}, r"operands\['\+'\] is empty"),
    ({"size": 0}, "size=0"),
  )
  def test_bad_config_is_an_input_error(self, args, message):
    with self.assertRaisesRegex(InputError, message):
      draw(**args)

  def test_space_too_small_for_a_split_is_an_input_error(self):
    data = draw(min_steps=1, max_steps=1, modulus=2, operands={"+": (1,)}, split=None)
    missing = set(chain.SPLITS) - {
      chain.split_of(data[i]["question"]) for i in range(9)
    }
    self.assertNotEmpty(missing)
    data.config.split = missing.pop()
    with pytest.raises(InputError, match="no question of the split"):
      data[0]


if __name__ == "__main__":
  absltest.main()
