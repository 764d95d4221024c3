#!/usr/bin/env bash
# The demo: three controllers and two replica groups of three, each node a real process, import real data. Under load a
# third group joins, a leader is killed, and the first group leaves; no record is lost and no write is applied twice.
# `make demo` builds and runs it. INPUT=file.tsv imports `key<TAB>value` lines instead of this machine's packages.
# Exits with 0 only if the store has all acknowledged and imported data, byte for byte.
set -euo pipefail
export LC_ALL=C

work=$(mktemp -d -t shardkv-demo.XXXXXX)
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
        printf 'demo: FAILED; logs and files are in %s\n' "$work" >&2
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '\n==> %s\n' "$*"; }
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}
indented() { sed 's/^/    /'; }

# Starts a load, and returns when it runs. Its history and its report are named after it.
start_load() { # name, duration
    shardkv bench --clients 16 --rate 1500 --duration "$2" --warmup 0s --read-ratio 0.3 --writes put,append,delete,cas \
        --key-space 400 --key-prefix "demo-load/$1/" --value-bytes 32 --max-errors 0 --moves \
        --record "$work/$1.jsonl" >"$work/$1.report" 2>"$work/$1.errors" &
    load=$!
    # The history is written in blocks: the first block shows that the load runs.
    until [ -s "$work/$1.jsonl" ]; do
        kill -0 "$load" 2>/dev/null || fail "the load ended early: $(cat "$work/$1.report" "$work/$1.errors")"
        sleep 0.1
    done
}

# Waits for the end of the load, prints the pauses that its writes saw, and checks its history.
finish_load() { # name
    wait "$load" || fail "operations failed: $(cat "$work/$1.report" "$work/$1.errors")"
    load=""
    grep -E '^(all|longest time without an acknowledged write|longest pause of a shard)|shards moved in|^(WRITES|before|during|since)' "$work/$1.report" | indented
    printf '    The pause of each shard that moved (a shard gets about 90 writes a second, so some of it is chance):\n'
    sed -n '/^SHARD /,$p' "$work/$1.report" | indented
    shardkv export --prefix "demo-load/$1/" --file "$work/$1.pairs" 2>/dev/null
    printf '    An independent checker (porcupine) checks that every read is right, and every write is there exactly once:\n    '
    shardkv-porcupine -timeout 120s -at-least 1000 -then "$work/$1.pairs" "$work/$1.jsonl"
}

if [ -n "${INPUT:-}" ]; then
    input=$INPUT
    [ -r "$input" ] || fail "can't read INPUT=$input"
else
    command -v dpkg-query >/dev/null || fail "this machine has no dpkg: set INPUT=file.tsv, with key<TAB>value lines"
    input=$work/packages.tsv
    # A backslash is written as two in TSV.
    dpkg-query -W -f '${binary:Package}\t${binary:Summary}\n' | sed 's/\\/\\\\/g' >"$input"
fi
# The expected data at the end: the last line of each key.
awk -F '\t' 'NF { last[$1] = $0 } END { for (key in last) print last[key] }' "$input" | sort >"$work/expected.tsv"
records=$(wc -l <"$work/expected.tsv")
[ "$records" -gt 0 ] || fail "the input is empty"

say "Start three controllers and two groups of three, nine processes in all, and join the groups"
shardkv playground --controllers 3 --groups 2 --replicas 3 --shards 12 --dir "$SHARDKV_PLAYGROUND_DIR" --start-timeout 120s \
    >"$work/playground.log" 2>&1 </dev/null &
playground=$!
shardkv playground wait --timeout 120s | indented || fail "the nodes did not start: $(tail -20 "$work/playground.log")"
SHARDKV_ENDPOINTS=$(sed -nE 's/.*"endpoints": *"([^"]+)".*/\1/p' "$SHARDKV_PLAYGROUND_DIR/playground.json")
export SHARDKV_ENDPOINTS
shardkv config query | indented

say "Import $records records from ${INPUT:-the package list of this machine}"
shardkv import "$input" --format tsv

say "Read some keys; each key belongs to a shard, each shard to a group"
awk -v every="$((records / 3 + 1))" 'NR % every == 1' "$work/expected.tsv" | cut -f 1 | while IFS= read -r key; do
    # Skips keys with escapes; the comparison of the export covers them.
    case $key in *\\*) continue ;; esac
    printf '    %s = %s\n' "$key" "$(shardkv get "$key")"
done

say "Under load (16 clients, reads and all kinds of writes): a third group joins and receives a third of the shards"
start_load join 15s
shardkv playground scale 3 2>&1 | tr '\r' '\n' | indented
finish_load join
shardkv config query | indented

say "Under load: kill -9 the leader of group 2, and start it again; then group 1 leaves"
start_load leave 20s
killed=$(shardkv playground kill g2/leader)
printf '    killed %s, which led group 2\n' "$killed"
shardkv playground restart "$killed" | indented
shardkv config leave 1 --wait 2>&1 | tr '\r' '\n' | indented
finish_load leave
shardkv config query | indented

say "Group 1 has no data any more: kill -9 all its nodes"
for node in g1-1 g1-2 g1-3; do
    shardkv playground kill "$node" | indented
done
shardkv shards | sed -n 1p | indented

say "Export everything and compare it with the input"
shardkv export --format tsv 2>/dev/null | { grep -v '^demo-load/' || true; } | sort >"$work/exported.tsv"
if ! diff "$work/expected.tsv" "$work/exported.tsv" >"$work/differences"; then
    head -20 "$work/differences" >&2
    fail "the export differs from the input"
fi
printf '    %s records, all equal\n' "$records"

say "Stop the nodes"
shardkv playground down
wait "$playground" || fail "the playground did not stop in an orderly way: $(tail -5 "$work/playground.log")"
playground=""
printf '    done: nothing was lost\n'
