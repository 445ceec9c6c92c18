"""The command as a user meets it: what it refuses, what it leaves and keeps."""

import html
import json
import re
import shlex
import shutil
import signal

import pytest
from ml_collections import ConfigDict

from configs import common
from r1jax import metrics
from r1jax.data.tokenizer import train_sentencepiece
from r1jax.errors import InputError
from r1jax.models.presets import PRESETS
from r1jax.train import train as train_here
from r1jax.weights import hf_config
from tests import small_run as config_file

# What design.md promises to those who read metrics.jsonl.
STEP = {
  *("reward/total", "reward/accuracy", "reward/format", "group/solved_all"),
  *("group/solved_none", "rollout/length_mean", "rollout/truncated"),
  *("rollout/tokens_per_s", "rollout/idle_slot_steps", "loss/policy", "loss/kl"),
  *("rollout/tokens_per_s_per_device", "rollout/share_of_limit", "rollout/idle_share"),
  *("update/tokens_per_s", "update/tokens_per_s_per_device", "update/share_of_limit"),
  *("policy/entropy", "policy/clip_fraction", "policy/logp_gap_mean"),
  *("policy/logp_gap_max", "optim/grad_norm", "optim/lr", "time/step_s"),
  *("time/rollout_s", "time/reward_s", "time/score_s", "time/update_s"),
  "compile/count",
}
EVALUATION = ("accuracy", "accuracy_low", "accuracy_high", "length_mean", "format", "n")

# Words of a command, and what its one line says.
REFUSED = {
  "key": ("--config.sead=3", "no such setting: 'sead'.*\"seed\""),
  "key_of_a_stage": ("--config.zero.optim.zzz=3", "no such setting: 'zzz'"),
  "type": ("--config.zero.num_steps=many", r"zero\.num_steps=many.*int"),
  "config_file": ("--config=configs/quickstat.py", r"configs/quickstat\.py.*No such"),
  "workdir": ("--workdir=", "--workdir=DIR is needed"),
  "variant": ("--config=configs/quickstart.py:x", "FILE:x: no such variant"),
}


def test_bad_input_is_one_line_and_exit_code_2(train, tmp_path):
  """All started at once."""
  started = {
    name: train(f"--workdir={tmp_path / name}", words)
    for name, (words, _) in REFUSED.items()
  }
  for name, process in started.items():
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 2, (name, errors)
    assert re.fullmatch(f"error: .*{REFUSED[name][1]}.*\n", errors), (name, errors)
    assert not out
  assert not list(tmp_path.iterdir())


# ------------------------------------------------------------- refused, in this process


@pytest.fixture(name="config")
def _config(small_run):
  """The stage `zero` of the small run alone, from fresh weights."""
  before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
  c = config_file.get_config()
  c.stages = ("zero",)
  c.zero.init = ""
  (c.tokenizer.path,) = map(str, (small_run / "tokenizer").iterdir())
  yield c
  for number, handler in before.items():
    signal.signal(number, handler)


def refusal(config, workdir):
  with pytest.raises(InputError) as caught:
    train_here(config, str(workdir))
  assert "\n" not in str(caught.value)
  return str(caught.value)


def jsonl(path, *lines, **settings):
  path.write_text("".join(f"{line}\n" for line in lines))
  return ConfigDict({"source": "jsonl", "path": str(path), **settings})


def test_missing_model_file(config, tmp_path):
  config.tokenizer.path = ""
  config.model.path = "/absent.gguf"
  text = refusal(config, tmp_path)
  assert text.startswith("config.model.path: '/absent.gguf' does not exist; give a")


def test_tokenizer_of_another_model(config, tmp_path):
  model = tmp_path / "model"
  train_sentencepiece(["ab"], path=model / "tokenizer.model")
  (model / "config.json").write_text(
    json.dumps(hf_config.config_to_hf(PRESETS["tiny"]))
  )
  config.model.path = str(model)
  assert re.search(
    r"config\.tokenizer\.path='.*' is not the vocabulary of the model in '.*/model'",
    refusal(config, tmp_path / "run"),
  )


def test_tokenizer_larger_than_the_model(config, tmp_path):
  config.model.shape = ConfigDict({"vocab": 16})
  assert re.search(
    r"has \d+ pieces and the model 16 .*config\.tokenizer\.path",
    refusal(config, tmp_path),
  )


def test_prompt_longer_than_its_bucket(config, tmp_path):
  config.zero.rollout.prompt_length = 12
  assert re.search(
    r"longer than config\.zero\.rollout\.prompt_length=12; the longest, of problem "
    r"'op_chain/train/.*raise config\.zero\.rollout\.prompt_length to 13",
    refusal(config, tmp_path),
  )


