#!/usr/bin/env bash
# Runs three copies of an application with leader election, kills the leader without a warning, and checks that another copy took over
# and that each step was done once: `election.sh PROGRAM...`. The programs find the keyspace in ENDPOINTS, by default the one of
# playground.sh.
set -euo pipefail
export ENDPOINTS=${ENDPOINTS:-$SHARDKV_ENDPOINTS}

steps=30
work=$(mktemp -d -t shardkv-election.XXXXXX)
declare -A copies=()
clean_up() {
    local code=$?
    for pid in "${copies[@]}"; do
        kill -9 "$pid" 2>/dev/null || true
    done
    [ "$code" -eq 0 ] || cat "$work"/log >&2
    rm -rf "$work"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

fail() {
    printf 'election: %s\n' "$*" >&2
    exit 1
}

: >"$work/log"
for name in anna bert carl; do
    timeout 60 "$@" work "$name" >>"$work/log" 2>&1 &
    copies[$name]=$!
done

# The leader has done a third of the steps.
deadline=$((SECONDS + 30))
until leader=$(sed -n 's/^\([a-z]*\) did step 10$/\1/p' "$work/log") && [ -n "$leader" ]; do
    [ "$SECONDS" -lt "$deadline" ] || fail "step 10 isn't done after 30 s"
    sleep 0.1
done
# `timeout` passes no SIGKILL on, so its child gets it.
pkill -9 -P "${copies[$leader]}" || fail "$leader has ended already"
printf '    %s led, and was killed\n' "$leader"
for name in "${!copies[@]}"; do
    wait "${copies[$name]}" 2>/dev/null || [ "$name" = "$leader" ] || fail "$name failed"
done
copies=()

"$@" report >"$work/report"
cut -d' ' -f1 "$work/report" | diff - <(seq -f '%03g' "$steps") >&2 || fail "not each step was done once"
others=$(cut -d' ' -f2 "$work/report" | sort -u | grep -vx "$leader") || fail "nobody took over"
printf '    %s took over; each of %s steps was done once\n' "$(paste -sd' ' <<<"$others")" "$steps"
