"""Run directories as a quick start and a recipe leave them, made of formulas in a
second.

`python tests/run_directory.py DIR [--recipe]` writes one to look at.
"""

import json
import math
import random
import sys
from pathlib import Path

from r1jax import trees

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
PROBLEMS = 24
EVAL_N = 512


def make(
  workdir,
  *,
  base_steps=400,
  steps=300,
  eval_every=20,
  attack=False,
  parts=("accuracy", "format"),
):
  """Writes the run; accuracy goes from about 31 to 95 % and length from 9 to 28.

  Args:
    attack: put ATTACK where a model, a data set or a config may put text.
  """
  workdir = Path(workdir)
  rng = random.Random(0)
  lines = [*_base(rng, base_steps), *_zero(rng, steps, eval_every, parts)]
  for i, line in enumerate(lines):
    line["time"] = 1.76e9 + 0.5 * i
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / "metrics.jsonl", "w") as f:
    f.writelines(json.dumps(line) + "\n" for line in lines)
  for step in range(0, steps + 1, eval_every):
    _samples(workdir, step, steps, attack)
  _config(workdir, attack)
  _settings(
    workdir,
    {
      "base": {"kind": "sft", "num_steps": base_steps, "init": ""},
      "zero": {"kind": "grpo", "num_steps": steps, "init": "base"},
    },
  )
  return workdir


# R1's recipe (arXiv 2501.12948) and two students of another model: settings that name
# their inputs.
RECIPE = {
  "base": {"kind": "sft", "num_steps": 200, "init": ""},
  "zero": {"kind": "grpo", "num_steps": 60, "init": "base"},
  "cold_data": {"kind": "rejection", "init": "zero"},
  "cold": {
    "kind": "sft",
    "num_steps": 40,
    "init": "base",
    "examples": {"stage": "cold_data"},
  },
  "at_cold": {"kind": "evaluation", "init": "cold"},
  "reasoning": {"kind": "grpo", "num_steps": 60, "init": "cold"},
  "sft_data": {"kind": "rejection", "init": "reasoning"},
  "sft": {
    "kind": "sft",
    "num_steps": 50,
    "init": "base",
    "examples": {"stage": "sft_data"},
  },
  "at_sft": {"kind": "evaluation", "init": "sft"},
  "pairs": {"kind": "pairs", "init": "sft"},
  "helpful": {
    "kind": "reward_model",
    "num_steps": 20,
    "init": "sft",
    "data": {"stage": "pairs"},
  },
  "safety_pairs": {"kind": "pairs", "init": "sft"},
  "safety": {
    "kind": "reward_model",
    "num_steps": 20,
    "init": "sft",
    "data": {"stage": "safety_pairs"},
  },
  "r1": {
    "kind": "grpo",
    "num_steps": 60,
    "init": "sft",
    "reward": {
      "models": {"helpfulness": {"stage": "helpful"}, "safety": {"stage": "safety"}}
    },
  },
}
SEEDS = (1, 2, 3)
STUDENT = {"depth": 2}
for _seed in SEEDS:
  RECIPE |= {
    f"student_{_seed}": {
      "kind": "sft",
      "num_steps": 100,
      "init": "",
      "examples": {"seed": _seed},
      "model": STUDENT,
    },
    f"student_rl_{_seed}": {
      "kind": "grpo",
      "num_steps": 60,
      "init": f"student_{_seed}",
      "model": STUDENT,
    },
    f"distilled_{_seed}": {
      "kind": "sft",
      "num_steps": 50,
      "init": f"student_{_seed}",
      "examples": {"stage": "sft_data"},
      "model": STUDENT,
    },
    f"at_distilled_{_seed}": {
      "kind": "evaluation",
      "init": f"distilled_{_seed}",
      "model": STUDENT,
    },
  }
# Held-out accuracy, in RL at its first and its last step.
ACCURACY = {
  "zero": (0.12, 0.71),
  "cold": (0.52,),
  "reasoning": (0.52, 0.83),
  "sft": (0.81,),
  "r1": (0.81, 0.87),
  **{f"student_rl_{seed}": (0.08, 0.29 + 0.01 * seed) for seed in SEEDS},
  **{f"distilled_{seed}": (0.6 + 0.02 * seed,) for seed in SEEDS},
}
SETS = {"heldout": 1.0, "longer": 0.7}


