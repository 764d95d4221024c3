#!/usr/bin/env bash
# The demo on Kubernetes: installs the operator, creates a cluster of two groups and two keyspaces, imports real data, and then, under load,
# scales to three groups, deletes the pod of a leader, kills a whole machine, and scales back to two. No operation fails, every read
# is right, etcdctl's watch sees each change of a keyspace once and in order, and at the end the store has all imported data, byte for byte.
# `make kube-demo` builds and runs it. Without KUBECONFIG it starts the three-node Kubernetes of deploy/kube, and stops it at the end;
# with KUBECONFIG it uses that cluster, with the images IMAGE and OPERATOR_IMAGE, and ETCDCTL_IMAGE with etcdctl. INPUT=file.tsv imports `key<TAB>value` lines.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
program="kube-demo"
name=demo
namespace=shop
tenant=shop-team
# shellcheck source=kube-demo-lib.sh
. deploy/kube-demo-lib.sh
# Objects that this run created, and removes at the end.
made_namespace=""
dead_node=""
watcher=""

# Runs the CLI in the client pod.
shardkv() { in_shop exec -i client -- shardkv "$@"; }
pod_of() { in_shop get pod "$1" -o jsonpath="$2"; }

clean_up() {
    local code=$?
    trap - EXIT
    set +e
    stop_watching
    if [ "$code" -ne 0 ]; then
        dump
        printf 'kube-demo: FAILED; logs, events and objects are in %s\n' "$work" >&2
    fi
    revive_node >/dev/null
    if [ -n "$made_namespace" ]; then
        kubectl delete namespace "$tenant" --timeout=120s >/dev/null 2>&1
        in_shop delete skvks,skv --all --wait --timeout=120s >/dev/null 2>&1
        kubectl delete namespace "$namespace" --timeout=120s >/dev/null
    fi
    remove_kubernetes "$code"
    exit
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Starts to print each change of the resource's row.
start_watching() {
    kubectl --namespace "$namespace" get skv "$name" --watch > >(tee "$work/rows" | sed -u 's/^/    /') 2>/dev/null &
    watcher=$!
}
# Stops printing after the row of the current state.
finish_watching() {
    reason=$(in_shop get skv "$name" -o jsonpath='{.status.conditions[?(@.type=="Progressing")].reason}')
    until_true 10 "the row that says $reason" last_row_says "$reason"
    stop_watching
}
last_row_says() { tail -n 1 "$work/rows" | grep -qw "$1"; }
stop_watching() {
    [ -n "$watcher" ] || return 0
    kill "$watcher" 2>/dev/null || true
    wait "$watcher" 2>/dev/null || true
    watcher=""
}

# Prints the manifest of a pod that runs the CLI and satisfies the profile `restricted`.
client_pod() { # name, machine or nothing, arguments...
    local pod=$1 machine=$2 command
    shift 2
    command=$(printf ', "%s"' "$@")
    cat <<POD
apiVersion: v1
kind: Pod
metadata: {name: $pod, namespace: $namespace}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 20
  nodeSelector: {${machine:+kubernetes.io/hostname: "$machine"}}
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: shardkv
      image: $image
      imagePullPolicy: IfNotPresent
      command: [shardkv$command]
      stdin: true
      env: [{name: SHARDKV_ENDPOINTS, value: "$endpoint"}]
      resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 256Mi}}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
POD
}

# Prints the manifest of a pod that runs etcdctl on the client's machine.
etcdctl_pod() { # namespace, name, arguments...
    local at=$1 pod=$2 command
    shift 2
    command=$(printf ', "%s"' "$@")
    cat <<POD
apiVersion: v1
kind: Pod
metadata: {name: $pod, namespace: $at}
spec:
  restartPolicy: Never
  nodeSelector: {kubernetes.io/hostname: "$client_machine"}
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: etcdctl
      image: $etcdctl_image
      imagePullPolicy: IfNotPresent
      command: [etcdctl$command]
      resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 256Mi}}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
POD
}

