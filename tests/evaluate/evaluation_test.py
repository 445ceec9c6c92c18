"""An evaluation of a small run: repeated, stopped, gone on with, refused."""

import json
import re

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from configs import common
from configs import evaluate as config_file
from r1jax import export, limits
from r1jax.errors import InputError
from r1jax.evaluate import files
from r1jax.evaluate.evaluation import evaluate
from r1jax.stages.run import Stopped
from tests import learners

# Problems of two categories, whose verifier imports nothing.
SUMS = [
  {"question": f"{i} a{sign}1 = ?", "answer": "1", "category": category}
  for i in (0, 2)
  for sign, category in (("+", "plus"), ("-", "minus"))
]


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
  """Each evaluation has programs of its own, which are the same."""
  changes = {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {key: jax.config.values[key] for key in changes}
  for settings in (changes, before):
    for key, value in settings.items():
      jax.config.update(key, value)
    compilation_cache.reset_cache()
    if settings is changes:
      yield


def run(checkpoint, out, *sets, stop_asked=lambda: False, reward_model=None, **changes):
  c = config_file.get_config()
  c.update_from_flattened_dict(
    {"eval.samples": 3, "eval.batch": 2, "reward.num_workers": 1, **changes}
  )
  return evaluate(
    export.of_checkpoint(str(checkpoint), None),
    out,
    config=c.to_dict(),
    sets=sets,
    reward_model=reward_model,
    dtype="auto",
    tp=1,
    overwrite=False,
    stop_asked=stop_asked,
    console=Console(quiet=True),
  )


def contents(out):
  return {path.name: path.read_bytes() for path in out.iterdir()}


def test_stopped_or_not_it_gives_the_same_files(small_run, tmp_path, monkeypatch):
  measured = limits.Machine(1, 1e9, 1e9, "measured")
  monkeypatch.setattr(limits, "machine", lambda dtype: measured)
  path = learners.jsonl(tmp_path / "sums.jsonl", SUMS)
  flag = f"sums=jsonl,path={path},verifier=gsm8k"
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  results = run(small_run, whole, flag)
  looks = iter([False, True])
  with pytest.raises(Stopped, match="sums: stopped in round 1, 1 of 2 parts"):
    run(small_run, parts, flag, stop_asked=lambda: next(looks))
  assert not (parts / files.RESULTS).exists()
  (kept,) = (parts / "samples" / "sums").iterdir()
  assert run(small_run, parts, flag) == results
  assert contents(parts) == contents(whole)
  assert kept.name == "round_001_000000.jsonl" and not kept.exists()
  check(whole, results)
  with pytest.raises(InputError, match=r"eval\.top_p was 0\.95 and is now 0\.9\. Name"):
    run(small_run, whole, flag, **{"eval.top_p": 0.9})
  # Nothing is drawn any more; a batch is no difference.
  assert run(small_run, whole, flag, **{"eval.batch": 4}) == results


def check(out, results):
  """Results are of the lines; what is asked is as it was in training."""
  lines = [json.loads(line) for line in (out / "samples.jsonl").open()]
  assert [line["sample"] for line in lines] == [0, 1, 2] * 4
  assert all(len(line["tokens"]) == line["length"] for line in lines)
  own = results["sets"]["sums"]
  assert (own["n"], own["samples"]) == (4, 3)
  right = [line["right"] for line in lines]
  assert own["pass@1"]["mean"] == pytest.approx(np.mean(right))
  assert own["length"]["mean"] == pytest.approx(
    np.mean([line["length"] for line in lines])
  )
  assert own["categories"]["plus"]["n"] == own["categories"]["minus"]["n"] == 2
  assert results["template"]["template"] == "plain"
  assert results["eval"]["max_tokens"] == 12
  assert results["reward"]["format"]["kind"] == "r1_zero"
  assert results["made_from"]["stage"] == "zero"
  page = (out / "results.md").read_text()
  mean = f"{100 * own['pass@1']['mean']:.1f}"
  assert f"| **sums** | 4 | 3 | {mean} (" in page
  assert "| sums, plus | 2 | 3 |" in page


@pytest.mark.slow
def test_a_reward_model_chooses(tmp_path):
  """Scores are in the lines, and what they choose in the results."""
  pairs = [{"prompt": f"{i}", "chosen": "1", "rejected": "1234567"} for i in range(12)]
  judge = common.reward_model()
  judge.num_steps = 4
  judge.data.path = learners.jsonl(tmp_path / "pairs.jsonl", pairs)
  judge.data.update({"held_out": 0.25, "balance_lengths": False})
  judge.training.update({"batch": 8, "rows": 2, "row_length": 32, "remat": "none"})
  workdir = learners.with_base(tmp_path / "run")
  learners.finish(learners.config(base=True, judge=judge), workdir)
  sums = learners.jsonl(tmp_path / "sums.jsonl", SUMS)
  changes = {"eval.max_tokens": 12, "greedy": True, "reward_model.rows": 2}
  flag = f"sums=jsonl,path={sums},verifier=gsm8k"
  checkpoint = workdir / "checkpoints" / "base"
  judged_by = export.of_checkpoint(str(workdir / "checkpoints" / "judge"), None)
  results = run(checkpoint, tmp_path / "out", flag, reward_model=judged_by, **changes)
  lines = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").open()]
  assert len(lines) == 4 * (3 + 1)
  scores = [line["reward"]["model"] for line in lines if not line["greedy"]]
  assert len(set(scores)) > 1
  own = results["sets"]["sums"]
  right = [line["right"] for line in lines if not line["greedy"]]
  best = [right[i + int(np.argmax(scores[i : i + 3]))] for i in range(0, 12, 3)]
  assert own["best@3"]["mean"] == pytest.approx(np.mean(best))
  assert "weighted@3" in own and own["greedy"]["samples"] == 1
  assert results["reward_model"]["made_from"]["stage"] == "judge"
  with pytest.raises(InputError, match=r"reward_model=.*base is of the kind 'sft'"):
    base = export.of_checkpoint(str(checkpoint), None)
    run(checkpoint, tmp_path / "other", flag, reward_model=base, **changes)
  with pytest.raises(InputError, match=r"config\.reward_model\.rows=0"):
    rows = changes | {"reward_model.rows": 0}
    run(checkpoint, tmp_path / "other", flag, reward_model=judged_by, **rows)


@pytest.mark.slow
def test_the_command(train, small_run, tmp_path):
  """What it prints and how it ends; several are started at once."""

  def start(*words):
    return train(*words, config=None, program=("-m", "r1jax.evaluate"))

  out = tmp_path / "an out"
  settings = ("--config.eval.samples=2", "--config.reward.num_workers=1")
  right = start(f"--checkpoint={small_run}", f"--out={out}", *settings)
  refused = {
    ("--chekpoint=a",): "chekpoint",
    (f"--out={out}",): "one of --checkpoint=RUN and --model=PATH is needed",
    ("--model=absent", f"--out={tmp_path}/x"): "'absent' does not exist",
    (
      f"--checkpoint={small_run}",
      f"--out={tmp_path}/x",
      "--config.eval.smaples=2",
    ): "smaples",
    (f"--checkpoint={small_run}", f"--out={tmp_path}/x", "--set=math50"): "math500",
  }
  started = {words: start(*words) for words in refused}
  for words, process in started.items():
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 2, (words, errors)
    assert re.fullmatch(f"error: .*{refused[words]}.*\n", errors), (words, errors)
    assert not said
  assert not (tmp_path / "x").exists()
  said, errors = right.communicate(timeout=300)
  assert right.returncode == 0, errors
  for part in ("heldout (4 × 2)", "| **heldout** | 4 | 2 |", "an out/samples.jsonl"):
    assert part in said
  again = start(f"--checkpoint={small_run}", f"--out={out}", *settings)
  said, errors = again.communicate(timeout=300)
  assert again.returncode == 0, errors
  assert "done before" in said and "| **heldout** | 4 | 2 |" in said
