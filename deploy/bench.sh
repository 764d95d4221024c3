#!/usr/bin/env bash
# The benchmark of real nodes on this machine, compared with the limits of the disk and of gRPC:
#
# - one group of three at 1, 16, 64 and 256 clients, put and get, unary and batch;
# - one, two and three groups of three;
# - moves of shards of 1 MB, 100 MB and 1 GB: the longest time without a write of the moving shard, and the throughput and latency
#   of writes to other shards;
# - the controllers' rebalance, by number of groups and shards.
#
# `make bench` builds and runs it. The clients share the machine with the nodes, so compare only figures of the same run;
# and several groups that share two cores can't be faster than one group.
#
# SECONDS_EACH=5 seconds for each point; BENCH_DIR=DIR for the data (default: the temporary directory);
# MOVE_SIZES=1MB,100MB,1GB for the sizes of moving shards (MOVE_SIZES=1MB is quick; 1GB needs 10 GB of disk and some minutes);
# BENCH_JSON=FILE for the results as JSON Lines (default: target/bench.jsonl); REBALANCE=FILE is the example `rebalance`
# of shardctrler.
set -euo pipefail
export LC_ALL=C

seconds=${SECONDS_EACH:-5}
move_sizes=${MOVE_SIZES:-1MB,100MB,1GB}
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

# Prints a figure of a row of a report: row, figure.
figure() { sed -E "s/.*\"$1\":\{([^}]*)\}.*/\1/; s/.*\"$2\":([0-9.e+-]+).*/\1/"; }

: >"$json"
printf 'Measuring the limits of this machine (%s s each)\n' "$seconds"
shardkv bench limits --dir "$work" --duration "${seconds}s" --output json | tee -a "$json" >"$work/limits.json"
append=$(figure fsync_append per_second <"$work/limits.json")
overwrite=$(figure fsync_overwrite per_second <"$work/limits.json")
echo_64=$(figure echo_unary per_second <"$work/limits.json")
printf '  write 4 KiB + fdatasync: %.0f/s growing file, %.0f/s recycled file\n' "$append" "$overwrite"
printf '  gRPC echo, 256 bytes, 64 clients, unary: %.0f/s\n\n' "$echo_64"

# Starts a playground with these options, and sets the CLI's endpoints to its nodes.
start() {
    shardkv playground "$@" --dir "$SHARDKV_PLAYGROUND_DIR" >"$work/playground.log" 2>&1 </dev/null &
    playground=$!
    shardkv playground wait >/dev/null || { cat "$work/playground.log" >&2; exit 1; }
    find_nodes
}
find_nodes() {
    SHARDKV_ENDPOINTS=$(sed -nE 's/.*"endpoints": *"([^"]+)".*/\1/p' "$SHARDKV_PLAYGROUND_DIR/playground.json")
    export SHARDKV_ENDPOINTS
}
stop() {
    shardkv playground down
    wait "$playground" || true
    playground=""
    rm -rf "$SHARDKV_PLAYGROUND_DIR"
}

# Measures one point: writes its report to point.json, and appends it to the results.
measure() { # options of bench...
    shardkv bench --duration "${seconds}s" --output json "$@" >"$work/point.json"
    cat "$work/point.json" >>"$json"
    [ "$(sed -nE 's/.*"error_count":([0-9]+).*/\1/p' "$work/point.json")" = 0 ] || {
        printf 'operations failed: %s\n' "$(cat "$work/point.json")" >&2
        exit 1
    }
}

start --replicas 3
printf 'Three replicas, values of 256 bytes, fsync on, %s s a row\n' "$seconds"
printf '%-6s %-6s %8s %10s %9s %9s %9s %11s %13s\n' OP MODE CLIENTS 'OPS/s' 'P50 ms' 'P99 ms' 'MAX ms' 'x of echo' 'ops per fsync'
preload=--preload
for op in put get; do
    ratio=0 row=writes
    [ "$op" = get ] && ratio=1 row=reads
    for mode in unary batch; do
        for clients in 1 16 64 256; do
            measure --clients "$clients" --read-ratio "$ratio" --mode "$mode" ${preload:+$preload}
            preload=""
            ops=$(figure $row per_second <"$work/point.json")
            printf '%s %s %s %s %s %s %s %s %s\n' "$op" "$mode" "$clients" "$ops" \
                "$(figure $row p50_us <"$work/point.json")" "$(figure $row p99_us <"$work/point.json")" \
                "$(figure $row max_us <"$work/point.json")" "$echo_64" "$append" |
                awk '{
                    # Reads write no log entry, so they need no fsync.
                    fsync = $1 == "put" ? sprintf("%.2f", $4 / $9) : "-"
                    printf "%-6s %-6s %8d %10.0f %9.2f %9.2f %9.2f %11.2f %13s\n", $1, $2, $3, $4, $5 / 1000, $6 / 1000, $7 / 1000, $4 / $8, fsync
                }'
        done
    done
