"""Every optimizer setting changes what it says, and nothing else."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax import optim, trees
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.models.presets import PRESETS
from r1jax.optim import KINDS, grad_norm, make_optimizer, make_schedule
from r1jax.stages.trainable import matrices

MATRICES = {"embed": (0, 1), "layers/attn/q": (1, 1), "head": (0, 1)}


def params():
  rng = np.random.default_rng(0)
  shapes = {
    "embed": (7, 4),
    "layers/attn_norm": (2, 4),
    "layers/attn/q": (2, 4, 3),
    "final_norm": (4,),
    "head": (4, 7),
  }
  return trees.unflatten(
    {path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()}
  )


def grads(step):
  keys = np.random.default_rng(step)
  return jax.tree.map(lambda x: jnp.asarray(keys.normal(size=x.shape)), params())


def run(num_steps=3, **settings):
  """Parameters after some steps on fixed gradients, by path."""
  transform, _ = make_optimizer(MATRICES, **{"learning_rate": 1e-2} | settings)
  tree = params()
  state = transform.init(tree)
  update = jax.jit(transform.update)
  for step in range(num_steps):
    change, state = update(grads(step), state, tree)
    tree = optax.apply_updates(tree, change)
  return trees.flatten(tree)


@functools.cache
def plain():
  return run()


@pytest.mark.parametrize(
  "settings",
  [
    {"learning_rate": 2e-2},
    {"kind": "adafactor"},
    {"kind": "muon"},
    {"moment_dtype": "bfloat16"},
    {"schedule": "linear", "total_steps": 5},
    {"schedule": "cosine", "total_steps": 5},
    {"schedule": "linear", "total_steps": 9},
    {"schedule": "linear", "total_steps": 5, "final_fraction": 0.5},
    {"warmup_steps": 2},
    {"b1": 0.5},
    {"b2": 0.5},
    {"eps": 1e-1},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "no_decay": ("head",)},
    {"frozen": ("embed",)},
    {"grad_clip": 0.1},
    {"grad_clip": None},
  ],
  ids=str,
)
def test_each_setting_changes_something(settings):
  got = run(**settings)
  assert any(not np.array_equal(got[path], plain()[path]) for path in got)


def test_against_adamw_of_optax():
  """The chain is the published algorithm: same numbers as optax's own."""
  schedule = make_schedule(learning_rate=1e-2, warmup_steps=2)
  theirs = optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.1)
  tree = params()
  state = theirs.init(tree)
  for step in range(3):
    change, state = theirs.update(grads(step), state, tree)
    tree = optax.apply_updates(tree, change)
  got = run(warmup_steps=2, weight_decay=0.1, no_decay=(), grad_clip=None)
  for path, want in trees.flatten(tree).items():
    np.testing.assert_allclose(got[path], want, rtol=1e-6)


