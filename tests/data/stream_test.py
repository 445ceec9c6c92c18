"""Tests of the order of problems: epochs, shards, random access."""

from absl.testing import absltest, parameterized

from r1jax.data.stream import Stream
from r1jax.errors import InputError
from r1jax.types import Problem

PROBLEMS = [Problem(str(i), f"{i}?", str(i), "exact") for i in range(24)]


def ids(stream, steps):
  return [problem.id for step in steps for problem in stream.at(step)]


class StreamTest(parameterized.TestCase):
  @parameterized.parameters(4, 5, 24)
  def test_every_problem_once_per_epoch_and_epochs_differ(self, batch):
    order = ids(
      Stream(PROBLEMS, batch=batch, seed=3, key="config.rollout.prompts"), range(3 * 24)
    )
    epochs = [order[i * 24 : (i + 1) * 24] for i in range(3)]
    for epoch in epochs:
      self.assertCountEqual(epoch, [problem.id for problem in PROBLEMS])
    self.assertNotEqual(epochs[0], epochs[1])
    self.assertNotEqual(epochs[1], epochs[2])

  def test_a_step_needs_no_history(self):
    """R10: the batch of step k is a function of (seed, k)."""
    walked = Stream(PROBLEMS, batch=5, seed=3, key="config.rollout.prompts")
    ids(walked, range(40))
    resumed = Stream(PROBLEMS, batch=5, seed=3, key="config.rollout.prompts")
    self.assertEqual(ids(walked, range(40, 60)), ids(resumed, range(40, 60)))

  def test_seeds_differ(self):
    first, second = (
      Stream(PROBLEMS, batch=24, seed=seed, key="config.rollout.prompts")
      for seed in (3, 4)
    )
    self.assertNotEqual(ids(first, [0]), ids(second, [0]))

  @parameterized.parameters(1, 2, 4)
  def test_shards_joined_are_the_batch_of_one_host(self, count):
    whole = Stream(PROBLEMS, batch=8, seed=3, key="config.rollout.prompts")
    shards = [
      Stream(
        PROBLEMS, batch=8, seed=3, key="config.rollout.prompts", shard=(index, count)
      )
      for index in range(count)
    ]
    for step in range(7):
      joined = [problem for shard in shards for problem in shard.at(step)]
      self.assertEqual(joined, whole.at(step))
      self.assertLen(shards[0].at(step), 8 // count)

  @parameterized.parameters(
    (8, (0, 3), "prompts=8 does not divide by 3 hosts"),
    (0, (0, 1), "prompts=0"),
    (25, (0, 1), "prompts=25 exceeds the 24 that there are"),
    (8, (2, 2), r"shard=\(2, 2\)"),
  )
  def test_bad_arguments(self, batch, shard, message):
    with self.assertRaisesRegex(InputError, message):
      Stream(PROBLEMS, batch=batch, seed=0, key="config.rollout.prompts", shard=shard)


if __name__ == "__main__":
  absltest.main()