def recipe(workdir, stages=tuple(RECIPE), *, attack=False):
  """Writes a run of R1's recipe, or of some of its stages.

  Args:
    stages: names of RECIPE, each after its inputs.
    attack: put ATTACK where a model or a data set may put text.
  """
  workdir = Path(workdir)
  rng = random.Random(0)
  lines = []
  for name in stages:
    kind, steps = RECIPE[name]["kind"], RECIPE[name].get("num_steps", 1)
    own = []
    if kind in ("rejection", "pairs"):
      own = [_data_stage(workdir, name, kind, attack)]
    elif kind == "grpo":
      trained = _zero(rng, steps, 20, ("accuracy", "format", "language"))
      own = [line for line in trained if "reward/total" in line]
    elif kind != "evaluation":
      own = list(_base(rng, steps))
    if kind in ("grpo", "evaluation"):
      first, *last = ACCURACY[name.removeprefix("at_")]
      own.insert(0, {"step": 0 if last else 1, **_evaluated(first)})
      own += [{"step": steps, **_evaluated(accuracy)} for accuracy in last]
      for line, accuracy in ((own[0], first), *((own[-1], one) for one in last)):
        at = line["step"]
        _samples(workdir, at, steps, attack, stage=name, share=accuracy)
    lines += [line | {"stage": name} for line in own]
  for i, line in enumerate(lines):
    line["time"] = 1.76e9 + 0.5 * i
  with open(workdir / "metrics.jsonl", "w") as f:
    f.writelines(json.dumps(line) + "\n" for line in lines)
  _config(workdir, attack, stages=list(RECIPE))
  _settings(workdir, {name: RECIPE[name] for name in stages})
  return workdir


def _evaluated(accuracy):
  seen = {}
  for name, share in SETS.items():
    own = accuracy * share
    half = 1.96 * math.sqrt(own * (1 - own) / EVAL_N)
    seen |= {
      f"eval/{name}/accuracy": own,
      f"eval/{name}/accuracy_low": own - half,
      f"eval/{name}/accuracy_high": own + half,
      f"eval/{name}/length_mean": 9 + 20 * own,
      f"eval/{name}/format": 0.8 + 0.2 * accuracy,
      f"eval/{name}/truncated": 0.01 * (1 - accuracy),
      f"eval/{name}/n": EVAL_N,
    }
  return seen


def _data_stage(workdir, name, kind, attack):
  """What such a stage leaves in `data/NAME`; its line of metrics."""
  folder = workdir / "data" / name
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "made.jsonl").write_text('{"prompt": "q", "completion": "a"}\n' * 1612)
  text = ATTACK if attack else "<think>so</think>7"
  if kind == "pairs":
    dropped = [{"filter": "small_gap", "why": "gap 0.25", "responses": [text, "8"]}]
    counts = {"small_gap": 801, "no_verdict": 12, "duplicates": 0}
    more = {"pairs/answers": 4096, "pairs/kept": 1612}
  else:
    dropped = [
      {
        "filter": "wrong",
        "why": "accuracy 0",
        "prompt": f"2 a{i} = ?",
        "completion": text,
      }
      for i in range(5)
    ] + [
      {"filter": "code_blocks", "why": "2 above 0", "prompt": "q", "completion": "```"}
    ]
    counts = {"wrong": 6412, "code_blocks": 31, "low_language": 122, "duplicates": 0}
    more = {
      "rejection/answers": 8192,
      "rejection/kept": 1505,
      "rejection/set_size": 1612,
      "rejection/size_maths": 1505,
      "rejection/tokens_maths": 28.4,
      "rejection/size_general": 107,
      "rejection/tokens_general": 11.5,
    }
  text = "".join(json.dumps(line) + "\n" for line in dropped)
  (folder / "dropped.jsonl").write_text(text)
  counts = {f"{kind}/dropped_{reason}": count for reason, count in counts.items()}
  return {"step": 1, "stage": name, "rollout/length_mean": 22.5, **more, **counts}


