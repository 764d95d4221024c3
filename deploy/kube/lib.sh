# shellcheck shell=bash
# shellcheck disable=SC2034 # Used by the scripts that source this file.
# Shared by all scripts of this folder: paths, output, waiting, and the start and end of processes.

kube_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SHARDKV_KUBE_CACHE:-${HOME:-/root}/.cache/shardkv-kube}
# Survives `down --keep` and a reboot: keys, the API server's store, containerd's and the kubelets' folders, volumes, logs.
run=$cache/run
# Doesn't survive: sockets, the containers' mounts, settings to restore. There is one bridge, so one cluster per machine.
state=/run/shardkv-kube
logs=$run/logs
pki=$run/pki
nodes=(1 2 3)

# The product's programs.
release=${CARGO_TARGET_DIR:-$(cd "$kube_dir/../.." && pwd)/target}/release

bridge=shardkv0
host_ip=10.244.0.1
pod_range=10.244.0.0/16
service_range=10.96.0.0/16
api_url=https://$host_ip:6443

export PATH="$cache/bin:/usr/sbin:/sbin:$PATH"

say() { printf 'kube: %s\n' "$*"; }
complain() { printf 'kube: %s\n' "$*" >&2; }
die() {
    complain "$*"
    exit 1
}

require_root() {
    [ "$(id -u)" -eq 0 ] || die "this needs root (namespaces, mounts and a bridge): try sudo -E $0"
}

# Succeeds if KUBECONFIG names another cluster; the scripts then use it, and start none.
foreign_cluster() { [ -n "${KUBECONFIG:-}" ] && ! [ "$KUBECONFIG" -ef "$run/admin.kubeconfig" ] && [ "$KUBECONFIG" != "$run/admin.kubeconfig" ]; }

# Lets one caller at a time change the cluster. The daemons must not inherit the lock.
take_lock() {
    mkdir -p "$cache"
    exec 8>"$cache/run.lock"
    flock -n 8 || { say "another up, down or node is running: waiting for it"; flock 8; }
}

# Runs a stage and prints its duration.
stage() {
    local name=$1 started=${EPOCHREALTIME/./}
    shift
    "$@"
    local tenths=$(((${EPOCHREALTIME/./} - started) / 100000))
    printf 'kube: %-24s %3d.%d s\n' "$name" $((tenths / 10)) $((tenths % 10))
}

# Every process of the cluster is in a control group below this one, from before it runs its program until it ends. So the kernel
# keeps the list of processes, which stays complete and correct even if this script is killed.
cgroup=shardkv-kube
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    processes=/sys/fs/cgroup
    hierarchies=(/sys/fs/cgroup)
else
    processes=/sys/fs/cgroup/pids
    hierarchies=(/sys/fs/cgroup/*/)
fi

members() {
    local folder=$processes/$cgroup/$1
    if [ -d "$folder" ]; then
        find "$folder" -name cgroup.procs -exec cat {} + 2>/dev/null || true
    fi
}

alive() { [ -n "$(members "$1")" ]; }

# Starts a program in the background: its name (also of its control group and log), and the command.
start() {
    local name=$1
    shift
    mkdir -p "$processes/$cgroup/$name" "$logs"
    # The process starts in its group, and without this script's open files: otherwise a reader of the script's output would wait for
    # the process to end, and the process would hold locks of the script and its callers.
    (
        local descriptor
        echo $BASHPID >"$processes/$cgroup/$name/cgroup.procs"
        for descriptor in /proc/"$BASHPID"/fd/*; do
            descriptor=${descriptor##*/}
            if [ "$descriptor" -gt 2 ]; then
                exec {descriptor}>&-
            fi
        done
        setsid "$@" </dev/null >>"$logs/${name//\//-}.log" 2>&1 &
    )
}

# Sends a signal to all processes of a name (empty: of the cluster), and waits some seconds until they have ended.
signal() {
    local signal=$1 name=$2 seconds=$3 deadline pids
    deadline=$((SECONDS + seconds))
    while mapfile -t pids < <(members "$name") && [ ${#pids[@]} -gt 0 ]; do
        # A process that has just ended is no error; a process that was just forked gets its signal in the next iteration.
        kill "-$signal" "${pids[@]}" 2>/dev/null || true
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.05
    done
}

stop() {
    signal KILL "$1" 20 || die "processes $(members "$1" | xargs) don't end: see dmesg"
}

remove_cgroups() {
    local folder
    for folder in "${hierarchies[@]/%//$cgroup/$1}"; do
        # The kernel needs a moment to release a group after its last process has ended.
        eventually 5 remove_folders "$folder" || complain "the control group $folder could not be removed"
    done
}

remove_folders() { [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +; }

# Retries a command until it succeeds, for some seconds.
eventually() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

# Prints the store of the API server: etcd or shardkv. Kept data decide, then the variable STORE.
store() { cat "$run/store" 2>/dev/null || printf '%s\n' "${STORE:-etcd}"; }

# Waits for a condition that a daemon must fulfil: seconds, name of the condition, daemon, and the command that checks it. Prints the
# end of the daemon's log if the daemon ended, or the time is over.
wait_for() {
    local seconds=$1 what=$2 name=$3 deadline log=$logs/${3//\//-}.log why=""
    deadline=$((SECONDS + $1))
    shift 3
    until "$@" >/dev/null 2>&1; do
        alive "$name" || why="$name ended"
        [ $SECONDS -lt $deadline ] || why="waited $seconds s"
        if [ -n "$why" ]; then
            complain "$why, and there is no sign of: $what. The end of $log:"
            tail -n 15 "$log" | cut -c1-400 >&2
            return 1
        fi
        sleep 0.1
    done
}

# Succeeds if http://address/path answers with status 200.
http_ok() {
    local status
    exec 7<>"/dev/tcp/${1/://}" || return 1
    printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$2" >&7
    read -r -t 2 _ status _ <&7
    exec 7>&-
    [ "$status" = 200 ]
}

admin() { kubectl --kubeconfig "$run/admin.kubeconfig" --request-timeout=5s "$@"; }

# Unmounts everything below a folder, innermost first.
unmount_below() {
    local point
    while read -r point; do
        umount "$point" 2>/dev/null || umount -l "$point"
    done < <(awk -v prefix="$1/" 'index($5, prefix) == 1 { print $5 }' /proc/self/mountinfo | tac)
}