done
stop

printf '\nGroups of three behind one controller, puts of 256 bytes, 64 clients, %s s a row; %s cores for all of it\n' \
    "$seconds" "$(nproc)"
printf '%-6s %-6s %10s %9s %9s %14s\n' GROUPS MODE 'OPS/s' 'P50 ms' 'P99 ms' 'x of one group'
start --controllers 1 --groups 1 --replicas 3
declare -A one
for groups in 1 2 3; do
    if [ "$groups" -gt 1 ]; then
        shardkv playground scale "$groups" >/dev/null 2>&1
        find_nodes
    fi
    for mode in unary batch; do
        measure --clients 64 --read-ratio 0 --mode "$mode"
        ops=$(figure writes per_second <"$work/point.json")
        [ "$groups" -gt 1 ] || one[$mode]=$ops
        printf '%s %s %s %s %s %s\n' "$groups" "$mode" "$ops" "$(figure writes p50_us <"$work/point.json")" \
            "$(figure writes p99_us <"$work/point.json")" "${one[$mode]}" |
            awk '{ printf "%-6d %-6s %10.0f %9.2f %9.2f %14.2f\n", $1, $2, $3, $4 / 1000, $5 / 1000, $3 / $6 }'
    done
done

printf '\nShards of %s move between groups of three, under load: 200 writes/s to the moving shard, and to the others\n' "$move_sizes"
printf 'as many as 16 writers can make (closed), or half of that (open); THROUGHPUT and P99 are of the other shards\n'
printf '%-14s %-7s %6s %13s %14s %13s %11s %11s %12s %11s\n' BYTES LOAD MOVES 'WRITE GAP ms' 'GAP BEFORE ms' 'WRITE P99 ms' \
    'ARRIVED ms' 'THROUGHPUT' 'P99 before' 'P99 during'
shardkv bench moves --size "$move_sizes" --duration "${seconds}s" --output json >"$work/moves.json" 2>"$work/moves.log" || {
    cat "$work/moves.log" >&2
    exit 1
}
cat "$work/moves.json" >>"$json"
# Puts each measured load on its own line.
sed -E 's/.*"moves":\[//; s/\},\{"bytes"/},\n{"bytes"/g' "$work/moves.json" | while IFS= read -r moved; do
    number() { sed -nE "s/^[^}]*\"$1\":([0-9.]+).*/\1/p" <<<"$moved"; }
    printf '%s %s %s %s %s %s %s %s %s %s\n' "$(number bytes)" "$(sed -nE 's/.*"load":"([a-z]+)".*/\1/p' <<<"$moved")" \
        "$(number moves)" "$(number write_gap_ms)" "$(number gap_before_ms)" "$(figure moving_during p99_us <<<"$moved")" \
        "$(number arrived_ms)" "$(number others_throughput_ratio)" "$(figure others_before p99_us <<<"$moved")" \
        "$(figure others_during p99_us <<<"$moved")" |
        awk '{ printf "%-14d %-7s %6d %13.1f %14.1f %13.1f %11.1f %9.0f %% %9.2f ms %8.2f ms\n", $1, $2, $3, $4, $5, $6 / 1000, $7, $8 * 100, $9 / 1000, $10 / 1000 }'
done
stop

printf '\nThe rebalance of the controllers, by scale\n'
"${REBALANCE:?must name the program of the rebalance}" --output json >"$work/rebalance.json"
cat "$work/rebalance.json" >>"$json"
"$REBALANCE"
printf '\nAs JSON Lines: %s\n' "$json"