# Runs etcdctl in a pod, and prints its output.
etcdctl() { # namespace, arguments...
    local at=$1 output
    shift
    etcdctl_pod "$at" etcdctl "$@" | kubectl apply -f - >/dev/null
    kubectl --namespace "$at" wait pod/etcdctl --for=jsonpath='{.status.phase}'=Succeeded --timeout=60s >/dev/null ||
        fail "etcdctl $*: $(kubectl --namespace "$at" logs etcdctl 2>&1)"
    output=$(kubectl --namespace "$at" logs etcdctl)
    kubectl --namespace "$at" delete pod etcdctl --grace-period=1 >/dev/null
    printf '%s\n' "$output"
}

# Creates two keyspaces, in the namespace of the cluster and in another one, and starts a watch of the first.
make_keyspaces() {
    kubectl create namespace "$tenant" >/dev/null
    kubectl label namespace "$tenant" pod-security.kubernetes.io/enforce=restricted >/dev/null
    local at
    for at in "$namespace" "$tenant"; do
        kubectl apply -f - <<RESOURCE | indented
apiVersion: shardkv.io/v1alpha1
kind: ShardKvKeyspace
metadata: {name: orders, namespace: $at}
spec:
  clusterRef: {name: $name, namespace: $namespace}
  quota: 64Mi
  deletionPolicy: Delete
RESOURCE
        kubectl --namespace "$at" wait skvks/orders --for=condition=Ready --timeout=60s >/dev/null ||
            fail "no keyspace in $at: $(kubectl --namespace "$at" get skvks orders -o jsonpath='{.status}')"
    done
    kubectl get skvks -A -o wide | indented
    etcdctl_pod "$namespace" orders-watch watch --endpoints="orders.$namespace:2379" --prefix --rev=1 item/ | kubectl apply -f - >/dev/null
    put_order 1
    put_order 2
    # The name of a keyspace has its namespace in it, so the other one has nothing of this.
    [ -z "$(etcdctl "$tenant" get --endpoints="orders.$tenant:2379" --prefix '')" ] || fail "keyspaces see each other"
    etcdctl "$tenant" put --endpoints="orders.$tenant.svc.cluster.local:2379" item/1 other | indented
}

put_order() { # number
    printf '    etcdctl --endpoints=orders.%s:2379 put item/%s ordered: %s\n' "$namespace" "$1" \
        "$(etcdctl "$namespace" put --endpoints="orders.$namespace:2379" "item/$1" ordered)"
}

# Checks what the watch and the keyspaces have, and deletes the keyspaces.
check_keyspaces() {
    local expected
    expected=$(printf 'PUT\nitem/%s\nordered\n' 1 2 3 4)
    watch_is_whole() { [ "$(in_shop logs orders-watch)" = "$expected" ]; }
    until_true 30 "the watch's four changes; it has: $(in_shop logs orders-watch | paste -sd' ')" watch_is_whole
    printf '    The watch that began before the scaling saw each change once, in order.\n'
    [ "$(etcdctl "$tenant" get --endpoints="orders.$tenant:2379" --print-value-only item/1)" = other ] || fail "the other keyspace lost its key"
    kubectl get skvks -A | indented
    in_shop delete pod orders-watch --grace-period=1 >/dev/null
    local at
    for at in "$namespace" "$tenant"; do
        kubectl --namespace "$at" delete skvks orders --timeout=60s | indented
    done
    [ -z "$(shardkv keyspace list | grep -F orders. || true)" ] || fail "a deleted keyspace is still in the store"
}

# Starts a pod that generates load until it is stopped, and returns when the load runs. The pod's log is the history.
start_load() { # name
    client_pod "$1" "$client_machine" --timeout-ms 30000 bench --clients 8 --rate 150 --duration 10m --warmup 0s --read-ratio 0.3 \
        --writes put,append,delete,cas --key-space 100 --key-prefix "demo-load/$1/" --value-bytes 32 --max-errors 0 --moves \
        --record /dev/stdout | kubectl apply -f - >/dev/null
    until_true 60 "the load's first operations" load_runs "$1"
    printf '    %s runs: 8 clients, 150 operations a second\n' "$1"
}
load_runs() {
    case $(pod_of "$1" '{.status.phase}') in Failed | Succeeded) fail "the load ended early: $(in_shop logs "$1" --tail=5)" ;; esac
    [ -n "$(in_shop logs "$1" --tail=1 2>/dev/null)" ]
}
load_ended() { [[ $(pod_of "$1" '{.status.phase}') =~ Failed|Succeeded ]]; }

