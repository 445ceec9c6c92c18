"""Models with experts through both stages: balance, replay, the module further on."""

import pytest

from r1jax import metrics
from r1jax.errors import InputError
from r1jax.training import experts
from tests import tiny


def test_a_run_balances_replays_and_predicts_further(train, tmp_path):
  process = train(f"--workdir={tmp_path}", config="tests/small_mixture.py")
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  lines = metrics.read(tmp_path)
  base = [line for line in lines if "loss/mtp" in line]
  assert len(base) == 3
  for line in base:
    assert line["loss/mtp"] > 0 and line["moe/balance"] > 0.5
    assert 1 <= line["moe/load"] <= 4 and 1 <= line["moe/load_mtp"] <= 4
  zero = [line for line in lines if "policy/logp_gap_max" in line]
  assert len(zero) == 2
  # The same experts in one forward: the sampler's log-probs are the trainer's.
  assert max(line["policy/logp_gap_max"] for line in zero) < 1e-3
  assert all(1 <= line["moe/load"] <= 4 for line in zero)


OFF = {"balance_coef": 0.0, "bias_rate": 0.0}


@pytest.mark.parametrize(
  ("name", "settings", "said"),
  [
    ("llama", {"balance_coef": 0.1}, "config.moe: balance_coef=0.1.*no experts"),
    ("llama", {"replay": True}, "config.moe: .*replay=True.*no experts"),
    ("qwen3_moe", {"bias_rate": 0.1}, "config.moe.bias_rate=0.1.*no bias"),
    ("deepseek_v3", {"bias_rate": -1.0}, "config.moe.bias_rate=-1.0.*0 or more"),
  ],
)
def test_settings_that_do_nothing_are_refused(name, settings, said):
  with pytest.raises(InputError, match=said):
    experts.check(tiny.FAMILY[name], **OFF | settings)
