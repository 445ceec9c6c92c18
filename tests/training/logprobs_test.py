"""Chunked scores against full logits, against the sampler, and in memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import prng
from r1jax.data import packing
from r1jax.models import parameters, transformer
from r1jax.sampling import logits
from r1jax.training import logprobs
from r1jax.types import TokenRows
from tests import tiny

C = tiny.config()


def packed_rows(seed=0, row_length=11, c=C):
  """Two rows of several sequences each, prompts of several lengths."""
  rng = np.random.default_rng(seed)
  lengths = [7, 3, 1, 5, 4]
  sequences = [rng.integers(0, c.vocab, n) for n in lengths]
  return packing.pack(sequences, [2, 1, 0, 3, 0], row_length=row_length).rows


def plain_scores(params, rows, temperature):
  """(log-probs, entropies) from logits of the whole batch at once."""
  hidden_BLD, _, _ = transformer.forward(
    C, params, rows.tokens_BL, rows.positions_BL, segments_BL=rows.segments_BL
  )
  logits_BLV = transformer.unembed(params, hidden_BLD) / temperature
  logp_BLV = jax.nn.log_softmax(logits_BLV[:, :-1])
  next_BL1 = jnp.asarray(rows.tokens_BL)[:, 1:, None]
  logp_BL = jnp.take_along_axis(logp_BLV, next_BL1, -1)[..., 0]
  entropy_BL = -(jnp.exp(logp_BLV) * logp_BLV).sum(-1)
  inside_BL = rows.mask_BL[:, 1:] > 0
  pad = ((0, 0), (1, 0))
  return tuple(
    jnp.pad(jnp.where(inside_BL, x, 0.0), pad) for x in (logp_BL, entropy_BL)
  )


TEMPERATURE = 0.7
WEIGHTS = np.random.default_rng(3).normal(size=(2, 11)).astype(np.float32)


@functools.cache
def compiled(chunk):
  """params, rows -> ((loss, scores), gradient); chunk None is the plain form."""

  def loss(params, rows):
    if chunk is None:
      logp_BL, entropy_BL = plain_scores(params, rows, TEMPERATURE)
      scores = logprobs.TokenScores(logp_BL, entropy_BL, logp_BL)
    else:
      scores = logprobs.token_logprobs(
        C, params, rows, temperature=TEMPERATURE, chunk=chunk
      )
    return (WEIGHTS * scores.logp_BL).sum(), scores

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("chunk", [8, 1], ids=["remainder", "a_column"])
def test_against_full_logits(chunk):
  """Values, entropy and gradient; 11 columns make 4 + 4 + 3 where chunks hold 8."""
  rows = packed_rows()
  assert rows.tokens_BL.shape == WEIGHTS.shape
  params = tiny.params(C)
  (loss, scores), gradient = compiled(chunk)(params, rows)
  (want_loss, want), want_gradient = compiled(None)(params, rows)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
  np.testing.assert_allclose(scores.logp_BL, want.logp_BL, atol=1e-5)
  np.testing.assert_allclose(scores.entropy_BL, want.entropy_BL, atol=1e-5)
  np.testing.assert_array_equal(scores.shaped_logp_BL, scores.logp_BL)
  outside = np.asarray(rows.mask_BL) == 0
  for leaf in (scores.logp_BL, scores.entropy_BL, scores.shaped_logp_BL):
    assert leaf.dtype == jnp.float32
    assert not np.asarray(leaf)[outside].any()
    assert np.asarray(leaf)[~outside].all()
  tiny.assert_same_sums(gradient, want_gradient, tolerance=1e-6)


def test_the_entropys_gradient_where_it_is_asked_for():
  """Beside the log-probs', against full logits and by finite differences."""
  rows, params = packed_rows(), tiny.params(C)

  def total(logp_BL, entropy_BL):
    return (WEIGHTS * logp_BL + WEIGHTS[::-1] * entropy_BL).sum()

  @jax.jit
  def ours(params):
    scores = logprobs.token_logprobs(
      C, params, rows, temperature=TEMPERATURE, chunk=8, entropy_gradient=True
    )
    return total(scores.logp_BL, scores.entropy_BL)

  def plain(params):
    return total(*plain_scores(params, rows, TEMPERATURE))

  gradient = jax.jit(jax.grad(ours))(params)
  tiny.assert_same_sums(gradient, jax.jit(jax.grad(plain))(params), tolerance=1e-5)
  # Along the gradient itself, where the change is the largest.
  norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
  step = 1e-2 / norm

  def moved(size):
    return ours(jax.tree.map(lambda p, g: p + size * g / norm, params, gradient))

  change = (moved(step) - moved(-step)) / (2 * step)
  np.testing.assert_allclose(change, norm, rtol=5e-3)


