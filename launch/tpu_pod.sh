#!/usr/bin/env bash
# A run on all hosts of a Cloud TPU VM slice. Not run by us: there was no pod.
#
#   bash launch/tpu_pod.sh NAME ZONE --config=configs/NAME.py --workdir=/mnt/shared/runs/NAME
#
# Needs: `gcloud` logged in, and a slice that exists and is READY, for instance by
#   gcloud compute tpus queued-resources create NAME --node-id=NAME --zone=ZONE \
#     --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite
# and a folder that all its hosts have mounted (NFS, Filestore) as the workdir.
#
# Copies this checkout to every host, installs it there with Python 3.11 in
# ~/r1jax/.venv, and starts the same command on every host; jax.distributed finds the
# others by itself. The same command again continues the run: after a preemption, make
# the slice again under the same name and repeat it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $# -lt 4 ]]; then
  echo "usage: $0 NAME ZONE --config=FILE --workdir=DIR [--config.key=value ...]" >&2
  exit 2
fi
name="$1" zone="$2"
shift 2

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

code="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$code"' EXIT
git ls-files -z | tar --null --files-from=- -czf "$code"
gcloud compute tpus tpu-vm scp "$code" "$name:r1jax.tar.gz" --zone="$zone" --worker=all

on_all 'set -e
  mkdir -p ~/r1jax && tar -xzf ~/r1jax.tar.gz -C ~/r1jax && cd ~/r1jax
  python3 -m pip install --quiet --user uv
  [ -d .venv ] || ~/.local/bin/uv venv --quiet --python 3.11 .venv
  ~/.local/bin/uv pip install --quiet -e ".[tpu]"'

# Each argument is quoted again for the shell on the other side.
on_all "cd ~/r1jax && R1JAX_COORDINATOR=auto .venv/bin/python -m r1jax.train ${*@Q}"