# Stops the load, prints the pauses that its writes saw, and checks its history.
finish_load() { # name
    [ "$(pod_of "$1" '{.status.phase}')" = Running ] || fail "the load ended early: $(in_shop logs "$1" --tail=20 | grep -v '^{')"
    # The deadline stops the pod in an orderly way, and keeps its log.
    in_shop patch pod "$1" --patch '{"spec": {"activeDeadlineSeconds": 1}}' >/dev/null
    until_true 90 "the end of the load" load_ended "$1"
    in_shop logs "$1" >"$work/$1.log"
    grep '^{' "$work/$1.log" >"$work/$1.jsonl"
    grep -v '^{' "$work/$1.log" >"$work/$1.report" || fail "the load made no report"
    if grep -qv '"outcome":"ok"' "$work/$1.jsonl"; then
        fail "operations failed: $(grep -v '"outcome":"ok"' "$work/$1.jsonl" | head -3)"
    fi
    grep -E '^(all|longest time without an acknowledged write|longest pause of a shard)|shards moved in|^(WRITES|before|during|since)' "$work/$1.report" | indented
    shardkv export --prefix "demo-load/$1/" >"$work/$1.pairs" 2>/dev/null
    printf '    An independent checker (porcupine) checks that every read is right, and every write is there exactly once:\n    '
    shardkv-porcupine -timeout 120s -at-least 1000 -then "$work/$1.pairs" "$work/$1.jsonl"
}

# Kills a machine, like a power failure: its kubelet and all of its containers. On another Kubernetes, kills only the pods.
kill_node() {
    if [ -n "$own" ]; then
        dead_node=$1
        deploy/kube/node kill "${1#node}" | indented
        return
    fi
    printf '    This Kubernetes is not the one of deploy/kube: instead of the machine, all pods of the store on it are killed.\n'
    in_shop delete pods --selector app.kubernetes.io/instance="$name" --field-selector spec.nodeName="$1" --grace-period=0 --force 2>/dev/null | indented
}
revive_node() {
    [ -n "$dead_node" ] || return 0
    deploy/kube/node start "${dead_node#node}" | indented
    dead_node=""
}

# Prints a machine with pods of the store but without the client, if there is one. An operator may run on it: the other takes over.
choose_victim() {
    local machine
    for machine in $(in_shop get pods --selector shardkv.io/gid -o jsonpath='{.items[*].spec.nodeName}' | tr ' ' '\n' | sort -u); do
        if [ "$machine" != "$client_machine" ]; then
            printf '%s\n' "$machine"
            return
        fi
    done
}

prepare_input() {
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
}

apply_cluster() {
    made_namespace=1
    kubectl create namespace "$namespace" >/dev/null
    kubectl label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted >/dev/null
    cat >"$work/demo.yaml" <<RESOURCE
apiVersion: shardkv.io/v1alpha1
kind: ShardKvCluster
metadata: {name: $name, namespace: $namespace}
spec:
  groups: 2
  shards: 12
  keyspaceNamespaces: [$tenant]
  image: $image
  storage: {size: 1Gi, onGroupRemoval: Delete, onClusterDeletion: Retain}
  controllers: {resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 512Mi}}}
  resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 1Gi}}
RESOURCE
    indented <"$work/demo.yaml"
    kubectl apply -f "$work/demo.yaml" | indented
    start_watching
    await condition=Available 180
    await condition=Progressing=False 60
    finish_watching
    endpoint=$(in_shop get skv "$name" -o jsonpath='{.status.endpoint}')
}

start_client() {
    # The image has no shell and no sleep: the pod runs `shardkv shell`, whose standard input stays open.
    client_machine=""
    client_pod client "" shell | kubectl apply -f - >/dev/null
    in_shop wait pod/client --for=condition=Ready --timeout=60s >/dev/null
    client_machine=$(pod_of client '{.spec.nodeName}')
}

