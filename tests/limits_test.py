"""What a step asks of a machine, by hand; and what the machine says it can do."""

import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import limits
from r1jax.data import packing
from r1jax.models import transformer
from tests import tiny

C = tiny.config(depth=1, width=8, heads=2, kv_heads=1, head_dim=4, ffw=4, vocab=16)
# q, k, v and o; gate, up and down; three norms.
LAYERS = 8 * (8 + 4 + 4 + 8) + 3 * 8 * 4 + 3 * 8
# 100 FLOP and 10 bytes a second on each of two devices.
MACHINE = limits.Machine(2, 100.0, 10.0, "measured")


def flops(c, tokens=0, keys=0, predicted=0):
  return limits.forward_flops(c, tokens=tokens, keys=keys, predicted=predicted)


def test_flops_of_a_forward_pass():
  assert flops(C, tokens=1) == 2 * LAYERS
  assert flops(C, predicted=1) == 2 * 8 * 16
  # A query with a key, its probability with a value: 4 numbers of 2 heads.
  assert flops(C, keys=1) == 2 * 2 * (4 + 4)
  untied = tiny.config(**{**vars(C), "tied_head": False})
  assert flops(untied, 5, 7, 3) == flops(C, 5, 7, 3)


def test_a_token_goes_through_its_own_experts():
  c = tiny.FAMILY["qwen3_moe"]
  one = 3 * c.width * c.experts.ffw * c.depth
  all_ = tiny.config(**{**vars(c), "experts": None, "ffw": c.experts.ffw})
  router = c.width * c.experts.count * c.depth
  want = flops(all_, tokens=1) + 2 * ((c.experts.per_token - 1) * one + router)
  assert flops(c, tokens=1) == want


@pytest.mark.parametrize("name", ["llama", "deepseek_v2"])
def test_flops_are_near_those_that_xla_counts(name):
  """It also counts norms, softmax, rotary, and attention to later tokens."""
  c = tiny.FAMILY[name]
  c = tiny.config(**{**vars(c), "depth": 1, "experts": None, "width": 64, "ffw": 256})
  tokens = np.ones((1, 8), np.int32)
  places = np.arange(8, dtype=np.int32)[None]

  def logits(params):
    hidden, *_ = transformer.forward(c, params, tokens, places)
    return transformer.unembed(params, hidden)

  compiled = jax.jit(logits).lower(tiny.params(c)).compile()
  counted = compiled.cost_analysis()["flops"]
  assert flops(c, 8, 8 * 8, 8) < counted < 1.15 * flops(c, 8, 8 * 8, 8)


def test_bytes_of_a_decode_step():
  params = tiny.params(C)
  read = limits.decode_bytes(C, params, steps=3, rows=6, cached=35)
  assert read == 4 * (3 * (LAYERS + 16 * 8) + 2 * 4 * 35)
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  assert limits.decode_bytes(C, half, steps=3, rows=6, cached=35) == read / 2


def test_few_rows_read_few_experts():
  c = tiny.FAMILY["qwen3_moe"]
  params = tiny.params(c)
  experts = sum(leaf.nbytes for leaf in params["layers"]["moe"]["experts"].values())
  all_ = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  looked_up = params["embed"].nbytes

  def read(rows):
    return limits.decode_bytes(c, params, steps=1, rows=rows, cached=0)

  assert read(100) == all_ - looked_up
  assert read(1) == pytest.approx(all_ - looked_up - experts * (1 - 2 / 6))


def test_a_cached_token_of_latent_attention_is_its_latent():
  c = tiny.FAMILY["deepseek_v2"]
  params = tiny.params(c)
  read = [limits.decode_bytes(c, params, steps=0, rows=1, cached=n) for n in (0, 1)]
  assert read == [0, 4 * c.depth * (c.latent.kv_rank + c.latent.rope_dim)]


def test_work_of_a_rollout():
  """Two prompts of 3 and 1 tokens, answers of 2, 1 and of 4, 0 tokens, by hand."""
  rollout = types.SimpleNamespace(
    length_B=np.asarray([2, 1, 4, 0]), counts={"steps": 4, "slot_steps": 8}
  )
  fast = limits.Machine(1, 1.0, 1e9, "measured")
  got = limits.rollout_work(fast, C, tiny.params(C), [[1, 2, 3], [1]], rollout)
  prefill = flops(C, tokens=2, keys=1 + 2)
  keys = (3 + 4) + 3 + (1 + 2 + 3 + 4)
  assert got == (7, pytest.approx(prefill + flops(C, tokens=7, keys=keys, predicted=7)))
  slow = limits.Machine(1, 1e15, 1.0, "measured")
  got = limits.rollout_work(slow, C, tiny.params(C), [[1, 2, 3], [1]], rollout)
  # Own keys of earlier steps; the first prompt's two as long as a row of it lives.
  cached = (0 + 1) + 0 + (0 + 1 + 2 + 3) + 2 * 2
  want = limits.decode_bytes(C, tiny.params(C), steps=4, rows=2, cached=cached)
  assert got.least_s == pytest.approx(want)


def test_work_of_packed_rows_leaves_padding_out():
  pack = packing.pack([[1, 2, 3], [4, 5]], [1, 1], row_length=9)
  rows = jax.tree.map(lambda leaf: leaf[None], pack.rows)
  got = limits.forward_work(MACHINE, C, [rows, rows])
  forward = flops(C, tokens=5, keys=(1 + 2 + 3) + (1 + 2), predicted=2 + 1)
  assert got == (10, 2 * forward / 2 / 100)
  assert got.times(3) == (10, 3 * got.least_s)


def test_the_slower_of_products_and_reads_counts():
  assert MACHINE.seconds(1000.0) == 5.0
  assert MACHINE.seconds(1000.0, 40.0) == 5.0
  assert MACHINE.seconds(1000.0, 60.0) == 6.0


def test_a_machine_without_a_data_sheet_is_measured(monkeypatch):
  monkeypatch.setattr(limits, "SHORTEST_S", 0.005)
  began = time.perf_counter()
  got = limits.machine(jnp.float32)
  taken_s = time.perf_counter() - began
  assert got.source == "measured" and got.num_devices == jax.device_count()
  # The products timed are a part of the time that all of it took.
  assert got.flops_per_s > 2 * 1024**3 / taken_s
  assert got.bytes_per_s > 2**28 / taken_s
  kind = jax.local_devices()[0].device_kind
  monkeypatch.setitem(limits.SHEETS, kind, (3.0, 4.0))
  sheet = limits.Machine(jax.device_count(), 3.0, 4.0, "data sheet")
  assert limits.machine(jnp.bfloat16) == sheet
  assert limits.machine(jnp.float32).source == "measured"