def test_entropy_and_shaped_scores_have_no_gradient():
  def off_policy(params):
    scores = logprobs.token_logprobs(
      C, params, packed_rows(), shape_logits=functools.partial(shape, top_p=0.9)
    )
    inside = scores.shaped_logp_BL > -1e9
    return scores.entropy_BL.sum() + jnp.where(inside, scores.shaped_logp_BL, 0).sum()

  for leaf in jax.tree.leaves(jax.jit(jax.grad(off_policy))(tiny.params(C))):
    assert not np.asarray(leaf).any()


def shape(logits_CV, **settings):
  controls = logits.controls(logits_CV.shape[0], max_tokens=1, **settings)
  return logits.log_distribution(logits_CV, controls)


SAMPLING = {"temperature": 0.8, "top_p": 0.85}


@pytest.mark.parametrize("shared", [False, True], ids=["repeated", "shared"])
def test_rollout_scores_equal_the_samplers(shared):
  """R1, R4: teacher-forced log-probs of a rollout, at temperature 0.8 and top-p 0.85,
  are the sampler's own within 1e-4, with a prompt before each answer and one before
  several; so the truncated mass is not ignored, and the untruncated log-prob is
  smaller."""
  rollout = tiny.generator(C, **tiny.REFILL)(
    tiny.params(C),
    tiny.prompts(tiny.PROMPTS),
    logits.controls(12, max_tokens=70, **SAMPLING),
    prng.at(prng.root(0), "rollout", 1),
  )
  rows = range(12)
  lengths = np.asarray(rollout.length_B)
  logp = [np.asarray(rollout.logp_BT)[b, : lengths[b]] for b in rows]
  prompts = [tiny.PROMPTS[b // 3] for b in rows]
  completions = [np.asarray(rollout.tokens_BT)[b, : lengths[b]] for b in rows]
  whole = [[*p, *t] for p, t in zip(prompts, completions, strict=True)]
  skip = [len(p) for p in prompts]
  groups = [
    packing.Group([3 * q, 3 * q + 1, 3 * q + 2], len(ids))
    for q, ids in enumerate(tiny.PROMPTS)
  ]
  pack = packing.pack(
    whole, skip, row_length=150, groups=groups if shared else None, num_rows=8
  )
  score = jax.jit(
    functools.partial(
      logprobs.token_logprobs,
      C,
      temperature=SAMPLING["temperature"],
      shape_logits=functools.partial(shape, **SAMPLING),
      chunk=100,
    )
  )
  scores = score(tiny.params(C), pack.rows)
  want_BL = pack.spread(logp, skip=skip)
  np.testing.assert_array_equal(pack.rows.mask_BL.sum(), lengths.sum())
  np.testing.assert_allclose(scores.shaped_logp_BL, want_BL, atol=1e-4)
  assert (np.asarray(scores.logp_BL) <= want_BL + 1e-4).all()
  assert np.abs(scores.logp_BL - want_BL).max() > 0.1


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3"])
def test_a_shared_prompt_is_a_prompt_before_each_answer(name):
  """R4, R5: in log-probs, entropies, loss and gradient, also of the balance of experts
  and where experts are replayed; nothing in common, one token and more, and a group in
  several rows."""
  c = tiny.FAMILY[name]
  rng = np.random.default_rng(0)
  groups, sequences, first = [], [], []
  for prompt_length, lengths in ((5, (6, 4, 3, 6)), (1, (5, 2)), (3, (1, 2))):
    prompt = rng.integers(0, c.vocab, prompt_length)
    numbers = len(sequences) + np.arange(len(lengths))
    groups.append(packing.Group(numbers, prompt_length))
    for n in lengths:
      sequences.append([*prompt, *rng.integers(0, c.vocab, n)])
      first.append(prompt_length)
  values = [rng.normal(size=len(s)).astype(np.float32) for s in sequences]
  alone = [packing.Group([i], 0) for i in range(len(sequences))]
  together, apart = (
    packing.pack(sequences, first, row_length=19, groups=some, num_rows=5)
    for some in (groups, alone)
  )
  num_rows = [len({together.row_of[i] for i in group.members}) for group in groups]
  assert num_rows == [2, 2, 1]
  sizes = [(pack.rows.segments_BL > 0).sum() for pack in (together, apart)]
  assert sizes[0] == sizes[1] - 4 * (4 - 2) - 2 * (2 - 1)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params, rows, weight_BL):
    scores = logprobs.token_logprobs(
      c, params, rows, temperature=0.9, chunk=16, balance=c.experts is not None
    )
    total = (weight_BL * scores.logp_BL).sum()
    if c.experts is not None:
      total += (jnp.abs(weight_BL) * rows.mask_BL * scores.routed.balance_BL).sum()
    return total, (scores.logp_BL, scores.entropy_BL)

  found = []
  for pack in (together, apart):
    rows = pack.rows
    if name == "qwen3_moe":
      # As a prompt goes one way whoever continues it.
      went = [chosen(c, sequence) for sequence in sequences]
      experts_BLZK = pack.spread(went, skip=[0] * len(went), fill=-1)
      rows = rows.replace(experts_BLZK=experts_BLZK)
    (total, by_token), gradient = run(
      tiny.params(c), rows, pack.spread(values, skip=[0] * len(values))
    )
    own = [
      np.asarray(x_BL)[row, columns]
      for x_BL in by_token
      for row, columns in zip(pack.row_of, pack.columns, strict=True)
    ]
    found.append((total, own, gradient))
  tiny.assert_same_sums(*found, tolerance=1e-5)


def chosen(c, sequence):
  """Some experts [tokens, Z, K] that depend on the token."""
  each = [
    np.random.default_rng(int(token)).permutation(c.experts.count) for token in sequence
  ]
  went = np.stack(each)[:, None, : c.experts.per_token]
  return np.repeat(went, c.depth, axis=1).astype(np.int32)


def test_any_packing_gives_the_same_scores():
  """R4: other rows, other mates, prompts shared or not, other lengths of a row."""
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, C.vocab, n) for n in (4, 2, 6)]
  sequences = [[*p, *rng.integers(0, C.vocab, n)] for p in prompts for n in (1, 5, 3)]
  first = [len(prompt) for prompt in prompts for _ in range(3)]
  score = jax.jit(functools.partial(logprobs.token_logprobs, C, chunk=12))
  want = None
  for row_length in (11, 16, 70):
    for members in (1, 2, 3):
      groups = [
        packing.Group(range(i, min(i + members, 3 * q + 3)), len(prompts[q]))
        for q in range(3)
        for i in range(3 * q, 3 * q + 3, members)
      ]
      pack = packing.pack(
        sequences, first, row_length=row_length, groups=groups, num_rows=9
      )
      logp_BL = np.asarray(score(tiny.params(C), pack.rows).logp_BL)
      placed = zip(pack.row_of, pack.columns, strict=True)
      got = np.concatenate([logp_BL[row, columns] for row, columns in placed])
      want = got if want is None else want
      np.testing.assert_allclose(got, want, atol=2e-5)
  assert (want != 0).sum() == 27


