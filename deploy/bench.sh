#!/usr/bin/env bash
# The benchmark: three replicas on this machine at 1, 16, 64 and 256 clients, put and get, unary and batch, beside what
# the disk and gRPC could do at best. `make bench` builds and runs it. The clients share the machine with the nodes, so
# that only the ratios of one run mean something.
#
# SECONDS_EACH=5 seconds for each point; BENCH_DIR=DIR for the data (default: the temporary directory);
# BENCH_JSON=FILE for the results as JSON Lines (default: target/bench.jsonl).
set -euo pipefail
export LC_ALL=C

seconds=${SECONDS_EACH:-5}
json=${BENCH_JSON:-target/bench.jsonl}
work=$(mktemp -d -p "${BENCH_DIR:-${TMPDIR:-/tmp}}" shardkv-bench.XXXXXX)
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

# A figure of a row of a report: row, figure.
figure() { sed -E "s/.*\"$1\":\{([^}]*)\}.*/\1/; s/.*\"$2\":([0-9.e+-]+).*/\1/"; }

: >"$json"
printf 'Measuring the limits of this machine (%s s each)\n' "$seconds"
shardkv bench limits --dir "$work" --duration "${seconds}s" --output json | tee -a "$json" >"$work/limits.json"
append=$(figure fsync_append per_second <"$work/limits.json")
overwrite=$(figure fsync_overwrite per_second <"$work/limits.json")
echo_64=$(figure echo_unary per_second <"$work/limits.json")
printf '  write 4 KiB + fdatasync: %.0f/s growing file, %.0f/s recycled file\n' "$append" "$overwrite"
printf '  gRPC echo, 256 bytes, 64 clients, unary: %.0f/s\n\n' "$echo_64"

shardkv playground --replicas 3 --dir "$SHARDKV_PLAYGROUND_DIR" >"$work/playground.log" 2>&1 </dev/null &
playground=$!
shardkv playground wait >/dev/null
SHARDKV_ENDPOINTS=$(sed -nE 's/.*"endpoints": *"([^"]+)".*/\1/p' "$SHARDKV_PLAYGROUND_DIR/playground.json")
export SHARDKV_ENDPOINTS

printf 'Three replicas, values of 256 bytes, fsync on, %s s a row\n' "$seconds"
printf '%-6s %-6s %8s %10s %9s %9s %9s %11s %13s\n' OP MODE CLIENTS 'OPS/s' 'P50 ms' 'P99 ms' 'MAX ms' 'x of echo' 'ops per fsync'
preload=--preload
for op in put get; do
    ratio=0 row=writes
    [ "$op" = get ] && ratio=1 row=reads
    for mode in unary batch; do
        for clients in 1 16 64 256; do
            shardkv bench --clients "$clients" --duration "${seconds}s" --read-ratio "$ratio" --mode "$mode" \
                ${preload:+$preload} --output json >"$work/point.json"
            preload=""
            cat "$work/point.json" >>"$json"
            ops=$(figure $row per_second <"$work/point.json")
            [ "$(sed -nE 's/.*"error_count":([0-9]+).*/\1/p' "$work/point.json")" = 0 ] || {
                printf 'operations failed: %s\n' "$(cat "$work/point.json")" >&2
                exit 1
            }
            printf '%s %s %s %s %s %s %s %s %s\n' "$op" "$mode" "$clients" "$ops" \
                "$(figure $row p50_us <"$work/point.json")" "$(figure $row p99_us <"$work/point.json")" \
                "$(figure $row max_us <"$work/point.json")" "$echo_64" "$append" |
                awk '{
                    # A row without a log entry has nothing to do with fsync.
                    fsync = $1 == "put" ? sprintf("%.2f", $4 / $9) : "-"
                    printf "%-6s %-6s %8d %10.0f %9.2f %9.2f %9.2f %11.2f %13s\n", $1, $2, $3, $4, $5 / 1000, $6 / 1000, $7 / 1000, $4 / $8, fsync
                }'
        done
    done
done
shardkv playground down
wait "$playground" || true
playground=""
printf '\nAs JSON Lines: %s\n' "$json"
