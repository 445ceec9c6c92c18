"""The decoder: what a token may see, the cache, parameters, and refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import trees
from r1jax.errors import InputError
from r1jax.models import cache as caches
from r1jax.models import parameters, transformer
from r1jax.models.config import ModelConfig
from r1jax.models.presets import PRESETS
from tests import tiny

GQA = tiny.config()
MHA = tiny.config(kv_heads=4)
FREE = tiny.config(tied_head=False)
FAMILY = pytest.mark.parametrize("c", tiny.FAMILY.values(), ids=tiny.FAMILY)


@functools.cache
def compiled(c: ModelConfig, **settings):
  """(params, tokens, positions, segments) -> logits [B, L, V]."""

  @jax.jit
  def logits(params, tokens_BL, positions_BL, segments_BL=None):
    hidden_BLD, cache, _ = transformer.forward(
      c, params, tokens_BL, positions_BL, segments_BL=segments_BL, **settings
    )
    assert cache is None
    return transformer.unembed(params, hidden_BLD)

  return logits


def logits_of(c, rows, params=None):
  params = tiny.params(c) if params is None else params
  return np.asarray(
    compiled(c)(params, rows.tokens_BL, rows.positions_BL, rows.segments_BL)
  )


def sequences(*lengths, seed=0, vocab=GQA.vocab):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, vocab, length) for length in lengths]


@pytest.mark.parametrize("c", [GQA, MHA], ids=["gqa", "mha"])
def test_causal_and_all_of_the_past_counts(c):
  """Gradient of the state at t with respect to the embedding at i: 0 iff i > t."""
  length = 6
  tokens = np.arange(1, 1 + length)[None]  # distinct: one embedding row a position
  positions = np.arange(length)[None]
  direction_D = np.random.default_rng(0).normal(size=c.width).astype(np.float32)

  def projected_L(embed_VD):
    params = {**tiny.params(c), "embed": embed_VD}
    return transformer.forward(c, params, tokens, positions)[0][0] @ direction_D

  jacobian_LVD = jax.jit(jax.jacrev(projected_L))(tiny.params(c)["embed"])
  felt_LL = np.abs(jacobian_LVD).sum(-1)[:, 1 : 1 + length]
  np.testing.assert_array_equal(felt_LL > 0, np.tril(np.ones((length, length), bool)))


def test_grouped_heads_are_heads_that_share_keys_and_values():
  """GQA with K heads == MHA whose keys and values are repeated N / K times."""
  params = tiny.params(GQA)
  attn = params["layers"]["attn"]
  repeated = {name: np.repeat(attn[name], 2, axis=2) for name in ("k", "v")}
  wide = {**params, "layers": {**params["layers"], "attn": {**attn, **repeated}}}
  rows = tiny.plain_rows(sequences(9, 9))
  np.testing.assert_allclose(
    logits_of(GQA, rows), logits_of(MHA, rows, wide), atol=2e-5
  )


def test_tied_head_is_the_embedding_transposed():
  assert "head" not in tiny.params(GQA)
  rows = tiny.plain_rows(sequences(9))
  untied = {**tiny.params(GQA), "head": tiny.params(GQA)["embed"].T}
  np.testing.assert_allclose(
    logits_of(FREE, rows, untied), logits_of(GQA, rows), atol=1e-5
  )
  other = {**untied, "head": 2 * untied["head"]}
  np.testing.assert_allclose(
    logits_of(FREE, rows, other), 2 * logits_of(GQA, rows), atol=1e-5
  )


@functools.cache
def cached(c: ModelConfig, window: int | None = None):
  @jax.jit
  def feed(params, tokens_SL, positions_SL, cache):
    hidden_SLD, cache, _ = transformer.forward(
      c, params, tokens_SL, positions_SL, cache=cache, window=window
    )
    return transformer.unembed(params, hidden_SLD), cache

  return feed


@FAMILY
@pytest.mark.parametrize("are_fused", [False, True])
def test_one_token_at_a_time_is_one_forward(c, are_fused):
  """Stacked parameters, and those of a sampler: some matrices are one."""
  rows = tiny.plain_rows(sequences(9, 9, 9))
  want = logits_of(c, rows)
  cache = caches.empty(c, 3, 9)
  params = tiny.params(c)
  if are_fused:
    params = parameters.fused(parameters.unstacked(params))
  for place in range(9):
    here = slice(place, place + 1)
    got, cache = cached(c)(
      params, rows.tokens_BL[:, here], rows.positions_BL[:, here], cache
    )
    np.testing.assert_allclose(got[:, 0], want[:, place], atol=2e-5)
  np.testing.assert_array_equal(cache.length_S, [9, 9, 9])


@FAMILY
def test_slots_of_different_lengths_and_a_window_over_the_live_ones(c):
  """R4: each slot writes at its own place; a window over them all changes nothing."""
  ids = sequences(5, 8, 6)
  rows = tiny.plain_rows(ids)
  want = logits_of(c, rows)
  start = np.asarray([1, 4, 2])
  cache = caches.empty(c, 3, 16, windows=(5, 8, 16))
  _, cache = cached(c)(
    tiny.params(c), rows.tokens_BL[:, :4], rows.positions_BL[:, :4], cache
  )
  # Slots that hold less than was fed: what lies beyond their length is garbage.
  length_S = jnp.asarray(start, jnp.int32)
  cache = cache.replace(length_S=length_S, column=length_S)
  for step in range(4):
    place = start + step
    got, cache = cached(c, window=8)(
      tiny.params(c),
      np.take_along_axis(rows.tokens_BL, place[:, None], 1),
      place[:, None].astype(np.int32),
      cache,
    )
    np.testing.assert_allclose(got[:, 0], want[np.arange(3), place], atol=2e-5)


@FAMILY
def test_shared_prompts_and_own_parts_are_one_forward(c):
  """R4: prompts of length 1 (nothing prefilled) to 6, two slots a prompt, then own
  tokens; each slot must see what one full forward of its sequence sees."""
  prompts, own = sequences(1, 6, 3), sequences(4, 4, 4, 4, 4, 4, seed=1)
  padded = tiny.prompts(prompts, pad=7)
  start = caches.empty(c, 3, 6)
  positions = np.broadcast_to(np.arange(6), (3, 6))
  _, prefilled = cached(c)(tiny.params(c), padded.tokens_QP, positions, start)
  index = np.asarray([0, 0, 1, 1, 2, 2])
  cache = caches.empty(c, 6, 5).replace(
    prompt=caches.PromptCache(
      keys=tuple(keys[0] for keys in prefilled.keys),
      values=tuple(values[0] if values else None for values in prefilled.values),
      length_Q=jnp.asarray(padded.length_Q - 1),
      row_S=jnp.arange(6),
      samples=2,
    )
  )
  whole = [np.concatenate([prompts[q], own[s]]) for s, q in enumerate(index)]
  want = logits_of(c, tiny.plain_rows(whole))
  fed = np.asarray([[prompts[q][-1], *own[s]] for s, q in enumerate(index)])
  for step in range(5):
    place = padded.length_Q[index] - 1 + step
    got, cache = cached(c)(
      tiny.params(c), fed[:, step : step + 1], place[:, None].astype(np.int32), cache
    )
    np.testing.assert_allclose(got[:, 0], want[np.arange(6), place], atol=5e-5)


def test_padding_and_batch_mates_change_nothing():
  """R4: the same sequence alone, behind other rows, and with garbage as padding."""
  one, two = sequences(5, 9)
  rows = tiny.plain_rows([one, two], length=9)
  want = logits_of(GQA, rows)
  for pad in (7, 32):
    tokens = np.where(rows.segments_BL > 0, rows.tokens_BL, pad)
    got = logits_of(GQA, dataclasses.replace(rows, tokens_BL=tokens))
    np.testing.assert_array_equal(got[0, :5], want[0, :5])
  alone = logits_of(GQA, tiny.plain_rows([one, one], length=9))
  np.testing.assert_allclose(alone[1, :5], want[0, :5], atol=2e-5)


@FAMILY
def test_segments_isolate_packed_sequences(c):
  """R4: packed in one row with restarted positions == each in a row of its own."""
  one, two, three = sequences(3, 5, 1)
  apart = logits_of(c, tiny.plain_rows([one, two, three], length=9))
  tokens = np.concatenate([one, two, three])[None]
  positions = np.concatenate([np.arange(3), np.arange(5), np.arange(1)])[None]
  segments = np.asarray([[1] * 3 + [2] * 5 + [3]])
  packed = compiled(c)(tiny.params(c), tokens, positions, segments)
  want = np.concatenate([apart[0, :3], apart[1, :5], apart[2, :1]])
  np.testing.assert_allclose(packed[0], want, atol=2e-5)
  leaking = compiled(c)(tiny.params(c), tokens, positions, np.ones_like(segments))
  assert np.abs(leaking[0, 3:] - want[3:]).max() > 0.01


def test_positions_are_relative():
  """RoPE: a sequence whose positions start at 100 is the same sequence."""
  rows = tiny.plain_rows(sequences(9, 9))
  moved = dataclasses.replace(rows, positions_BL=rows.positions_BL + 100)
  np.testing.assert_allclose(logits_of(GQA, moved), logits_of(GQA, rows), atol=2e-4)
  stretched = dataclasses.replace(rows, positions_BL=rows.positions_BL * 2)
  assert np.abs(logits_of(GQA, stretched) - logits_of(GQA, rows)).max() > 0.01


def test_remat_policies_give_equal_gradients_and_keep_less():
  c = tiny.config(depth=6)
  rows = tiny.plain_rows(sequences(32, 32))

  def compile_gradient(remat):
    def loss(params):
      logits = compiled(c, remat=remat)(params, rows.tokens_BL, rows.positions_BL)
      return jax.nn.logsumexp(logits, -1).sum()

    return jax.jit(jax.grad(loss)).lower(tiny.params(c)).compile()

  programs = {remat: compile_gradient(remat) for remat in ("none", "dots", "full")}
  grads = [program(tiny.params(c)) for program in programs.values()]
  for other in grads[1:]:
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
      other,
      grads[0],
    )
  kept = [p.memory_analysis().temp_size_in_bytes for p in programs.values()]
  assert kept[0] > kept[1] > kept[2], kept


def test_unknown_remat_names_the_nearest():
  rows = tiny.plain_rows(sequences(9, 9))
  with pytest.raises(InputError, match=r"config\.training\.remat='dot'.*'dots'"):
    compiled(GQA, remat="dot")(tiny.params(GQA), rows.tokens_BL, rows.positions_BL)


def test_published_sizes_without_allocating():
  """The published parameter count of SmolLM2-135M."""
  abstract = parameters.abstract_params(PRESETS["smollm2-135m"], jnp.bfloat16)
  assert trees.count(abstract) == 134_515_008
  assert trees.num_bytes(abstract) == 2 * 134_515_008
  free = dataclasses.replace(PRESETS["smollm2-135m"], tied_head=False)
  added = trees.count(parameters.abstract_params(free, jnp.float32)) - 134_515_008
  assert added == 49152 * 576


def test_specs_name_every_axis_and_init_follows_them():
  """Truncated normals by fan-in, one key a path: a new leaf changes no other."""
  c = tiny.config(width=64, tied_head=False)
  init = jax.jit(parameters.init, static_argnums=0)
  key = jax.random.key(3, impl="unsafe_rbg")  # compiles faster
  params = trees.flatten(init(c, key))
  specs = trees.flatten(parameters.param_specs(c))
  assert params.keys() == specs.keys()
  for path, spec in specs.items():
    assert params[path].shape == spec.shape and len(spec.axes) == len(spec.shape)
    if spec.fan_in:
      deviation = float(params[path].std()) * spec.fan_in**0.5
      assert 0.9 < deviation < 1.1, path
    else:
      assert np.all(params[path] == spec.fill)
  tied = trees.flatten(init(dataclasses.replace(c, tied_head=True), key))
  np.testing.assert_array_equal(
    tied["layers/attn/q"], params["layers/attn/q"], strict=True
  )
  assert not np.array_equal(params["layers/mlp/gate"], params["layers/mlp/up"])


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"kv_heads": 3}, "model.kv_heads=3 must divide model.heads=4"),
    ({"head_dim": 7}, "model.head_dim=7 must be even"),
    ({"depth": 0}, "model.depth=0 must be a positive integer"),
    ({"vocab": 3.5}, "model.vocab=3.5 must be a positive integer"),
  ],
)
def test_impossible_shapes_are_refused(changes, said):
  with pytest.raises(InputError, match=said):
    tiny.config(**changes)


def test_the_module_further_on_is_a_layer_over_embedding_and_state():
  """A decoder of that one layer, whose embeddings are the projected pairs."""
  c, length = tiny.FAMILY["deepseek_v3"], 9
  params = tiny.params(c)
  rows = tiny.plain_rows(sequences(length))

  @jax.jit
  def run(params, tokens, positions):
    hidden_BLD, _, _ = transformer.forward(c, params, tokens, positions)
    return hidden_BLD, transformer.predict_further(
      c, params, hidden_BLD, tokens, positions
    )[0]

  hidden_BLD, got_BLD = run(params, rows.tokens_BL, rows.positions_BL)
  module = jax.tree.map(lambda leaf: leaf[0], params["mtp"])

  def normed(x_LD, scale):
    return x_LD / np.sqrt((x_LD**2).mean(-1, keepdims=True) + c.norm_eps) * scale

  embedded_LD = np.asarray(params["embed"])[np.roll(rows.tokens_BL[0], -1)]
  pairs = [
    normed(embedded_LD, module["embed_norm"]),
    normed(np.asarray(hidden_BLD[0]), module["hidden_norm"]),
  ]
  own = ("attn_norm", "attn", "mlp_norm", "moe")
  one_layer = {
    "embed": np.concatenate(pairs, -1) @ module["proj"],
    "layers": {name: params["mtp"][name] for name in own},
    "final_norm": module["norm"],
  }
  alone = dataclasses.replace(
    c,
    depth=1,
    vocab=length,
    mtp_depth=0,
    experts=dataclasses.replace(c.experts, first_dense=0),
  )
  want_BLD = jax.jit(functools.partial(transformer.forward, alone))(
    one_layer, np.arange(length)[None], rows.positions_BL
  )[0]
  np.testing.assert_allclose(got_BLD, want_BLD, atol=5e-5)
