#!/usr/bin/env bash
# Runs the Python example against a playground of two groups, through each node alone. `make example-python` builds what it
# needs and runs it. VENV=DIR is where grpcio is installed; that happens once.
set -euo pipefail
cd "$(dirname "$0")"

venv=${VENV:-../../../target/python}
if ! [ -e "$venv/ready" ] || ! cmp -s requirements.txt "$venv/ready"; then
    printf 'Installing grpcio into %s\n' "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$venv/ready"
fi

work=$(mktemp -d -t shardkv-example.XXXXXX)
export SHARDKV_PLAYGROUND_DIR=$work/cluster
playground=""
clean_up() {
    local code=$?
    if [ -n "$playground" ]; then
        shardkv playground down 2>/dev/null || kill "$playground" 2>/dev/null || true
        wait "$playground" || true
    fi
    rm -rf "$work"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

shardkv playground --controllers 1 --groups 2 --replicas 1 --shards 16 --dir "$SHARDKV_PLAYGROUND_DIR" \
    >"$work/playground.log" 2>&1 </dev/null &
playground=$!
shardkv playground wait >/dev/null || { cat "$work/playground.log" >&2; exit 1; }
# The controller's address too: every node answers every key.
mapfile -t addresses < <(sed -nE 's/.*"address": *"([^"]+)".*/\1/p' "$SHARDKV_PLAYGROUND_DIR/playground.json")
"$venv/bin/python" example.py "${addresses[@]}"