def _settings(workdir, stages):
  """`settings.json` of each stage, with digests of its inputs as the command has."""
  digests = {}
  for name, own in stages.items():
    model = {"depth": 4, "width": 128} | own.get("model", {})
    settings = {**own, "seed": 0, "model": model}
    settings["input"] = {"model": trees.digest("''")}
    for key, stage in _inputs(own):
      settings["input"][key] = digests[stage]
    digests[name] = trees.digest(json.dumps(settings, sort_keys=True))
    is_data = "num_steps" not in own
    folder = workdir / ("data" if is_data else "checkpoints") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings, indent=2))


def _inputs(settings, prefix=""):
  for key, value in settings.items():
    if isinstance(value, dict):
      yield from _inputs(value, f"{prefix}{key}.")
    elif key in ("init", "stage") and value:
      yield f"{prefix}{key}", value


def _base(rng, steps):
  for step in range(1, steps + 1):
    yield {
      "step": step,
      "stage": "base",
      "loss/cross_entropy": 0.42 + 3.2 * math.exp(-step / 40) + rng.gauss(0, 0.02),
      "optim/grad_norm": 0.3 + math.exp(-step / 60) + abs(rng.gauss(0, 0.05)),
      "optim/lr": 2e-3 * min(1, step / 40) * (1 - step / (steps + 1)),
      "update/tokens_per_s": 17_000 + rng.gauss(0, 300),
      "time/step_s": 0.24 + (6.0 if step == 1 else 0) + abs(rng.gauss(0, 0.01)),
      "time/update_s": 0.22 + (5.9 if step == 1 else 0),
    }


def _zero(rng, steps, eval_every, parts):
  for step in range(steps + 1):
    done = 1 / (1 + math.exp(-(step / steps - 0.4) * 12))
    accuracy = 0.31 + 0.645 * done
    if step > 0:
      noisy = min(1.0, max(0.0, accuracy - 0.04 + rng.gauss(0, 0.03)))
      form = min(1.0, 0.86 + 0.14 * done + rng.gauss(0, 0.01))
      rollout = 0.5 + 0.4 * done + abs(rng.gauss(0, 0.03))
      save = 0.6 if step % 50 == 0 else 0.0
      shares = {"accuracy": noisy, "format": form}
      yield {
        "step": step,
        "stage": "zero",
        "reward/total": noisy + 0.1 * form,
        **{f"reward/{p}": shares.get(p, rng.random()) for p in parts},
        "rollout/length_mean": 9 + 18.5 * done + rng.gauss(0, 0.6),
        "rollout/truncated": max(0.0, 0.02 * (1 - done) + rng.gauss(0, 0.004)),
        "rollout/tokens_per_s": 5200 + 900 * done + rng.gauss(0, 150),
        "rollout/tokens_per_s_per_device": 5200 + 900 * done,
        "rollout/share_of_limit": 0.11 + 0.03 * done + rng.gauss(0, 0.004),
        "update/share_of_limit": 0.2 + rng.gauss(0, 0.004),
        "rollout/idle_share": 0.12 * (1 - 0.6 * done),
        "rollout/idle_slot_steps": int(900 * (1 - 0.6 * done) + rng.gauss(0, 60)),
        "group/solved_all": min(1, max(0, 0.05 + 0.7 * done + rng.gauss(0, 0.03))),
        "group/solved_none": max(0, 0.3 * (1 - done) + rng.gauss(0, 0.02)),
        "loss/policy": rng.gauss(0, 0.004) - 0.002,
        "loss/kl": 0.0004 + 0.02 * done * (1 + 0.2 * rng.random()),
        "policy/entropy": 0.06 + 0.35 * (1 - done) + abs(rng.gauss(0, 0.01)),
        "policy/clip_fraction": abs(rng.gauss(0.004, 0.003)),
        "policy/logp_gap_mean": 4e-7 * math.exp(rng.gauss(0, 0.2)),
        "policy/logp_gap_max": 2.5e-4 * math.exp(rng.gauss(0, 0.4)),
        "optim/grad_norm": 0.4 + 0.4 * (1 - done) + abs(rng.gauss(0, 0.08)),
        "optim/lr": 3e-4 * min(1, step / 10),
        "time/step_s": rollout + 0.05 + 0.1 + 0.35 + save + 0.02,
        "time/rollout_s": rollout,
        "time/reward_s": 0.05,
        "time/score_s": 0.1,
        "time/update_s": 0.35,
        **({"time/save_s": save} if save else {}),
        "compile/count": 6,
        "pack/waste": 0.08 + abs(rng.gauss(0, 0.01)),
      }
    if step % eval_every == 0:
      half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / EVAL_N)
      yield {
        "step": step,
        "stage": "zero",
        "eval/heldout/accuracy": accuracy,
        "eval/heldout/accuracy_low": accuracy - half,
        "eval/heldout/accuracy_high": min(1, accuracy + 0.9 * half),
        "eval/heldout/length_mean": 9.2 + 18.6 * done,
        "eval/heldout/format": 0.87 + 0.13 * done,
        "eval/heldout/truncated": 0.01 * (1 - done),
        "eval/heldout/n": EVAL_N,
      }


