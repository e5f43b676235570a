#!/usr/bin/env bash
# Rehearses failures of a cluster on this machine, see cluster/rehearsal.py. `--short` is for CI.
set -euo pipefail
cd "$(dirname "$0")/.."
for python in "${PYTHON:-}" .venv/bin/python python3; do
  if [ -n "$python" ] && "$python" -c "import ray, mlflow, moto" 2>/dev/null; then
    exec "$python" cluster/rehearsal.py "$@"
  fi
done
echo "error: no Python with Ray, MLflow and moto; run \`make env\`, or set one: PYTHON=... $0" >&2
exit 1