scale() { # groups, seconds
    printf '    kubectl scale skv/%s --replicas=%s\n' "$name" "$1"
    start_watching
    in_shop scale "skv/$name" --replicas="$1" >/dev/null
    await jsonpath='{.status.replicas}'="$1" "$2"
    await condition=Progressing=False "$2"
    finish_watching
}

show_groups() {
    in_shop get skv "$name" -o jsonpath='{range .status.groups[*]}group {.gid}: {.phase}, {.readyReplicas} ready, led by {.leader}, {.shards} shards{"\n"}{end}' | indented
}

image=${IMAGE:-shardkv:0.1.0}
operator_image=${OPERATOR_IMAGE:-shardkv-operator:0.1.0}
etcdctl_image=${ETCDCTL_IMAGE:-etcdctl:3}
prepare_input
start_kubernetes

say "helm install shardkv-operator"
install_operator

say "kubectl apply a ShardKvCluster, into a namespace that admits only pods of the profile 'restricted'"
apply_cluster
show_groups

say "A client pod in the cluster writes and reads through gRPC at $endpoint"
start_client
shardkv put greeting hello | indented
printf '    greeting = %s\n' "$(shardkv get greeting)"
[ "$(shardkv get greeting)" = hello ] || fail "a read didn't return the written value"
shardkv delete greeting | indented

say "Import $records records from ${INPUT:-the package list of this machine}"
shardkv import --format tsv - <"$input"

say "kubectl apply ShardKvKeyspaces: etcdctl dials their services, one of them in another namespace"
make_keyspaces

say "Under load: kubectl scale from 2 groups to 3"
start_load load-out
scale 3 180
show_groups
put_order 3

say "kubectl delete pod: the leader of a group"
leader=$(in_shop get skv "$name" -o jsonpath='{.status.groups[0].leader}')
uid=$(pod_of "$leader" '{.metadata.uid}')
in_shop delete pod "$leader" | indented
same_pod_is_new() { [ "$(pod_of "$leader" '{.metadata.uid}' 2>/dev/null || printf '%s' "$uid")" != "$uid" ]; }
until_true 60 "a new pod in place of $leader" same_pod_is_new
in_shop wait "pod/$leader" --for=condition=Ready --timeout=120s | indented
show_groups
finish_load load-out

say "Under load: kill a whole machine"
start_load load-in
victim=$(choose_victim)
if [ -n "$victim" ]; then
    kill_node "$victim"
else
    printf '    Skipped: no machine has pods of the store but not the client.\n'
fi

if [ -n "$dead_node" ]; then
    await condition=Degraded=True 120
    in_shop get skv "$name" -o jsonpath='{range .status.conditions[?(@.status=="True")]}{.type}: {.message}{"\n"}{end}' | indented
    show_groups
fi

say "While the machine is down: kubectl scale back to 2 groups"
scale 2 240
show_groups
finish_load load-in

if [ -n "$dead_node" ]; then
    say "Start the machine again"
    revive_node
    until_true 120 "all machines" kubectl wait nodes --all --for=condition=Ready --timeout=1s >/dev/null 2>&1
fi
await condition=Degraded=False 120
show_groups

say "The keyspaces, after all this"
put_order 4
check_keyspaces

say "Export everything and compare it with the input"
shardkv export --format tsv 2>/dev/null | { grep -v '^demo-load/' || true; } | sort >"$work/exported.tsv"
if ! diff "$work/expected.tsv" "$work/exported.tsv" >"$work/differences"; then
    head -20 "$work/differences" >&2
    fail "the export differs from the input"
fi
printf '    %s records, all equal\n' "$records"

say "Delete the cluster; its volumes stay, because its spec retains them"
in_shop delete pod client load-out load-in --grace-period=1 >/dev/null
in_shop delete skv "$name" --timeout=120s | indented
in_shop get pvc | indented
# Three volumes of the controllers and six of the remaining groups; the volumes of the removed group were deleted with it.
[ "$(in_shop get pvc -o name | wc -l)" -eq 9 ] || fail "there should be 9 volume claims"
pods_are_gone() { [ -z "$(in_shop get pods -o name)" ]; }
until_true 120 "the end of all pods" pods_are_gone

say "Clean up"
printf '    done: nothing was lost\n'
