"""The kernel for GPUs, interpreted, against attention written down."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import attention, cache, flash_decode
from r1jax.sharding import LOCAL, Partition

BLOCK = cache.BLOCK
Q, G, K, R, H = 3, 2, 2, 3, 64
W, P = 2 * BLOCK, 2 * BLOCK
# Nothing of its own or no prompt, less than a block, whole blocks, a full ring.
LENGTHS = (0, 1, BLOCK - 1, BLOCK, BLOCK + 37, W - 1)
PROMPTS = (0, BLOCK, P - 1)


def arrays(rng: np.random.Generator):
  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

  slots = Q * G
  new = normal(slots, K, R, H), normal(slots, K, H), normal(slots, K, H)
  held = normal(slots, K, H, W), normal(slots, K, W, H)
  return new, (*held, normal(Q, K, H, P), normal(Q, K, P, H))


@pytest.mark.parametrize("column", [0, 37, W - 1])
def test_a_token_attends_to_its_prompt_the_ring_and_itself(column):
  (q, k, v), held = arrays(np.random.default_rng(column))
  prompt_S = jnp.arange(Q * G) // G
  out, keys, values = flash_decode.attend(
    *(q, k, v, held, prompt_S),
    jnp.asarray(PROMPTS)[prompt_S],
    jnp.asarray(LENGTHS),
    jnp.asarray(column),
    scale=H**-0.5,
    partition=LOCAL,
    interpret=True,
  )
  q, k, v, out = (np.asarray(x, np.float64) for x in (q, k, v, out))
  want_k, want_v, prompt_k, prompt_v = (np.array(x, np.float64) for x in held)
  want_k[..., column], want_v[:, :, column] = k, v
  np.testing.assert_array_equal(np.asarray(keys, np.float64), want_k)
  np.testing.assert_array_equal(np.asarray(values, np.float64), want_v)
  for s in range(Q * G):
    ring = [(column - age) % W for age in range(LENGTHS[s] + 1)]
    places = slice(PROMPTS[s // G])
    for head in range(K):
      k_HC = [prompt_k[s // G, head][:, places], want_k[s, head][:, ring]]
      v_CH = [prompt_v[s // G, head][places], want_v[s, head][ring]]
      score = q[s, head] @ np.concatenate(k_HC, axis=1) * H**-0.5
      weight = np.exp(score - score.max(axis=1, keepdims=True))
      want = weight / weight.sum(axis=1, keepdims=True) @ np.concatenate(v_CH)
      np.testing.assert_allclose(out[s, head], want, atol=0.02)


def prefilled(partition: Partition, **changes) -> cache.Cache:
  """A cache with prompts, as a rollout's."""
  own = cache.Cache(
    keys=((jnp.zeros((Q * G, K, H, W), jnp.bfloat16),),),
    values=((jnp.zeros((Q * G, K, W, H), jnp.bfloat16),),),
    length_S=jnp.zeros((Q * G,), jnp.int32),
    column=jnp.asarray(0),
  )
  prompt = cache.PromptCache(
    keys=(jnp.zeros((Q, K, H, P), jnp.bfloat16),),
    values=(jnp.zeros((Q, K, P, H), jnp.bfloat16),),
    length_Q=jnp.ones((Q,), jnp.int32),
    row_S=jnp.arange(Q * G),
    samples=G,
    queues=partition.size("batch"),
  )
  return own.replace(prompt=prompt).replace(**changes)


@dataclasses.dataclass(frozen=True)
class OnGpu(Partition):
  """One that says of its devices that they are GPUs with the kernels."""

  has_flash_kernels = True


GPU = OnGpu(None, {})


@pytest.mark.parametrize(
  ("partition", "num_new", "dtype", "changes", "want"),
  [
    (GPU, 1, jnp.bfloat16, {}, True),
    (LOCAL, 1, jnp.bfloat16, {}, False),  # no GPU
    (GPU, 2, jnp.bfloat16, {}, False),  # drafts
    (GPU, 1, jnp.float32, {}, False),
    (GPU, 1, jnp.bfloat16, {"prompt": None}, False),  # an evaluation of one prompt
    (GPU, 1, jnp.bfloat16, {"column": jnp.zeros((Q * G,), jnp.int32)}, False),
    (GPU, 1, jnp.bfloat16, {"values": ((),)}, False),  # latent attention
  ],
)
def test_what_the_kernel_is_for(partition, num_new, dtype, changes, want):
  made = prefilled(partition, **changes)
  assert attention.fits_kernel(made, num_new, dtype, partition) == want


def test_the_context_by_the_kernel_is_that_by_products(monkeypatch):
  """What a layer attends to, and what it leaves in the cache."""
  interpreted = flash_decode.attend
  monkeypatch.setattr(
    flash_decode,
    "attend",
    lambda *given, **named: interpreted(*given, **named, interpret=True),
  )
  (q, k, v), held = arrays(np.random.default_rng(1))
  made = prefilled(GPU, length_S=jnp.asarray(LENGTHS), column=jnp.asarray(37))
  made = made.replace(prompt=made.prompt.replace(length_Q=jnp.asarray(PROMPTS)))
  inside = (held[:1], held[1:2], *held[2:])
  new = [x[:, None] for x in (q, k, v)]
  found = [
    attention.with_cache(None, made, 1, jnp.bfloat16, None, partition)(
      *new, inside, H**-0.5
    )
    for partition in (GPU, LOCAL)
  ]
  for one, other in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(
      np.asarray(one, np.float32), np.asarray(other, np.float32), atol=0.02
    )