def _chain(rng):
  value = rng.randrange(10)
  ops = [(rng.choice("+-*"), rng.choice((3, 7, 9))) for _ in range(4)]
  question = f"{value} " + " ".join(
    f"{'abcd'[i]}{op}{x}" for i, (op, x) in enumerate(ops)
  )
  worked = []
  for i, (op, x) in enumerate(ops):
    value = {"+": value + x, "-": value - x, "*": value * x}[op] % 10
    worked.append(f"{'abcd'[i]}{op}{x}={value}")
  return f"{question} = ?", worked, value


def _samples(workdir, step, steps, attack, *, stage="zero", share=None):
  """Answers of an evaluation; `share` of them are right, by default the later more."""
  problems = random.Random(1)
  draws = random.Random(step)
  folder = workdir / "samples" / stage
  folder.mkdir(parents=True, exist_ok=True)
  records = []
  for i in range(PROBLEMS):
    question, worked, gold = _chain(problems)
    done = step / steps
    thinks = draws.random() < 0.15 + 1.1 * done
    is_right = draws.random() < (0.3 + 0.67 * done if share is None else share)
    answer = gold if is_right else (gold + 1 + draws.randrange(8)) % 10
    shown = [*worked[:-1], f"{worked[-1][:-1]}{answer}"]
    completion = f"<think>{' '.join(shown)}</think>" if thinks else ""
    completion += f"<answer>{answer}</answer>"
    stop = "eos"
    if i == 2 and step == 0:
      completion, stop, is_right = "<think>" + " ".join(worked * 9), "length", False
    if attack and i == 0:
      completion = f"<think>{ATTACK}\x00\x1b[31m\ud800</think>{ATTACK}{completion}"
      question = f"{ATTACK} {question}"
    form = float(stop == "eos")
    records.append(
      {
        "step": step,
        "stage": stage,
        "problem_id": ATTACK if attack and i == 0 else f"op_chain/{1000 + i}",
        "sample": 0,
        "prompt": question,
        "completion": completion,
        "answer": str(gold),
        "length": len(completion) // 3 + 1,
        "stop": stop,
        "reward": {
          "total": is_right + 0.1 * form,
          "accuracy": float(is_right),
          "format": form,
        },
        "seed": 0,
      }
    )
  name = f"eval_heldout_{step:06d}.jsonl"
  (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))


def _config(workdir, attack, *, stages=("base", "zero")):
  config = {
    "stages": stages,
    "seed": 0,
    "model": {"depth": 4, "width": 128, "heads": 4, "kv_heads": 2, "vocab": 96},
    "data": {"task": "op_chain", "task_args": {"min_steps": 4, "max_steps": 4}},
    "zero": {"num_steps": 300, "group_size": 16, "prompts": 32, "optim": {"lr": 3e-4}},
    "note": ATTACK if attack else "",
  }
  facts = {
    "config": config,
    "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8", "r1jax": "0.1"},
    "git": "f40eab2c0ffee0123456789abcdef0123456789a",
    "devices": ["TFRT_CPU_0"],
    "mesh": {"data": 1, "fsdp": 1, "tp": 1},
    "num_params": 1_064_832,
    "command": "python -m r1jax.train --config=configs/quickstart.py "
    "--workdir=runs/quickstart",
  }
  (workdir / "config.json").write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
  write = recipe if "--recipe" in sys.argv else make
  write(sys.argv[1], attack="--attack" in sys.argv)
