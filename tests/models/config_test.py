"""Shapes that cannot be are refused, and the message names the field."""

import dataclasses

import pytest

from r1jax.errors import InputError
from r1jax.models.config import (
  Experts,
  Latent,
  Llama3Rope,
  ModelConfig,
  YarnRope,
  changed,
)
from tests import tiny

GROUPED = ModelConfig(
  depth=3, width=16, heads=4, kv_heads=2, head_dim=8, ffw=24, vocab=33
)
LATENT = dataclasses.replace(
  GROUPED,
  kv_heads=4,
  head_dim=10,
  latent=Latent(q_rank=10, kv_rank=12, nope_dim=6, rope_dim=4, value_dim=8),
)
MIXTURE = dataclasses.replace(
  GROUPED,
  experts=Experts(
    count=8, per_token=3, ffw=8, shared=1, first_dense=2, groups=4, kept_groups=2
  ),
)
RECORDS = {"model.latent.": LATENT, "model.experts.": MIXTURE, "model.": GROUPED}


def with_field(key: str, value) -> ModelConfig:
  """A shape with one field changed, by the name that messages call it."""
  where = next(prefix for prefix in RECORDS if key.startswith(prefix))
  c, name = RECORDS[where], key.removeprefix(where)
  if where == "model.":
    return dataclasses.replace(c, **{name: value})
  section = where.split(".")[1]
  record = dataclasses.replace(getattr(c, section), **{name: value})
  return dataclasses.replace(c, **{section: record})


def integers() -> list[tuple[str, int]]:
  """(key, least value) of all integer fields."""
  may_be_zero = {"mtp_depth", "q_rank", "shared", "first_dense"}
  records = {"model.": GROUPED, "model.latent.": LATENT.latent}
  records |= {"model.experts.": MIXTURE.experts}
  return [
    (where + field.name, 0 if field.name in may_be_zero else 1)
    for where, record in records.items()
    for field in dataclasses.fields(record)
    if field.type is int
  ]


@pytest.mark.parametrize(("key", "least"), integers())
def test_numbers_below_the_least_and_fractions(key, least):
  for value in (least - 1, 2.0, None):
    with pytest.raises(InputError, match=rf"{key}={value!r} must be "):
      with_field(key, value)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    *((f"model.experts.{name}", 0) for name in ("shared", "first_dense")),
    ("model.latent.q_rank", 0),
    ("model.mtp_depth", 0),
    ("model.mtp_depth", 1),
  ],
)
def test_least_values(key, value):
  with_field(key, value)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("model.kv_heads", 3, r"model.kv_heads=3 must divide model.heads=4"),
    ("model.head_dim", 7, r"model.head_dim=7 must be even"),
    ("model.mtp_depth", 2, r"model.mtp_depth=2: only 0 and 1"),
    ("model.latent.rope_dim", 3, r"model.latent.rope_dim=3 must be even"),
    (
      "model.latent.nope_dim",
      4,
      r"model.head_dim=10 must be model.latent.nope_dim .* 8",
    ),
    ("model.experts.scores", "tanh", r"model.experts.scores='tanh' is not known"),
    ("model.experts.group_score", "sum", r"model.experts.group_score='sum'"),
    ("model.experts.first_dense", 3, r"model.experts.first_dense=3 .* model.depth=3"),
    ("model.experts.count", 9, r"count=9 must split into groups=4"),
    ("model.experts.groups", 3, r"count=8 must split into groups=3"),
    ("model.experts.groups", 8, r"groups=8 of two or more"),
    ("model.experts.kept_groups", 5, r"kept_groups=5"),
    ("model.experts.per_token", 5, r"per_token=5 is more than the 4 experts"),
  ],
)
def test_shapes_that_cannot_be(key, value, message):
  with pytest.raises(InputError, match=message):
    with_field(key, value)


@pytest.mark.parametrize(
  "change", [{"kv_heads": 2}, {"qkv_bias": True}, {"qk_norm": True}]
)
def test_latent_attention_goes_without_what_grouped_query_attention_has(change):
  (name, value), *_ = change.items()
  with pytest.raises(InputError, match=rf"model.latent goes .*{name}={value}"):
    dataclasses.replace(LATENT, **change)