def test_only_masked_tokens_go_through_the_vocabulary():
  """As many chunks as the row with most of them needs, in one program."""
  calls = []

  def counted(logits_CV):
    jax.debug.callback(lambda: calls.append(len(logits_CV)))
    return jax.nn.log_softmax(logits_CV)

  @jax.jit
  @jax.grad
  def run(params, rows):
    scores = logprobs.token_logprobs(
      C, params, rows, shape_logits=counted, chunk=2 * len(rows.tokens_BL)
    )
    return scores.logp_BL.sum()

  rows = tiny.plain_rows([range(30), range(12)])
  for first, want in ((25, 3), (29, 1), (1, 15), (30, 0)):
    calls.clear()
    mask_BL = rows.mask_BL * (np.arange(30) >= first)
    jax.block_until_ready(run(tiny.params(C), rows.replace(mask_BL=mask_BL)))
    jax.effects_barrier()
    assert calls == [4] * want
  assert run._cache_size() == 1


def test_the_heads_gradient_is_added_up_in_float32():
  """Of 128 tokens one at a time as all at once, but for one rounding to bfloat16."""
  c = tiny.config(depth=1, tied_head=False)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params(c))
  rows = tiny.plain_rows([np.random.default_rng(0).integers(0, c.vocab, 129)])

  def head_gradient(chunk):
    def total(head):
      scores = logprobs.token_logprobs(c, {**params, "head": head}, rows, chunk=chunk)
      assert scores.logp_BL.dtype == jnp.float32
      return scores.logp_BL.sum()

    return jax.jit(jax.grad(total))(params["head"])

  one, whole = head_gradient(1), head_gradient(129)
  assert one.dtype == jnp.bfloat16
  one, whole = np.asarray(one, np.float32), np.asarray(whole, np.float32)
  np.testing.assert_allclose(one, whole, rtol=2**-7, atol=1e-4)


