# shellcheck shell=bash
# shellcheck disable=SC2034 # Used by those who source this.
# What all scripts of this folder share: where things lie, how they talk and wait, and how processes are started and ended.

kube_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SHARDKV_KUBE_CACHE:-${HOME:-/root}/.cache/shardkv-kube}
# What survives `down --keep` and a reboot: keys, etcd, containerd's and the kubelets' folders, volumes, logs.
run=$cache/run
# What doesn't: sockets, the containers' mounts, settings to restore. There is one bridge, thus one cluster a machine.
state=/run/shardkv-kube
logs=$run/logs
pki=$run/pki
nodes=(1 2 3)

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

# Whether KUBECONFIG names a cluster that isn't ours; then that one is used, and none is started.
foreign_cluster() { [ -n "${KUBECONFIG:-}" ] && ! [ "$KUBECONFIG" -ef "$run/admin.kubeconfig" ] && [ "$KUBECONFIG" != "$run/admin.kubeconfig" ]; }

# One caller at a time changes the cluster; the daemons must not inherit the lock.
take_lock() {
    mkdir -p "$cache"
    exec 8>"$cache/run.lock"
    flock -n 8 || { say "another up, down or node is running: waiting for it"; flock 8; }
}

# Runs a stage and prints what it took.
stage() {
    local name=$1 started=${EPOCHREALTIME/./}
    shift
    "$@"
    local tenths=$(((${EPOCHREALTIME/./} - started) / 100000))
    printf 'kube: %-24s %3d.%d s\n' "$name" $((tenths / 10)) $((tenths % 10))
}

# Every process of ours is in a control group below this one, from before it runs its program until it ends. So the kernel keeps
# the record of what is ours, and nothing can be missed, or mistaken, when this script itself was killed.
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
    # It is born in its group, and without our open files: they would keep whoever reads our output waiting, and hold locks, ours
    # and the callers'.
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

# Sends a signal to all processes of a name (none: all of ours), and waits until they have ended, for some seconds.
signal() {
    local signal=$1 name=$2 seconds=$3 deadline pids
    deadline=$((SECONDS + seconds))
    while mapfile -t pids < <(members "$name") && [ ${#pids[@]} -gt 0 ]; do
        # A process that has just ended is no error; one that was just forked gets its signal in the next round.
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
        # The kernel takes a moment to let go of a group whose last process has ended.
        eventually 5 remove_folders "$folder" || complain "the control group $folder could not be removed"
    done
}

remove_folders() { [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +; }

# Tries a command until it succeeds, for some seconds.
eventually() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

# The same for what a daemon of ours brings about: seconds, the condition in words, the daemon, and the command. Says what the
# daemon logged last if it ended, or was too late.
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

# Whether http://address/path answers with 200.
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
