"""A critic beside a policy: what it begins with, learns, and is not touched by."""

import jax
import numpy as np
import pytest

from r1jax import trees
from r1jax.errors import InputError
from r1jax.stages.critic import Critic, explained
from r1jax.training.minibatches import minibatches
from tests import tiny
from tests.stages.trainable_test import settings, trainable_of

C = tiny.config(depth=1)
ANSWERS = [[5, 6, 7], [8, 9], [4], [3, 2, 1, 0]]


def critic(**changes):
  changes = {"lora.rank": 0, "critic.optim.learning_rate": 0.1, **changes}
  return Critic(trainable_of(C).run, settings(**changes))


def batch():
  (made,) = minibatches(
    order=np.arange(4),
    prompts=[[1, 2], [3]],
    prompt_of=np.asarray([0, 0, 1, 1]),
    completions=ANSWERS,
    tokens={},
    trained=np.asarray([1, 1, 1, 0]),
    parts=1,
    rows=2,
    row_length=12,
    longest=6,
    shards=1,
    reduction="token_mean",
    length_constant=None,
  )
  made.experience = jax.tree.map(jax.numpy.asarray, made.experience)
  return made


def test_it_begins_as_the_policy_with_nothing_to_say_and_learns_its_returns():
  one, rows = critic(), batch()
  state = one.fresh("")
  for path, leaf in trees.flatten(state.params["model"]).items():
    np.testing.assert_array_equal(leaf, trees.flatten(tiny.params(C))[path])
  returns = [np.full(len(ids), 2.0) for ids in ANSWERS]
  inside = np.asarray(rows.experience.rows.mask_BL) > 0
  losses = []
  for _ in range(8):
    x_MBL = np.asarray(one.values(state, rows.experience.rows, rows.count))
    assert not x_MBL[~inside].any() and x_MBL[inside].any() == bool(losses)
    said = rows.taken(x_MBL)
    values = [said[b] for b in range(4)]
    state, seen = one.update(state, rows, values, returns)
    assert seen.keys() == {"critic/loss", "critic/clip_fraction", "critic/grad_norm"}
    losses.append(float(seen["critic/loss"].value()))
  assert losses[0] == pytest.approx(2.0)  # half of 2 squared
  assert losses[-1] < 0.2 * losses[0]
  assert int(state.step) == 8


def test_how_much_it_explains_is_of_what_is_trained_on():
  values = [np.asarray([0.0, 1.0]), np.asarray([50.0])]
  returns = [np.asarray([0.0, 1.0]), np.asarray([0.0])]
  assert (
    explained(values, returns, np.asarray([1, 0]))["critic/explained_variance"] == 1
  )
  assert explained(values, returns, np.zeros(2))["critic/explained_variance"] == 0


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"critic.clip": -0.1}, r"config\.critic\.clip=-0.1"),
    ({"critic.optim.eps": 0.0}, r"config\.critic\.optim\.eps=0.0"),
    ({"critic.optim.frozen": ("hed/.*",)}, r"config\.critic\.optim\.frozen"),
  ],
)
def test_its_keys_are_named_as_the_config_has_them(changes, said):
  with pytest.raises(InputError, match=said):
    critic(**changes)
