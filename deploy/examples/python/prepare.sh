#!/usr/bin/env bash
# Prepares the Python environment of the example.
#
#   prepare.sh VENV       a virtual environment with grpcio, and VENV/stub with the generated stub
#   prepare.sh VENV APP   also a folder with all that the example needs, for an image with Python 3.11
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
proto=$here/../../../node/api/proto
venv=$1 app=${2:-}

wanted=$(cat "$here"/requirements*.txt)
if [ "$wanted" != "$(cat "$venv/ready" 2>/dev/null)" ]; then
    printf 'Installing grpcio into %s\n' "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements-stub.txt"
    printf '%s\n' "$wanted" >"$venv/ready"
fi

generate() { # folder
    mkdir -p "$1"
    "$venv/bin/python" -m grpc_tools.protoc -I "$proto" --python_out="$1" --grpc_python_out="$1" shardkv/v1/kv.proto
}
generate "$venv/stub"

if [ -n "$app" ]; then
    rm -rf "$app"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --target "$app" \
        --python-version 3.11 --only-binary=:all: -r "$here/requirements.txt"
    generate "$app"
    cp "$here/client.py" "$here/example.py" "$app"
fi
