#!/usr/bin/env bash
# Nine algorithms on the quick start's model, three seeds, one figure with intervals.
#
#   bash launch/compare.sh [folder=runs/comparison] [--config.key=value ...]
#
# Runs configs/comparison.py with the seeds 0, 1 and 2 in FOLDER/seed0 to seed2, then
# r1jax.compare, which writes FOLDER/comparison.png, .svg, .md and .json. All that is
# said goes to FOLDER/log.txt too. What the stages share is compiled once, into
# FOLDER/compiled. Ctrl-C saves, and the same command continues. Needs `python` with
# r1jax and matplotlib (`pip install -e '.[test]'`).
set -euo pipefail

if [[ ${1:-} == -* ]]; then
  echo "usage: $0 [folder] [--config.key=value ...]" >&2
  exit 2
fi
folder="${1:-runs/comparison}"
mkdir -p "$folder"
export JAX_COMPILATION_CACHE_DIR="$folder/compiled"

logged() {
  # Ctrl-C is for the run alone, whose last words are to be kept.
  "$@" 2>&1 | tee -ai "$folder/log.txt"
}

runs=()
for seed in 0 1 2; do
  runs+=("$folder/seed$seed")
  logged python -m r1jax.train --config=configs/comparison.py \
    --workdir="$folder/seed$seed" --config.seed="$seed" "${@:2}"
done
logged python -m r1jax.compare "${runs[@]}" --out="$folder"
