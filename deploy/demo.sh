#!/usr/bin/env bash
# The demo: three real node processes take real input, lose their leader to kill -9 under load, and lose no record.
# `make demo` builds and runs it. INPUT=file.tsv imports `key<TAB>value` lines instead of this machine's packages.
# Ends with 0 only if everything that was acknowledged and imported is there, byte for byte.
set -euo pipefail
export LC_ALL=C

work=$(mktemp -d -t shardkv-demo.XXXXXX)
export SHARDKV_PLAYGROUND_DIR=$work/cluster
playground=""

clean_up() {
    local code=$?
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
# The number that a flat JSON object on standard input has under a name.
number() { sed -nE "s/.*\"$1\":(-?[0-9.]+).*/\1/p"; }

if [ -n "${INPUT:-}" ]; then
    input=$INPUT
    [ -r "$input" ] || fail "can't read INPUT=$input"
else
    command -v dpkg-query >/dev/null || fail "no dpkg here: give INPUT=file.tsv with key<TAB>value lines"
    input=$work/packages.tsv
    # A backslash is written as two in TSV.
    dpkg-query -W -f '${binary:Package}\t${binary:Summary}\n' | sed 's/\\/\\\\/g' >"$input"
fi
# What must be there in the end: of each key the last line.
awk -F '\t' 'NF { last[$1] = $0 } END { for (key in last) print last[key] }' "$input" | sort >"$work/expected.tsv"
records=$(wc -l <"$work/expected.tsv")
[ "$records" -gt 0 ] || fail "the input is empty"

say "Start three nodes, each a process with its own RocksDB, and wait for a leader"
shardkv playground --replicas 3 --dir "$SHARDKV_PLAYGROUND_DIR" >"$work/playground.log" 2>&1 </dev/null &
playground=$!
shardkv playground wait
SHARDKV_ENDPOINTS=$(sed -nE 's/.*"endpoints": *"([^"]+)".*/\1/p' "$SHARDKV_PLAYGROUND_DIR/playground.json")
export SHARDKV_ENDPOINTS
shardkv playground status

say "Import $records records from ${INPUT:-the package list of this machine}"
shardkv import "$input" --format tsv

say "Read some back"
awk -v every="$((records / 3 + 1))" 'NR % every == 1' "$work/expected.tsv" | cut -f 1 | while IFS= read -r key; do
    # Keys with escapes are for export to compare, not for a command line.
    case $key in *\\*) continue ;; esac
    printf '    %s = %s\n' "$key" "$(shardkv get "$key")"
done

say "Write and read with 16 clients for 10 seconds; meanwhile kill -9 the leader"
shardkv bench --clients 16 --duration 10s --warmup 0s --read-ratio 0.3 --writes put,append,delete,cas \
    --key-space 400 --key-prefix demo-load/ --value-bytes 32 --record "$work/history.jsonl" --output json \
    >"$work/bench.json" &
load=$!
# The history is written in blocks: once there is one, the load runs.
until [ -s "$work/history.jsonl" ]; do
    kill -0 "$load" 2>/dev/null || fail "the load ended early: $(cat "$work/bench.json")"
    sleep 0.1
done
killed=$(shardkv playground kill leader)
printf '    killed %s, which led\n' "$killed"
shardkv playground wait
wait "$load" || fail "the load failed: $(cat "$work/bench.json")"
printf '    %s operations succeeded, %s failed; the longest pause of writes was %.0f ms\n' \
    "$(sed -E 's/.*"all":\{"count":([0-9]+).*/\1/' "$work/bench.json")" \
    "$(number error_count <"$work/bench.json")" "$(number longest_write_gap_ms <"$work/bench.json")"
[ "$(number error_count <"$work/bench.json")" = 0 ] || fail "operations failed: $(cat "$work/bench.json")"

say "Start $killed again; it catches up"
shardkv playground restart "$killed"
shardkv playground status

say "Is every acknowledged write there, and was every read right? An independent checker (porcupine) decides"
shardkv export --prefix demo-load/ --file "$work/load.jsonl" 2>/dev/null
printf '    '
shardkv-porcupine -timeout 120s -at-least 1000 -then "$work/load.jsonl" "$work/history.jsonl"

say "Export everything and compare it with the input"
shardkv export --format tsv 2>/dev/null | { grep -v '^demo-load/' || true; } | sort >"$work/exported.tsv"
if ! diff "$work/expected.tsv" "$work/exported.tsv" >"$work/differences"; then
    head -20 "$work/differences" >&2
    fail "the export differs from the input"
fi
printf '    %s records, all equal\n' "$records"

say "Stop the nodes"
shardkv playground down
wait "$playground" || fail "the playground did not stop in good order: $(tail -5 "$work/playground.log")"
playground=""
printf '    done: nothing was lost\n'
