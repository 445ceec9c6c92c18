"""The composed loss against TRL's GRPOTrainer, on given log-probs.

What TRL computes was recorded by record_trl_loss.py, so torch and trl are needed only
to record it again.
"""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.objectives.policy_gradient import policy_gradient
from tests import tiny
from tests.objectives.laid import Layout

RECORDED = json.loads(
  (pathlib.Path(__file__).parent / "trl_loss.json").read_text(encoding="utf-8")
)
PLAIN = tiny.objective(clip_low=0.2, clip_high=0.2, kl_coef=0.0)
TOKEN_MEAN = {"reduction": "token_mean"}
# Name in record_trl_loss.py -> the same settings here.
CASES = {
  "grpo": {},
  "grpo_kl": {"kl_coef": 0.04},
  "grpo_kl_unbiased": {"kl_coef": 0.04, "kl_estimator": "unbiased"},
  "grpo_r1": {"clip_low": 10.0, "clip_high": 10.0, "kl_coef": 0.001},
  "dual_clip": {"surrogate": "dual_clip", "clip_dual": 1.5},
  "token_mean": TOKEN_MEAN,
  "dapo": {"clip_high": 0.28, **TOKEN_MEAN},
  "dr_grpo": {"reduction": "constant", "length_constant": 6.0},
  "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
  "cispo": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.3, **TOKEN_MEAN},
  "sapo": {"surrogate": "soft_gate", "gate_positive": 1.0, "gate_negative": 1.05},
  "weighted": {"kl_coef": 0.04},
  "entropy": {"entropy_coef": 0.1, **TOKEN_MEAN},
}


def test_every_recorded_case_is_compared():
  assert RECORDED["computed"].keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_loss_and_slopes(name):
  """In packed rows, float32; within 1e-5 of the loss and of the largest slope."""
  given = {key: np.asarray(value) for key, value in RECORDED["given"].items()}
  lengths = given["mask"].sum(1).astype(int)
  layout = Layout(lengths)

  def rows(key):
    own = [x[:n] for x, n in zip(given[key], lengths, strict=True)]
    return layout.rows(own).astype(jnp.float32)

  advantage = [np.full(n, x) for n, x in zip(lengths, given["advantage"], strict=True)]
  settings = PLAIN | CASES[name]

  @jax.jit
  def run(logp_BL, entropy_BL):
    total, count, _ = policy_gradient(
      logp_BL,
      rows("old"),
      rows("ref") if settings["kl_coef"] else None,
      layout.rows(advantage).astype(jnp.float32),
      layout.mask_BL,
      layout.length_BL,
      layout.segments_BL,
      rows("importance") if name == "weighted" else None,
      entropy_BL,
      **settings,
    )
    return total / count

  loss, slopes = jax.value_and_grad(run, argnums=(0, 1))(rows("logp"), rows("entropy"))
  want = RECORDED["computed"][name]
  assert float(loss) == pytest.approx(want["loss"], rel=1e-5)
  for key, slope in zip(("logp", "entropy"), slopes, strict=True):
    wanted = np.asarray(want.get(key, np.zeros(given["mask"].shape)))
    for own, answer, n in zip(layout.answers(slope), wanted, lengths, strict=True):
      largest = np.abs(wanted).max()
      np.testing.assert_allclose(own, answer[:n], rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.torch
@pytest.mark.slow
def test_recorded_again():
  for module in ("torch", "trl"):
    if importlib.util.find_spec(module) is None:
      pytest.skip(f"not installed: {module}")
  from tests.parity import record_trl_loss

  got = record_trl_loss.record()
  for key in ("given", "computed"):
    assert got[key].keys() == RECORDED[key].keys()
    jax.tree.map(np.testing.assert_allclose, got[key], RECORDED[key])