def test_temperature_is_traced():
  """R20: one program for any temperature; it divides the logits."""

  @jax.jit
  def score(params, rows, temperature):
    return logprobs.token_logprobs(C, params, rows, temperature=temperature)

  rows, params = packed_rows(), tiny.params(C)
  cold, hot = (score(params, rows, np.float32(t)) for t in (0.5, 50.0))
  assert score._cache_size() == 1
  inside = np.asarray(rows.mask_BL) > 0
  assert (np.asarray(cold.entropy_BL)[inside] < np.log(C.vocab) - 0.1).all()
  np.testing.assert_allclose(hot.entropy_BL[inside], np.log(C.vocab), atol=0.01)


@pytest.mark.parametrize("differentiate", [False, True], ids=["score", "gradient"])
def test_memory_does_not_grow_with_tokens_times_vocabulary(differentiate):
  """R11: at the same tokens, eight times the vocabulary adds a chunk's worth only."""
  num_rows, length, chunk = 16, 256, 64

  def peak(vocab):
    c = dataclasses.replace(C, vocab=vocab, depth=1)
    ids = jax.ShapeDtypeStruct((num_rows, length), jnp.int32)
    numbers = jax.ShapeDtypeStruct((num_rows, length), jnp.float32)

    def total(params, rows):
      scores = logprobs.token_logprobs(
        c, params, rows, temperature=0.9, remat="full", chunk=chunk
      )
      return scores.logp_BL.sum(), scores.entropy_BL

    program = jax.grad(total, has_aux=True) if differentiate else total
    abstract = parameters.abstract_params(c, jnp.float32)
    rows = TokenRows(ids, ids, ids, numbers, numbers)
    compiled = jax.jit(program).lower(abstract, rows).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  small, large = 512, 4096
  growth = peak(large) - peak(small)
  whole = num_rows * length * (large - small) * 4
  assert growth < whole / 8, f"{growth} of {whole} bytes"


def test_the_module_further_on_scores_from_two_tokens_before():
  """Packed sequences as each alone; its first two tokens are not scored."""
  c = tiny.FAMILY["deepseek_v3"]
  sequences = [np.random.default_rng(0).integers(0, c.vocab, n) for n in (6, 2, 4)]
  packed = packing.pack(sequences, [1, 1, 1], row_length=14).rows
  alone = tiny.plain_rows(sequences)

  @jax.jit
  def run(params, rows):
    return logprobs.token_logprobs(c, params, rows, chunk=8, further=True).further_BL

  @jax.jit
  def plainly(params, rows):
    hidden_BLD, _, _ = transformer.forward(
      c, params, rows.tokens_BL, rows.positions_BL, segments_BL=rows.segments_BL
    )
    hidden_BLD, _ = transformer.predict_further(
      c, params, hidden_BLD, rows.tokens_BL, rows.positions_BL
    )
    logp_BLV = jax.nn.log_softmax(transformer.unembed(params, hidden_BLD))
    after_BL1 = jnp.asarray(rows.tokens_BL)[:, 2:, None]
    return jnp.take_along_axis(logp_BLV[:, :-2], after_BL1, -1)[..., 0]

  want = np.asarray(plainly(tiny.params(c), alone))
  got = np.asarray(run(tiny.params(c), packed))[0]
  np.testing.assert_allclose(got[2:6], want[0, :4], atol=5e-5)
  np.testing.assert_allclose(got[10:12], want[2, :2], atol=5e-5)
  assert not got[[0, 1, 6, 7, 8, 9, 12, 13]].any()


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_tokens_go_where_the_rows_say(name):
  """Routing replay: experts of other weights, and -1 as the scores have it."""
  c = tiny.FAMILY[name]
  rows = packed_rows(c=c)

  @jax.jit
  def run(params, rows):
    scores = logprobs.token_logprobs(c, params, rows)
    return scores.logp_BL, jnp.moveaxis(scores.routed.experts_ZBLK, 0, 2)

  own_logp, own = run(tiny.params(c), rows)
  _, other = run(tiny.params(c, seed=1), rows)
  assert (np.sort(own) != np.sort(other)).any()
  logp, went = run(tiny.params(c), rows.replace(experts_BLZK=np.asarray(own)))
  np.testing.assert_array_equal(went, own)
  np.testing.assert_allclose(logp, own_logp, atol=1e-6)
  logp, went = run(tiny.params(c), rows.replace(experts_BLZK=np.asarray(other)))
  np.testing.assert_array_equal(went, other)
  assert np.abs(logp - own_logp).max() > 1e-3
  anew = np.full(np.shape(own), -1, np.int32)
  np.testing.assert_array_equal(
    run(tiny.params(c), rows.replace(experts_BLZK=anew))[1], own
  )