def reach(kind, **settings):
  """Losses of fitting a product of two matrices, the first of two layers."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  x, y = draw(32, 8), draw(32, 4)
  tree = {"layers": {"w": 0.3 * draw(2, 8, 8)}, "head": 0.3 * draw(8, 4)}
  transform, _ = make_optimizer(
    {"layers/w": (1, 1), "head": (0, 1)}, kind=kind, learning_rate=3e-2, **settings
  )

  def loss(tree):
    first, second = tree["layers"]["w"]
    return jnp.mean((jnp.tanh(jnp.tanh(x @ first) @ second) @ tree["head"] - y) ** 2)

  @jax.jit
  def step(tree, state):
    value, grads = jax.value_and_grad(loss)(tree)
    change, state = transform.update(grads, state, tree)
    return optax.apply_updates(tree, change), state, value

  state, losses = transform.init(tree), []
  for _ in range(40):
    tree, state, value = step(tree, state)
    losses.append(float(value))
  return losses


class TestKinds:
  @pytest.mark.parametrize("kind", KINDS)
  @pytest.mark.parametrize("moment_dtype", optim.MOMENT_DTYPES)
  def test_the_loss_falls(self, kind, moment_dtype):
    losses = reach(kind, moment_dtype=moment_dtype)
    assert losses[-1] < 0.6 * losses[0]

  def test_bytes_are_those_of_the_table(self):
    specs = parameters.param_specs(PRESETS["smollm2-135m"])
    abstract = parameters.abstract(specs, jnp.float32)
    pattern = r"(adamw|muon|adafactor)(, b1=0)? +(\S+) +(\S+)$"
    rows = re.findall(pattern, optim.__doc__, re.MULTILINE)
    assert len(rows) == 4
    for kind, no_momentum, *said in rows:
      for moment_dtype, per_parameter in zip(optim.MOMENT_DTYPES, said, strict=True):
        transform, _ = make_optimizer(
          matrices(specs),
          kind=kind,
          moment_dtype=moment_dtype,
          learning_rate=1.0,
          b1=0.0 if no_momentum else 0.9,
        )
        held = trees.num_bytes(jax.eval_shape(transform.init, abstract))
        assert f"{held / trees.count(abstract):.2f}" == per_parameter

  @pytest.mark.parametrize("kind", ["adafactor", "muon"])
  def test_each_layer_steps_as_if_it_were_alone(self, kind):
    tree, step = {"w": jnp.zeros((3, 4, 6))}, jnp.asarray
    grads = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)

    def change(tree, stacked, pick):
      transform, _ = make_optimizer(
        {"w": stacked}, kind=kind, learning_rate=1.0, grad_clip=None
      )
      state = transform.init(tree)
      for grad in grads:
        got, state = transform.update({"w": step(pick(grad))}, state, tree)
      return got["w"]

    both = change(tree, (1, 1), lambda grad: grad)
    for layer in range(3):
      one = {"w": tree["w"][layer : layer + 1]}
      alone = change(one, (1, 1), lambda grad, at=layer: grad[at : at + 1])
      np.testing.assert_allclose(both[layer], alone[0], rtol=2e-4, atol=1e-5)

  def test_muon_turns_all_directions_into_equal_ones(self):
    """Singular values near 0.2 times the root of the longer side, heads joined."""
    rng = np.random.default_rng(0)
    steep = rng.normal(size=(2, 6, 2, 5)) * np.geomspace(1, 100, 6)[:, None, None]
    transform, _ = make_optimizer(
      {"w": (1, 1)}, kind="muon", learning_rate=1.0, grad_clip=None
    )
    tree = {"w": jnp.zeros((2, 6, 2, 5))}
    grads = {"w": jnp.asarray(steep, jnp.float32)}
    got, _ = transform.update(grads, transform.init(tree), tree)
    for layer in np.asarray(got["w"]).reshape(2, 6, 10):
      sizes = np.linalg.svd(layer, compute_uv=False) / (0.2 * 10**0.5)
      assert sizes.min() > 0.5 and sizes.max() < 1.5

  def test_factored_moments_are_those_of_optax_for_one_matrix(self):
    ours = optim.scale_by_factored_rms({"w": (0, 1)}, b2=0.99, eps=1e-15)
    theirs = optax.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=1e-30)
    tree = {"w": jnp.zeros((4, 6))}
    states = [ours.init(tree), theirs.init(tree)]
    for step in range(3):
      drawn = np.random.default_rng(step).normal(size=(4, 6))
      grads = {"w": jnp.asarray(drawn, jnp.float32)}
      (got, states[0]), (want, states[1]) = (
        transform.update(grads, state, tree)
        for transform, state in zip((ours, theirs), states, strict=True)
      )
      np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5)

  def test_a_second_moment_in_bfloat16_could_not_fall(self):
    """Why it is float32 whatever `moment_dtype` says."""
    numbers = jnp.geomspace(1e-20, 1.0, 1000, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(
      (0.999 * numbers.astype(float)).astype("bfloat16"), numbers
    )
    transform, _ = make_optimizer(learning_rate=1.0, moment_dtype="bfloat16")
    state = jax.eval_shape(transform.init, params())
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(set(map(str, dtypes))) == ["bfloat16", "float32"]
    assert dtypes.count(jnp.bfloat16) == dtypes.count(jnp.float32)

  @pytest.mark.parametrize("kind", KINDS)
  def test_frozen_and_decay_go_with_each(self, kind):
    start = trees.flatten(params())
    got = run(kind=kind, frozen=("embed", "layers/.*"), weight_decay=0.1)
    moved = {path for path in got if not np.array_equal(got[path], start[path])}
    assert moved == {"head", "final_norm"}
    without = run(kind=kind, frozen=("embed", "layers/.*"))
    differ = {path for path in got if not np.array_equal(got[path], without[path])}
    assert differ == {"head"}

  def test_offloading_needs_a_memory_to_go_to(self, monkeypatch):
    monkeypatch.setattr(optim, "HOST_MEMORY", "attic")
    with pytest.raises(InputError, match=r"optim\.offload=True: .* no memory 'attic'"):
      make_optimizer(learning_rate=1.0, offload=True)


class TestDecay:
  def decayed(self, **settings):
    got = run(weight_decay=0.1, **settings)
    return {path for path in got if not np.array_equal(got[path], plain()[path])}

  def test_norm_scales_are_left_alone_by_default(self):
    assert self.decayed() == {"embed", "layers/attn/q", "head"}

  def test_patterns(self):
    assert self.decayed(no_decay=()) == set(plain())
    assert self.decayed(no_decay=("layers/.*", "embed")) == {"final_norm", "head"}

  def test_with_frozen(self):
    got = run(weight_decay=0.1, frozen=("head", "final_norm"))
    np.testing.assert_array_equal(got["head"], trees.flatten(params())["head"])
    assert not np.array_equal(got["embed"], plain()["embed"])

  def test_pattern_without_a_match(self):
    with pytest.raises(InputError, match=r"no_decay: 'bias'"):
      run(weight_decay=0.1, no_decay=("bias",))


class TestFrozen:
  frozen = ("embed", "layers/attn/.*")

  def test_stay_bit_equal_and_the_rest_moves(self):
    got, start = run(frozen=self.frozen), trees.flatten(params())
    still = {path for path in got if np.array_equal(got[path], start[path])}
    assert still == {"embed", "layers/attn/q"}

  def test_have_no_optimizer_state(self):
    def state_size(**settings):
      transform, _ = make_optimizer(learning_rate=1.0, **settings)
      return trees.count(jax.eval_shape(transform.init, params()))

    frozen_size = 7 * 4 + 2 * 4 * 3
    assert state_size() - state_size(frozen=self.frozen) == 2 * frozen_size

  def test_do_not_count_into_the_clipped_norm(self):
    """A huge gradient of a frozen parameter changes nothing."""
    transform, _ = make_optimizer(
      learning_rate=1e-2, frozen=self.frozen, grad_clip=0.1, eps=1.0
    )
    tree = params()
    small = grads(0)
    large = small | {"embed": small["embed"] * 1e6}
    changes = [
      transform.update(g, transform.init(tree), tree)[0] for g in (small, large)
    ]
    jax.tree.map(np.testing.assert_array_equal, *changes)
    norms = [grad_norm(g, frozen=self.frozen) for g in (small, large)]
    assert float(norms[0]) == float(norms[1])

  def test_pattern_without_a_match(self):
    with pytest.raises(InputError, match=r"config\.optim\.frozen: 'embd'"):
      run(frozen=("embd",))


def test_clip_limits_the_norm_that_is_passed_on():
  """With eps far above the gradient Adam is linear, so the step shows the clip."""
  tree = params()
  for clip in (1e-3, 1e9):
    transform, _ = make_optimizer(
      learning_rate=1.0, b1=0.0, b2=0.0, eps=1e6, grad_clip=clip
    )
    change, _ = transform.update(grads(0), transform.init(tree), tree)
    norm = float(grad_norm(grads(0)))
    want = min(clip, norm)
    assert float(optax.tree.norm(change)) * 1e6 == pytest.approx(want, rel=1e-4)


def test_grad_norm():
  tree = {"a": jnp.array([3.0]), "b": {"c": jnp.array([4.0])}}
  assert float(grad_norm(tree)) == pytest.approx(5.0)
  assert float(grad_norm(tree, frozen=("b/c",))) == pytest.approx(3.0)


class TestSchedule:
  def rates(self, steps, **settings):
    rate = make_schedule(learning_rate=2.0, **settings)
    return [float(rate(step)) for step in steps]

  def test_constant(self):
    assert self.rates([0, 7, 10**6]) == [2.0, 2.0, 2.0]

  def test_warmup_starts_above_zero_and_ends_at_the_peak(self):
    got = self.rates(range(6), warmup_steps=4)
    np.testing.assert_allclose(got, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])

  def test_linear(self):
    got = self.rates(
      [0, 2, 7, 12, 99], schedule="linear", warmup_steps=2, total_steps=12
    )
    np.testing.assert_allclose(got, [1.0, 2.0, 1.0, 0.0, 0.0], atol=1e-6)

  def test_cosine_to_a_tenth(self):
    got = self.rates([0, 5, 10], schedule="cosine", total_steps=10, final_fraction=0.1)
    np.testing.assert_allclose(got, [2.0, 1.1, 0.2], rtol=1e-6)

  def test_follows_the_count_in_the_optimizer_state(self):
    transform, rate = make_optimizer(
      learning_rate=1.0, schedule="linear", total_steps=4, b1=0.0, b2=0.0
    )
    tree = {"w": jnp.zeros(1)}
    state = transform.init(tree)
    for step in range(4):
      change, state = transform.update({"w": jnp.ones(1)}, state, tree)
      np.testing.assert_allclose(-change["w"][0], rate(step), rtol=1e-6)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"schedule": "cosin"}, r"schedule='cosin'.*did you mean 'cosine'"),
    ({"schedule": "cosine"}, r"total_steps=None.*more than warmup_steps=0"),
    ({"schedule": "linear", "total_steps": 5, "warmup_steps": 5}, r"total_steps=5"),
    ({"kind": "muon2"}, r"kind='muon2'.*did you mean 'muon'"),
    ({"moment_dtype": "float16"}, r"moment_dtype='float16'"),
    ({"learning_rate": -1.0}, r"learning_rate=-1\.0"),
    ({"warmup_steps": -1}, r"warmup_steps=-1"),
    ({"final_fraction": 1.5}, r"final_fraction=1\.5"),
    ({"b1": 1.0}, r"b1=1\.0"),
    ({"b2": -0.1}, r"b2=-0\.1"),
    ({"eps": 0.0}, r"eps=0\.0"),
    ({"weight_decay": -0.1}, r"weight_decay=-0\.1"),
    ({"grad_clip": 0.0}, r"grad_clip=0\.0: must be above 0 or None"),
  ],
  ids=str,
)
def test_settings_out_of_range_name_their_key(settings, message):
  with pytest.raises(InputError, match=message):
    make_optimizer(**{"learning_rate": 1e-3} | settings)
