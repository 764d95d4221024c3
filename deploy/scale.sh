#!/usr/bin/env bash
# Grows a cluster from two groups to five and shrinks it to two again, with data on disk and under load, and shows what
# clients notice: all processes run before, so only shards move. Exits with 0 only if all data are the same byte for byte, no
# operation failed, and an independent checker (porcupine) finds the history of the load linearizable.
# `make scale` builds and runs it: SCALE_MB=3000 megabytes of data, SCALE_RATE=500 operations a second, SCALE_DIR=DIR for the
# data (default: the temporary directory), which needs ten times the size.
set -euo pipefail
export LC_ALL=C

megabytes=${SCALE_MB:-3000}
rate=${SCALE_RATE:-500}
value_bytes=16384
work=$(mktemp -d -p "${SCALE_DIR:-${TMPDIR:-/tmp}}" shardkv-scale.XXXXXX)
export SHARDKV_PLAYGROUND_DIR=$work/cluster
playground=""
load=""

clean_up() {
    local code=$?
    if [ -n "$load" ]; then
        kill "$load" 2>/dev/null || true
    fi
    if [ -n "$playground" ]; then
        shardkv playground down 2>/dev/null || kill "$playground" 2>/dev/null || true
        wait "$playground" || true
    fi
    if [ "$code" -eq 0 ]; then
        rm -rf "$work"
    else
        printf 'scale: FAILED; logs and files are in %s\n' "$work" >&2
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '\n==> %s\n' "$*"; }
fail() {
    printf 'scale: %s\n' "$*" >&2
    exit 1
}
checksum() { shardkv export --prefix data/ --format tsv 2>/dev/null | sort | sha256sum; }

say "Start three controllers and five groups of three, 18 processes in all; groups 3, 4 and 5 leave before there are data"
shardkv playground --controllers 3 --groups 5 --replicas 3 --shards 60 --dir "$SHARDKV_PLAYGROUND_DIR" --start-timeout 180s \
    >"$work/playground.log" 2>&1 </dev/null &
playground=$!
shardkv playground wait --timeout 180s >/dev/null || fail "the nodes did not start: $(tail -20 "$work/playground.log")"
SHARDKV_ENDPOINTS=$(sed -nE 's/.*"endpoints": *"([^"]+)".*/\1/p' "$SHARDKV_PLAYGROUND_DIR/playground.json")
export SHARDKV_ENDPOINTS
# The addresses of groups 3 to 5, as `config join` takes them.
joins=$(shardkv config query --output json | grep -oE '"addresses":\[[^]]*\],"gid":[345],' |
    sed -E 's/.*:\[(.*)\],"gid":([345]),/\2=\1/; s/"//g')
[ "$(wc -w <<<"$joins")" -eq 3 ] || fail "the configuration has no groups 3, 4 and 5: $(shardkv config query)"
shardkv config leave 3 4 5 --wait 2>/dev/null

keys=$((megabytes * 1000 * 1000 / value_bytes))
say "Write $keys values of 16 KiB: $megabytes MB"
shardkv bench --preload --key-space "$keys" --key-prefix data/ --value-bytes "$value_bytes" --read-ratio 1 --count 1 --warmup 0s \
    >/dev/null
before=$(checksum)

say "Load: $rate operations a second, half of them reads; groups 3, 4 and 5 join, and leave when all is in place"
shardkv bench --clients 64 --rate "$rate" --duration 24h --warmup 0s --read-ratio 0.5 --key-space 2000 --key-prefix load/ \
    --value-bytes 256 --max-errors 0 --moves --record "$work/load.jsonl" >"$work/load.report" 2>"$work/load.errors" &
load=$!
until [ -s "$work/load.jsonl" ]; do
    kill -0 "$load" 2>/dev/null || fail "the load ended early: $(cat "$work/load.report" "$work/load.errors")"
    sleep 0.1
done
for change in "join $joins" "leave 3 4 5"; do
    began=$SECONDS
    # shellcheck disable=SC2086 # words of a command
    shardkv config $change --wait 2>/dev/null
    printf 'settled after %d s\n' $((SECONDS - began))
done
kill -INT "$load"
wait "$load" || fail "operations failed: $(cat "$work/load.report" "$work/load.errors")"
load=""
cat "$work/load.report"

say "All data are the same, and the history of the load is linearizable"
[ "$(checksum)" = "$before" ] || fail "the data are not the same"
shardkv export --prefix load/ --file "$work/load.pairs" 2>/dev/null
shardkv-porcupine -timeout 300s -at-least 1000 -then "$work/load.pairs" "$work/load.jsonl"