def test_empty_data(config, tmp_path):
  config.zero.data = jsonl(tmp_path / "a.jsonl")
  assert re.search(
    r"data set is empty: .*config\.zero\.data\.path=.*/a\.jsonl",
    refusal(config, tmp_path / "run"),
  )


def test_bad_line_of_data(config, tmp_path):
  config.zero.data = jsonl(tmp_path / "a.jsonl", '{"prompt": "1", "answer": "1"}', "{")
  text = refusal(config, tmp_path / "run")
  assert text.startswith(f"{tmp_path}/a.jsonl:2: ")
  assert "--config.zero.data.on_bad_line=skip" in text


def test_verifier_that_cannot_judge_the_data(config, tmp_path):
  lines = [f'{{"prompt": "{n} a+1 = ?", "answer": "{n + 1}"}}' for n in range(8)]
  config.zero.data = jsonl(tmp_path / "a.jsonl", *lines, verifier="reasoning_gym")
  assert re.search(
    r"problem 'a/1': the verifier 'reasoning_gym' needs meta .*entry.* set "
    r"config\.zero\.data\.verifier",
    refusal(config, tmp_path / "run"),
  )


def test_mesh_that_does_not_fit(config, tmp_path):
  config.mesh.fsdp = 3
  assert re.search(r"'fsdp': 3.*change config\.mesh", refusal(config, tmp_path))


def test_steps_to_trace_that_there_are_not(config, tmp_path):
  config.profile.steps = (2, 6)
  assert refusal(config, tmp_path) == (
    "config.profile.steps=(2, 6): must be numbers of steps, 1 to 5"
  )


def test_keys_are_named_where_the_config_has_them(config, tmp_path):
  config.zero.optim.eps = 0.0
  assert refusal(config, tmp_path / "own").startswith("config.zero.optim.eps=0.0")
  config.optim = config.zero.optim
  del config.zero.optim
  assert refusal(config, tmp_path / "shared").startswith("config.optim.eps=0.0")


# What a later stage would only say when it draws, evaluates or is updated.
LATER = {
  "rollout.draft": (
    "ngram",
    r"config\.zero\.rollout\.draft='ngram' and draft_tokens=0",
  ),
  "rollout.stop_strings": (("",), r"config\.zero\.rollout\.stop_strings=\[''\]"),
  "rollout.max_tokens": (0, r"config\.zero\.rollout\.max_tokens=0"),
  "rollout.cache": ("int4", r"config\.zero\.rollout\.cache='int4'"),
  "eval.repetition_penalty": (0.0, r"config\.zero\.eval\.repetition_penalty=0\.0"),
  "eval.stop_strings": (("",), r"config\.zero\.eval\.stop_strings=\[''\]"),
  "eval.samples": (0, r"config\.zero\.eval\.samples=0: must be 1 or more"),
  "eval.max_tokens": (10**6, r"config\.zero\.eval\.max_tokens=1000000 add up"),
  "loss.correction_cap": (-1.0, r"config\.zero\.loss\.correction_cap=-1\.0"),
  "loss.surrogate": ("dual_clip", r"config\.zero\.loss\.clip_dual=None"),
  "training.epochs": (0, r"config\.zero\.training\.epochs=0"),
  "critic.clip": (-1.0, r"config\.zero\.critic\.clip=-1\.0"),
  "critic.optim.b1": (1.0, r"config\.zero\.critic\.optim\.b1=1\.0"),
}


@pytest.mark.parametrize("key", LATER)
def test_mistakes_in_a_later_stage_come_before_any_stage_runs(
  key, config, small_run, tmp_path
):
  value, said = LATER[key]
  if key.startswith("critic"):
    config.zero.update(common.recipe("ppo"))
  config.update_from_flattened_dict({f"zero.{key}": value})
  config.stages = ("base", "zero")
  assert re.search(said, refusal(config, tmp_path))
  assert not (tmp_path / "checkpoints").exists()


def test_workdir_that_is_no_folder(config, tmp_path):
  (tmp_path / "file").write_text("")
  for workdir in (tmp_path / "file", tmp_path / "file" / "run", "gs://bucket/run"):
    assert refusal(config, workdir).startswith(f"--workdir={workdir}: ")


def test_workdir_of_another_config(config, small_run, tmp_path):
  shutil.copytree(small_run, tmp_path, dirs_exist_ok=True)
  assert "with the stages base; this one has zero" in refusal(config, tmp_path)
  whole = config_file.get_config()
  whole.zero.loss.kl_coef = 0.5
  text = refusal(whole, tmp_path)
  assert "stage 'zero' of another config: loss.kl_coef was 0.1 and is now 0.5" in text
  assert "--config.on_change=rerun" in text
  whole.seed = 7
  assert "stage 'base' of another config: seed was 0 and is now 7" in refusal(
    whole, tmp_path
  )
  assert metrics.read(tmp_path) == metrics.read(small_run)