def test_layers_without_experts():
  assert GROUPED.dense_depth == 0
  assert MIXTURE.dense_depth == 2


def test_changed_values_and_records():
  c = changed(MIXTURE, {"width": 32, "experts": {"count": 16, "scores": "sigmoid"}})
  want = dataclasses.replace(MIXTURE.experts, count=16, scores="sigmoid")
  assert c == dataclasses.replace(MIXTURE, width=32, experts=want)


def test_records_that_were_not_there_are_made():
  latent = dataclasses.asdict(LATENT.latent)
  made = changed(GROUPED, {"kv_heads": 4, "head_dim": 10, "latent": latent})
  assert made == LATENT
  c = changed(GROUPED, {"rope_scaling": {"kind": "yarn", "factor": 4.0} | FIRST})
  assert c.rope_scaling == YarnRope(factor=4.0, original_length=64)
  c = changed(c, {"rope_scaling": {"beta_fast": 16.0}})
  assert c.rope_scaling == YarnRope(factor=4.0, original_length=64, beta_fast=16.0)
  c = changed(c, {"rope_scaling": {"kind": "llama3", "factor": 2.0} | FIRST})
  assert c.rope_scaling == Llama3Rope(factor=2.0, original_length=64)


FIRST = {"original_length": 64}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"widht": 8}, r"config.model.shape='widht' .*did you mean 'width'"),
    ({"experts": {"size": 8}}, r"config.model.shape.experts='size' is not known"),
    ({"experts": {"count": 8}}, r"config.model.shape.experts.per_token is missing"),
    ({"rope_scaling": {"factor": 2.0}}, r"rope_scaling.kind='' is not known"),
    ({"rope_scaling": {"kind": "linear"}}, r"rope_scaling.kind='linear'"),
    ({"rope_scaling": {"kind": "yarn"}}, r"rope_scaling.factor is missing"),
    ({"width": {"of": 8}}, r"config.model.shape.width=.* is one value"),
  ],
)
def test_changes_that_are_not_understood(fields, message):
  with pytest.raises(InputError, match=message):
    changed(GROUPED, fields)


@pytest.mark.parametrize(
  ("make", "said"),
  [
    (lambda: Llama3Rope(factor=0.5, original_length=8), r"factor=0\.5: must be 1"),
    (lambda: YarnRope(factor=2.0, original_length=0), r"original_length=0 must be"),
    (
      lambda: Llama3Rope(factor=2.0, original_length=8, low_freq=4.0),
      r"low_freq=4\.0 must be above 0 and below high_freq=4\.0",
    ),
    (
      lambda: YarnRope(factor=2.0, original_length=8, beta_slow=0.0),
      r"beta_slow=0\.0 must be above 0 and below beta_fast=32\.0",
    ),
  ],
)
def test_impossible_stretches_are_refused(make, said):
  with pytest.raises(InputError, match=rf"model\.rope_scaling.*{said}"):
    make()


def test_changing_records_field_by_field():
  """As `config.model.shape` does."""
  c = tiny.FAMILY["deepseek_v3"]
  got = changed(c, {"experts": {"count": 12}, "rope_scaling": {"factor": 2.0}})
  assert got.experts == dataclasses.replace(c.experts, count=12)
  assert got.rope_scaling == dataclasses.replace(c.rope_scaling, factor=2.0)
  new = changed(
    tiny.config(),
    {"rope_scaling": {"kind": "llama3", "factor": 2.0, "original_length": 8}},
  )
  assert new.rope_scaling == Llama3Rope(factor=2.0, original_length=8)
  for fields, said in (
    ({"experts": {"counts": 1}}, r"config\.model\.shape\.experts='counts'.*'count'"),
    ({"experts": {"count": 4}}, r"config\.model\.shape\.experts\.per_token is missing"),
    ({"rope_scaling": {"factor": 2.0}}, r"config\.model\.shape\.rope_scaling\.kind"),
    ({"depth": {"count": 4}}, r"config\.model\.shape\.depth=.*one value"),
    ({"widht": 4}, r"config\.model\.shape='widht'.*'width'"),
  ):
    with pytest.raises(InputError, match=said):
      changed(tiny.config(), fields)
