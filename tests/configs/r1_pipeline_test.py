"""The recipe's configs: R1's published numbers, and two programs that are one."""

import pytest

from configs import r1_pipeline, r1_pipeline_tiny
from r1jax.errors import InputError
from r1jax.stages import setup


@pytest.fixture(scope="module", name="full")
def _full():
  return r1_pipeline.get_config()


@pytest.fixture(scope="module", name="tiny")
def _tiny():
  return r1_pipeline_tiny.get_config()


@pytest.mark.parametrize(
  "config",
  [
    r1_pipeline.get_config(),
    r1_pipeline.get_config("Qwen2.5-32B"),
    r1_pipeline_tiny.get_config(),
    r1_pipeline_tiny.get_config("small"),
  ],
)
def test_all_settings_are_known(config):
  assert list(setup.stage_configs(config.to_dict())) == list(config.stages)


def updates(stage):
  return stage.num_steps * stage.training.minibatches


def test_zero_is_the_report_s(full):
  """10,400 updates of 512 answers, longer from update 8,200 on; whole rollouts."""
  zero, longer = full.zero, full.zero_long
  for s in (zero, longer):
    assert s.rollout.prompts * s.rollout.group_size == 8_192
    assert s.rollout.group_size == 16 and s.training.minibatches == 16
    assert s.optim.learning_rate == 3e-6 and s.loss.kl_coef == 0.001
    assert s.loss.clip_low == s.loss.clip_high == 10
    assert s.rollout.temperature == 1.0 and s.reference.refresh_every == 25
    assert s.reward.weights.to_dict() == {"accuracy": 1.0, "format": 1.0}
    assert s.training.row_length >= s.rollout.prompt_length + s.rollout.max_tokens
  assert (zero.rollout.max_tokens, longer.rollout.max_tokens) == (32_768, 65_536)
  assert updates(zero) == 8_192 and updates(zero) + updates(longer) == 10_400


def test_stages_begin_where_the_report_s_do(full, tiny):
  inits = {"cold_start": "base", "reasoning": "cold_start", "sft": "base"}
  inits |= {"rules": "sft", "all_scenarios": "rules", "zero": "base"}
  for name, init in inits.items():
    assert tiny[name].init == init
    assert full[name].init == ("" if init == "base" else init)
  for c in (full, tiny):
    assert c.sft.examples.stage == "reasoning_answers"
    assert c.reasoning_answers.init == "reasoning"
    assert c.helpfulness.reads == "answer" and c.safety.reads == "all"
    assert c.rules.rollout.temperature == c.all_scenarios.rollout.temperature == 0.7
    assert not c.rules.reward.models
    assert c.reasoning.reward.weights.language == 1.0


def test_fine_tuning_and_reward_models_are_the_report_s(full):
  for name in ("cold_start", "sft"):
    s = full[name]
    assert s.optim.learning_rate == 5e-5 and s.optim.final_fraction == 0.1
    assert s.training.rows * s.training.microbatches == 128
    assert s.training.row_length == 32_768 and 2 <= s.epochs <= 3
  assert full.reasoning_answers.shares.to_dict()["math"] == 395_285
  assert sum(full.reasoning_answers.shares.values()) == 804_745
  for s, count in ((full.helpfulness, 66_000), (full.safety, 106_000)):
    assert s.optim.learning_rate == 6e-6 and s.training.batch == 256
    assert s.training.row_length == 8_192
    assert 0 <= s.num_steps * 256 - count < 256
  assert full.helpful_pairs.judge.judgements == 4
  assert full.helpful_pairs.choose.min_gap == 1.0
  assert updates(full.rules) + updates(full.all_scenarios) == pytest.approx(
    1_700, abs=16
  )
  assert updates(full.all_scenarios) == 400


def test_students_have_the_published_learning_rates(full):
  rates = [full[name].optim.learning_rate for name in r1_pipeline.STUDENTS]
  assert rates == [1e-4, 8e-5, 7e-5, 6e-5, 5e-5, 2e-5]
  for name in r1_pipeline.STUDENTS:
    s = full[name]
    assert s.init == "" and s.model.path != full.model.path
    assert s.training.rows * s.training.microbatches == 64
    assert s.examples.stage == "reasoning_answers"


def test_zero_on_32b_has_its_own_numbers():
  c = r1_pipeline.get_config("Qwen2.5-32B")
  assert c.zero.optim.learning_rate == 2e-6
  assert updates(c.zero) >= 10_000
  assert c.cold_answers.init == "zero"


def test_the_tiny_recipe_has_every_stage_of_the_full_one(full, tiny):
  named = set(full.stages) - set(r1_pipeline.STUDENTS) - {"zero_long"}
  assert named <= set(tiny.stages)
  assert all(full[name].kind == tiny[name].kind for name in named)
  kinds = {tiny[name].kind for name in tiny.stages}
  assert {"preference", "average", "evaluation"} <= kinds


def test_variants_that_are_not_there():
  with pytest.raises(InputError, match="no such variant; there are: small"):
    r1_pipeline_tiny.get_config("smal")