# ---------------------------------------------------------------------- a finished run


def lines_of(folder, stage, key):
  return [
    line for line in metrics.read(folder) if line["stage"] == stage and key in line
  ]


def test_every_line_has_the_names_that_scripts_read(small_run):
  """R14, R22, R23."""
  steps = lines_of(small_run, "zero", "reward/total")
  assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
  for line in steps:
    assert line.keys() >= STEP
  evaluations = lines_of(small_run, "zero", "eval/heldout/accuracy")
  assert [line["step"] for line in evaluations] == [0, 2, 4, 5]
  for line in evaluations:
    assert line.keys() >= {f"eval/heldout/{name}" for name in EVALUATION}
  supervised = lines_of(small_run, "base", "loss/cross_entropy")
  assert [line["step"] for line in supervised] == list(range(1, 41))


def test_nothing_compiles_after_the_first_step(small_run):
  """R12, R20: answers, rows and microbatches differ in number and length."""
  for stage, key, varies in (
    ("base", "loss/cross_entropy", "update/tokens_per_s"),
    ("zero", "loss/policy", "pack/waste"),
  ):
    lines = lines_of(small_run, stage, key)
    assert len({line[varies] for line in lines}) > 2
    counts = {line["compile/count"] for line in lines}
    assert len(counts) == 1 and counts.pop() > 0


def test_every_answer_is_kept(small_run):
  """R16, R22: with what is needed to draw it again."""
  folder = small_run / "samples" / "zero"
  names = [f"train_{step:06d}" for step in range(1, 6)]
  names += [f"eval_heldout_{step:06d}" for step in (0, 2, 4, 5)]
  assert {path.stem for path in folder.iterdir()} == set(names)
  for name in names:
    text = (folder / f"{name}.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == (8 if "train" in name else 4)
    for line in lines:
      assert line["stop"] in ("eos", "length") and 1 <= line["length"] <= 12
      assert line["reward"].keys() == {"total", "accuracy", "format"}
      assert line["seed"] == 0 and f"_{line['step']:06d}" in name
      assert ("advantage" in line) == ("train" in name)


def test_config_json_is_enough_to_run_it_again(small_run):
  facts = json.loads((small_run / "config.json").read_text())
  assert facts["config"] == json.loads(json.dumps(config_file.get_config().to_dict()))
  words = shlex.split(facts["command"])
  assert words[:3] == ["python", "-m", "r1jax.train"]
  assert words[3:] == ["--config=tests/small_run.py", f"--workdir={small_run}"]
  assert facts["num_params"] == 2608 and len(facts["devices"]) == 1
  assert facts["versions"].keys() >= {"python", "jax", "r1jax"}
  page = (small_run / "report.html").read_text()
  assert "2.61 k" in page and f"jax&nbsp;{facts['versions']['jax']}" in page
  assert facts["command"] in html.unescape(page) and "zero.loss.kl_coef" in page


def test_a_finished_run_is_left_alone(train, small_run, tmp_path):
  shutil.copytree(small_run, tmp_path, dirs_exist_ok=True)
  process = train(f"--workdir={tmp_path}")
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 0
  for stage in ("base", "zero"):
    assert f"{stage}: done before with these settings, kept\n" in out
  before = (small_run / "metrics.jsonl").read_bytes()
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_rerun_repeats_what_changed_and_no_more(train, small_run, tmp_path):
  shutil.copytree(small_run, tmp_path, dirs_exist_ok=True)
  process = train(
    f"--workdir={tmp_path}",
    "--config.zero.reward.weights.format=2.0",
    "--config.zero.num_steps=3",
    "--config.zero.eval.every=0",
    "--config.on_change=rerun",
  )
  out, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  assert "base: done before with these settings, kept\n" in out
  assert "zero: runs again, since num_steps was 5 and is now 3; reward.weights" in out
  before, now = (lines_of(folder, "base", "step") for folder in (small_run, tmp_path))
  assert now == before
  assert [line["step"] for line in lines_of(tmp_path, "zero", "step")] == [
    0,
    1,
    2,
    3,
    3,
  ]
  samples = {path.stem for path in (tmp_path / "samples" / "zero").iterdir()}
  assert samples == {f"train_{step:06d}" for step in (1, 2, 3)} | {
    f"eval_heldout_{step:06d}" for step in (0, 3)
  }


@pytest.mark.slow
def test_settings_that_may_differ_change_no_number(train, small_run, tmp_path):
  """R21: how many are answered at a time, and by how many processes judged."""
  process = train(
    f"--workdir={tmp_path}",
    "--config.zero.eval.batch=3",
    "--config.zero.eval.slots=2",
    "--config.zero.reward.num_workers=2",
  )
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  assert config_file.numbers(tmp_path) == config_file.numbers(small_run)
