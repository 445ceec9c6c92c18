"""A run directory as a quick start leaves it, made of formulas in a second.

`python tests/run_directory.py DIR` writes one to look at.
"""

import json
import math
import random
import sys
from pathlib import Path

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
  return workdir


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


def _samples(workdir, step, steps, attack):
  problems = random.Random(1)
  draws = random.Random(step)
  folder = workdir / "samples" / "zero"
  folder.mkdir(parents=True, exist_ok=True)
  records = []
  for i in range(PROBLEMS):
    question, worked, gold = _chain(problems)
    share = step / steps
    thinks = draws.random() < 0.15 + 1.1 * share
    is_right = draws.random() < (0.3 + 0.67 * share)
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
        "stage": "zero",
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


def _config(workdir, attack):
  config = {
    "stages": ["base", "zero"],
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
  make(sys.argv[1], attack="--attack" in sys.argv)
