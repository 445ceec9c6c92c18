"""Runs of configs/comparison.py, as far as r1jax.compare reads them, by formula."""

import json

from configs import comparison

PROBLEMS = 510


def make(workdir, *, seed=0, offset=0.0, config=None):
  """Writes config.json and metrics.jsonl of a run.

  A step takes 2 s, an evaluation within one 1 s more; answers have 10 tokens. Accuracy
  rises by a half over the budget, from 0.25 + offset; that of "ppo" by a quarter. Of
  "dapo" every second step draws twice.
  """
  config = comparison.get_config() if config is None else config
  config.seed = seed
  plain = json.loads(config.to_json_best_effort())
  lines = [{"step": 1, "stage": "base", "loss/cross_entropy": 1.0, "time/step_s": 2.0}]
  for name in plain["stages"][1:]:
    lines += _stage(name, plain[name], offset)
  workdir.mkdir(parents=True)
  (workdir / "config.json").write_text(json.dumps({"config": plain}))
  write(workdir, lines)
  return workdir


def write(workdir, lines):
  with open(workdir / "metrics.jsonl", "w") as file:
    file.writelines(json.dumps({"time": 0.0} | line) + "\n" for line in lines)


def _stage(name, settings, offset):
  rollout = settings["rollout"]
  answers = 0

  def evaluation():
    rise = 0.25 if name == "ppo" else 0.5
    accuracy = 0.25 + offset + rise * answers / comparison.ANSWERS
    return {"eval/heldout/accuracy": accuracy, "eval/heldout/n": PROBLEMS}

  yield {"step": 0, "stage": name, "time/eval_s": 1.0, **evaluation()}
  for step in range(1, settings["num_steps"] + 1):
    line = {"step": step, "stage": name, "time/step_s": 2.0}
    if settings["kind"] == "expert":
      place = (step - 1) % settings["round_steps"]
      if place == 0:
        drawn = settings["data"]["size"] * rollout["group_size"]
        answers += drawn
        line |= {"expert/answers": drawn, "rollout/length_mean": 10.0}
      if place == settings["round_steps"] - 1:
        line |= {"time/step_s": 3.0, "time/eval_s": 1.0, **evaluation()}
      yield line
      continue
    asked = rollout["prompts"]
    if settings["filter"]["kind"] != "none":
      asked *= 1 + step % 2
      line["filter/asked"] = asked
    answers += asked * rollout["group_size"]
    yield line | {"rollout/length_mean": 10.0}
    if step % settings["eval"]["every"] == 0:
      yield {"step": step, "stage": name, "time/eval_s": 1.0, **evaluation()}
