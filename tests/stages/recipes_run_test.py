"""Every named recipe through the whole command, in three steps."""

import math
import shutil

import pytest

from r1jax import metrics
from r1jax.objectives import recipes

# What a recipe leaves in a line beside what all do.
OWN = {
  "ppo": {"critic/loss", "critic/explained_variance", "reward/kl"},
  "dapo": {"filter/rounds", "filter/missing", "reward/shaping"},
  "reinforce_pp": {"reward/kl"},
  "rloo": {"reward/kl"},
  "grpo_r1": {"loss/kl"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_runs_from_its_name_alone(name, train, small_run, tmp_path):
  """Nothing compiles after the first step, whatever the recipe does on the host."""
  shutil.copytree(small_run, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / "zero")
  process = train(f"--workdir={tmp_path}", config=f"tests/small_recipes.py:{name}")
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  lines = [line for line in metrics.read(tmp_path) if line["stage"] == "zero"]
  steps = [line for line in lines if "loss/policy" in line]
  assert [line["step"] for line in steps] == [1, 2, 3]
  assert len({line["compile/count"] for line in steps}) == 1
  for line in steps:
    assert line.keys() >= OWN.get(name, set())
    assert all(
      value is None or math.isfinite(value)
      for value in line.values()
      if not isinstance(value, str)
    )
  assert any(line["optim/grad_norm"] > 0 for line in steps)
