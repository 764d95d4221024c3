#!/usr/bin/env bash
# Runs a command against a playground of two groups on this machine: `playground.sh COMMAND...`. The command finds the nodes, with the
# controller, in SHARDKV_ENDPOINTS; every node serves every key. `shardkv` must be on the PATH.
set -euo pipefail

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
SHARDKV_ENDPOINTS=$(sed -nE 's/.*"address": *"([^"]+)".*/\1/p' "$SHARDKV_PLAYGROUND_DIR/playground.json" | paste -sd, -)
export SHARDKV_ENDPOINTS
"$@"
