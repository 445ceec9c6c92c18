#!/usr/bin/env bash
# Several processes on this machine in the place of several hosts, on CPU: to try a
# multi-host run before there is a pod.
#
#   bash launch/local_processes.sh 2 --config=configs/quickstart.py --workdir=runs/two
#
# The first argument is the number of processes, the others go to r1jax.train as they
# are. Needs `python` with r1jax (`. .venv/bin/activate`). Process 0 talks on this
# terminal; of the others, which say the same, only errors appear. The first process
# that fails ends all. Ctrl-C and SIGTERM go to all of them, so the run saves; the same
# command again continues it.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 NUM_PROCESSES --config=FILE --workdir=DIR [--config.key=value ...]" >&2
  exit 2
fi
num="$1"
shift

port="$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"
export R1JAX_COORDINATOR="localhost:$port" R1JAX_NUM_PROCESSES="$num" JAX_PLATFORMS=cpu

pids=()
for ((id = 0; id < num; id++)); do
  if ((id == 0)); then
    R1JAX_PROCESS_ID=$id python -m r1jax.train "$@" &
  else
    R1JAX_PROCESS_ID=$id python -m r1jax.train "$@" >/dev/null &
  fi
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM

status=0
while ((${#pids[@]} > 0)); do
  sleep 0.2
  for id in "${!pids[@]}"; do
    if kill -0 "${pids[id]}" 2>/dev/null; then continue; fi
    code=0
    wait "${pids[id]}" || code=$?
    unset "pids[id]"
    if ((code != 0 && status == 0)); then
      status=$code
      # The others would wait for it in their next collective operation.
      ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
  done
done
exit "$status"
