"""Did the quick start reach what the README says of it?

    python .ci/quickstart_figure.py RUN_DIRECTORY

Prints the first and last evaluation; exit code 1 and a line for each miss.
"""

import json
import pathlib
import sys

MIN_ACCURACY = 0.9
MIN_GAIN = 2.0
MIN_PROBLEMS = 500


def figures(lines):
  """(accuracy, mean length, problems) of each evaluation of the stage `zero`."""
  found = []
  for line in lines:
    names = [
      key for key in line if key.startswith("eval/") and key.endswith("/accuracy")
    ]
    if line["stage"] == "zero" and names:
      prefix = names[0].removesuffix("accuracy")
      found.append(
        tuple(line[prefix + key] for key in ("accuracy", "length_mean", "n"))
      )
  return found


def misses(found):
  """What the evaluations lack, in words; empty where the figure was reached."""
  if len(found) < 2:
    return [f"{len(found)} evaluations of the stage zero; at least 2 are needed"]
  (first, first_length, _), (last, last_length, num_problems) = found[0], found[-1]
  said = []
  if last < MIN_ACCURACY:
    said.append(f"accuracy ends at {last:.1%}, below {MIN_ACCURACY:.0%}")
  if last < MIN_GAIN * first:
    said.append(f"accuracy went from {first:.1%} to {last:.1%}, less than doubled")
  if last_length <= first_length:
    said.append(f"mean length went from {first_length:.1f} to {last_length:.1f} tokens")
  if num_problems < MIN_PROBLEMS:
    said.append(f"{num_problems} held-out problems, fewer than {MIN_PROBLEMS}")
  return said


def main(workdir):
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text(encoding="utf-8")
  found = figures(map(json.loads, text.splitlines()))
  for name, figure in zip(("first", "last"), (found[:1], found[-1:]), strict=True):
    for accuracy, length, num_problems in figure:
      print(
        f"{name}: accuracy {accuracy:.1%}, mean length {length:.1f} tokens, "
        f"{num_problems} problems"
      )
  said = misses(found)
  print("\n".join(f"missed: {line}" for line in said) or "reached")
  return bool(said)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1]))
