#!/usr/bin/env bash
# Runs the example against the cluster at SHARDKV_ENDPOINTS. Installs grpcio into VENV=DIR once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
venv=${VENV:-$root/target/python}

"$here/prepare.sh" "$venv"
PYTHONPATH=$venv/stub "$venv/bin/python" "$here/example.py" "$root/node/types/src/hash_vectors.tsv"
