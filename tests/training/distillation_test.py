"""Chunked divergences against logits of the whole batch, which never exist in them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.data import packing
from r1jax.models import transformer
from r1jax.objectives import distill
from r1jax.training.distillation import token_divergences
from tests import tiny

C = tiny.config()
# A larger model with its own head, which has some more rows.
TEACHER = tiny.config(depth=1, width=24, vocab=C.vocab + 3, tied_head=False)
TEMPERATURE = 0.8
ENDS = ("forward", "reverse")
DIVERGENCES = {**dict.fromkeys(ENDS), "generalised": 0.3}


def rows():
  rng = np.random.default_rng(0)
  sequences = [rng.integers(0, C.vocab, n) for n in (7, 3, 1, 5, 4)]
  return packing.pack(sequences, [2, 1, 0, 3, 0], row_length=11).rows


def chosen(name):
  return functools.partial(
    distill.token_divergence, divergence=name, beta=DIVERGENCES[name]
  )


def plain(name, params, teacher_params, rows):
  """[B, L] from [B, L, V]."""

  def logp(c, params):
    hidden_BLD, _, _ = transformer.forward(
      c, params, rows.tokens_BL, rows.positions_BL, segments_BL=rows.segments_BL
    )
    logits_BLV = transformer.unembed(params, hidden_BLD)[..., : C.vocab]
    return jax.nn.log_softmax(logits_BLV / TEMPERATURE)

  found_BL = chosen(name)(logp(C, params), logp(TEACHER, teacher_params))
  return jnp.where(rows.mask_BL > 0, jnp.roll(found_BL, 1, axis=1), 0.0)


def chunked(name, params, teacher_params, rows, chunk=8):
  return token_divergences(
    C,
    params,
    TEACHER,
    teacher_params,
    rows,
    divergence=chosen(name),
    temperature=TEMPERATURE,
    chunk=chunk,
  ).divergence_BL


@pytest.mark.parametrize(
  "name",
  ["generalised", *(pytest.param(x, marks=pytest.mark.slow) for x in ENDS)],
)
def test_against_full_logits(name):
  """Values, and the gradient of a weighted sum, in chunks of 4 + 4 + 3 columns."""
  weight_BL = np.random.default_rng(3).normal(size=(2, 11)).astype(np.float32)
  given = (tiny.params(C), tiny.params(TEACHER, seed=1), rows())

  def run(function):
    def loss(params, teacher_params, rows):
      found_BL = function(name, params, teacher_params, rows)
      return (weight_BL * found_BL).sum(), found_BL

    both = jax.grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(both)(*given)

  (gradient, of_teacher), got = run(chunked)
  (want_gradient, _), want = run(plain)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.asarray(got)[given[2].mask_BL > 0].all()
  tiny.assert_same_sums(gradient, want_gradient, tolerance=2e-6)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_teacher))


def test_no_array_of_all_tokens_and_the_vocabulary():
  """R11, forward and backward."""

  def text(function):
    def loss(params, teacher_params, rows):
      return function("generalised", params, teacher_params, rows).sum()

    given = (tiny.params(C), tiny.params(TEACHER, seed=1), rows())
    return str(jax.make_jaxpr(jax.grad(loss))(*given))

  sizes = [f"[2,11,{size}]" for size in (C.vocab, TEACHER.vocab)]
  assert all(size in text(plain) for size in sizes)
  assert not any(size in text(chunked) for size in sizes)


@pytest.mark.parametrize(
  ("beta", "temperature", "want", "slope"),
  [
    (0.0, 1.0, 1.2766646311196093, [0.432078652, -0.412676044]),
    (0.3, 0.7, 0.3973829658359646, [0.140311651, -0.136194275]),
    (0.5, 1.0, 0.28375897136259987, [0.090259987, -0.088591258]),
    (1.0, 0.7, 2.1053961915956516, [0.670362859, -0.689082925]),
  ],
)
def test_trls_numbers(beta, temperature, want, slope):
  """`GKDTrainer.generalized_jsd_loss` of TRL 1.16, reduction "sum", and the first
  entries of its gradient by the student's logits."""
  student = jnp.asarray([[1.5, 0.5, -0.7, 0.2], [-0.4, 0.9, 0.0, -2.0]])
  teacher = jnp.asarray([[0.2, 1.7, 0.6, -1.3], [-1.0, 0.3, 0.8, 0.5]])

  @jax.jit
  @jax.value_and_grad
  def loss(student):
    return distill.token_divergence(
      jax.nn.log_softmax(student / temperature),
      jax.nn.log_softmax(teacher / temperature),
      divergence="generalised",
      beta=beta,
    ).sum()

  got, gradient = loss(student)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(gradient[0, :2], slope, rtol=1e-5)
