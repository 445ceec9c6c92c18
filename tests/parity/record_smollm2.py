"""Cuts the reference outputs down to what is small enough to keep with the tests.

  python tests/parity/record_smollm2.py FOLDER > tests/parity/smollm2_135m.json

FOLDER holds smollm2_135m.json and smollm2_135m_float32.npz: SmolLM2-135M-Instruct with
the weights of the Q4_1 GGUF file dequantised, run in float32 by transformers 5.23 with
torch 2.13 on CPU. The numbers are theirs, not ours: record again only when those are
made anew.
"""

import json
import pathlib
import sys

import numpy as np

PROMPTS = ("plain", "math")
NUM_SPREAD = 24  # vocabulary entries at equal distances
NUM_TOP = 8  # and the most probable ones


def main(folder: pathlib.Path) -> None:
  texts = json.loads((folder / "smollm2_135m.json").read_text(encoding="utf-8"))
  recorded = {}
  with np.load(folder / "smollm2_135m_float32.npz") as arrays:
    for name in PROMPTS:
      ids, logits = arrays[f"{name}_ids"], arrays[f"{name}_logits"]
      spread = np.linspace(0, logits.shape[1] - 1, NUM_SPREAD).astype(int)
      positions = {}
      for position in (0, len(ids) // 2, len(ids) - 1):
        row = logits[position]
        entries = np.union1d(spread, np.argsort(-row, kind="stable")[:NUM_TOP])
        positions[position] = {int(v): round(float(row[v]), 5) for v in entries}
      recorded[name] = {
        "text": texts[name]["text"],
        "greedy_text": texts[name]["greedy_text"],
        "ids": ids.tolist(),
        "logsumexp": [round(float(x), 5) for x in arrays[f"{name}_logsumexp"]],
        "argmax": arrays[f"{name}_argmax"].tolist(),
        "greedy64": arrays[f"{name}_greedy64"].tolist(),
        "logits": positions,
      }
  json.dump(recorded, sys.stdout, indent=1, ensure_ascii=False)
  print()


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
