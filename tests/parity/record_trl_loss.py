"""Records what TRL's GRPOTrainer computes of given log-probs: its loss and slopes.

  python -m tests.parity.record_trl_loss > tests/parity/trl_loss.json

Needs torch and trl, and nothing of r1jax. TRL's own `_compute_loss` runs, on an object
that has the settings and, in place of a model, log-probs and entropies that are given.
Advantages are given too: TRL makes them in the middle of a rollout. The committed file
was made with the versions that it names, in float64.
"""

import collections
import json
import sys
import types

import numpy as np
import torch
import trl
from trl.trainer.grpo_trainer import GRPOTrainer

LENGTHS = (3, 1, 5, 2, 4, 2)
MAX_TOKENS = 6
# Name -> what differs from `defaults`.
CASES = {
  "grpo": {},
  "grpo_kl": {"beta": 0.04},
  "grpo_kl_unbiased": {"beta": 0.04, "use_bias_correction_kl": True},
  "grpo_r1": {"epsilon_low": 10.0, "epsilon_high": 10.0, "beta": 0.001},
  "dual_clip": {"delta": 1.5},
  "token_mean": {"loss_type": "bnpo"},
  "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
  "dr_grpo": {"loss_type": "dr_grpo"},
  "gspo": {
    "importance_sampling_level": "sequence",
    "epsilon_low": 3e-4,
    "epsilon_high": 4e-4,
  },
  "cispo": {"loss_type": "cispo", "epsilon_high": 1.3},
  "sapo": {"loss_type": "sapo"},
  "weighted": {"use_vllm": True, "beta": 0.04},
  "entropy": {"loss_type": "bnpo", "entropy_coef": 0.1},
}


def given() -> dict[str, np.ndarray]:
  """Right-padded [B, T] numbers that every case sees."""
  rng = np.random.default_rng(0)
  shape = (len(LENGTHS), MAX_TOKENS)
  mask = (np.arange(MAX_TOKENS) < np.asarray(LENGTHS)[:, None]).astype(np.float64)
  logp = -rng.exponential(size=shape)
  return {
    "mask": mask,
    "logp": logp,
    "old": logp + 0.3 * rng.normal(size=shape),
    "ref": logp + 0.4 * rng.normal(size=shape),
    "entropy": rng.exponential(size=shape),
    "importance": np.exp(0.3 * rng.normal(size=shape)),
    "advantage": rng.normal(size=len(LENGTHS)),
  }


def trainer(changes, per_token):
  """As much of a trainer as `_compute_loss` reads, one process, no accumulation."""
  settings = {
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "beta": 0.0,
    "delta": None,
    "use_bias_correction_kl": False,
    "use_vllm": False,
    "entropy_coef": 0.0,
    **changes,
  }
  args = {
    "delta": settings.pop("delta"),
    "use_bias_correction_kl": settings.pop("use_bias_correction_kl"),
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "steps_per_generation": 1,
  }
  alone = types.SimpleNamespace(
    num_processes=1,
    sync_gradients=True,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
  )
  return types.SimpleNamespace(
    **settings,
    args=types.SimpleNamespace(**args),
    accelerator=alone,
    model=types.SimpleNamespace(training=True),
    vllm_importance_sampling_correction=True,
    aux_loss_enabled=False,
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    use_adaptive_entropy=False,
    max_completion_length=MAX_TOKENS,
    current_gradient_accumulation_steps=1,
    _entropy_bonus_enabled=settings["entropy_coef"] != 0,
    _metrics={"train": collections.defaultdict(list)},
    _get_per_token_logps_and_entropies=lambda *a, **k: (*per_token, None),
  )


def computed(name: str, numbers) -> dict:
  """The loss, and its slopes by log-probs and entropies, of one case."""
  t = {key: torch.tensor(value) for key, value in numbers.items()}
  logp = t["logp"].clone().requires_grad_(True)
  entropy = t["entropy"].clone().requires_grad_(True)
  ids = torch.zeros(t["mask"].shape, dtype=torch.long)
  inputs = {
    "prompt_ids": ids[:, :1],
    "prompt_mask": ids[:, :1],
    "completion_ids": ids,
    "completion_mask": t["mask"],
    "advantages": t["advantage"],
    "old_per_token_logps": t["old"],
    "ref_per_token_logps": t["ref"],
    "importance_sampling_ratio": t["importance"],
    "num_items_in_batch": t["mask"].sum(),
  }
  loss = GRPOTrainer._compute_loss(trainer(CASES[name], (logp, entropy)), None, inputs)
  loss.backward()
  slopes = {"logp": logp.grad}
  if entropy.grad is not None and entropy.grad.any():
    slopes["entropy"] = entropy.grad
  return {"loss": loss.item(), **{key: x.tolist() for key, x in slopes.items()}}


def record() -> dict:
  numbers = given()
  return {
    "versions": {"trl": trl.__version__, "torch": torch.__version__},
    "given": {key: value.tolist() for key, value in numbers.items()},
    "computed": {name: computed(name, numbers) for name in CASES},
  }


if __name__ == "__main__":
  json.dump(record(), sys.stdout, indent=None)
  print()
