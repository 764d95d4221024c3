# shellcheck shell=bash
# Shared by the demos on Kubernetes. The demo sets `program`, `name` and `namespace` of its ShardKvCluster, and `operator_image`.

cache=${SHARDKV_KUBE_CACHE:-${HOME:-/root}/.cache/shardkv-kube}
export PATH="$cache/bin:$PATH"

operator_namespace=shardkv-system
work=$(mktemp -d -t "shardkv-$program.XXXXXX")
# Whether this run started the Kubernetes, and installed the operator: then it removes them at the end.
started_kubernetes=""
installed_operator=""

say() { printf '\n==> %s\n' "$*"; }
fail() {
    printf '%s: %s\n' "$program" "$*" >&2
    exit 1
}
indented() { sed 's/^/    /'; }
in_shop() { kubectl --namespace "$namespace" "$@"; }

# Runs a command once a second until it succeeds.
until_true() { # seconds, what for, command...
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "$what: not in time"
        sleep 1
    done
}

# Waits for a condition of the resource's latest generation; kubectl compares the generations.
await() { # condition, seconds
    in_shop wait "skv/$name" --for="$1" --timeout="$2s" >/dev/null ||
        fail "$1: not in $2 s; $(in_shop get skv "$name" -o jsonpath='{range .status.conditions[*]}{.type}={.status} {.message}; {end}')"
}

# Writes logs, events and objects into the work folder, to explain a failure.
dump() {
    local pod
    in_shop get skv,skvks,all,pvc,pdb,configmap,endpointslices -o yaml >"$work/objects.yaml" 2>&1
    in_shop get events --sort-by=.lastTimestamp >"$work/events.txt" 2>&1
    kubectl get nodes,pods -A -o wide >"$work/pods.txt" 2>&1
    for pod in $(in_shop get pods -o name); do
        in_shop logs "$pod" --timestamps >"$work/${pod#pod/}.log" 2>&1
        in_shop logs "$pod" --previous >"$work/${pod#pod/}.previous.log" 2>/dev/null || rm -f "$work/${pod#pod/}.previous.log"
    done
    kubectl --namespace "$operator_namespace" logs --selector app.kubernetes.io/name=shardkv-operator --prefix --tail=-1 >"$work/operator.log" 2>&1
}

start_kubernetes() {
    if [ -n "${KUBECONFIG:-}" ] && [ "$KUBECONFIG" != "$cache/run/admin.kubeconfig" ]; then
        own=""
        say "Use the Kubernetes of KUBECONFIG=$KUBECONFIG"
        { command -v kubectl && command -v helm; } >/dev/null || deploy/kube/build kubectl helm | indented
        kubectl get nodes | indented
        return
    fi
    own=1
    export KUBECONFIG=$cache/run/admin.kubeconfig
    if kubectl get --raw /readyz >/dev/null 2>&1; then
        say "Use the running three-node Kubernetes"
    else
        say "Start a three-node Kubernetes of real binaries (\`make kube-down\` stops it)"
        started_kubernetes=1
        deploy/kube/up | indented
    fi
    kubectl get nodes | indented
}

install_operator() {
    if helm status shardkv-operator --namespace "$operator_namespace" >/dev/null 2>&1; then
        fail "the operator is installed already: \`helm uninstall shardkv-operator -n $operator_namespace\` first"
    fi
    if kubectl get namespace "$namespace" >/dev/null 2>&1; then
        fail "there is a namespace '$namespace' already: \`kubectl delete namespace $namespace\` first, if nothing in it is needed"
    fi
    installed_operator=1
    helm install shardkv-operator charts/shardkv-operator --namespace "$operator_namespace" --create-namespace --wait --timeout 180s \
        --set image.repository="${operator_image%:*}" --set image.tag="${operator_image##*:}" >"$work/helm.txt"
    kubectl --namespace "$operator_namespace" get pods | indented
}

# Removes the operator and the Kubernetes of this run. Returns the exit code of the demo.
remove_kubernetes() { # exit code
    local code=$1
    if [ -n "$installed_operator" ]; then
        helm uninstall shardkv-operator --namespace "$operator_namespace" --wait >/dev/null
        kubectl delete namespace "$operator_namespace" --timeout=120s >/dev/null
    fi
    if [ -n "$started_kubernetes" ]; then
        deploy/kube/down >"$work/down.log" 2>&1 || { cat "$work/down.log" >&2; [ "$code" -ne 0 ] || code=1; }
    fi
    [ "$code" -ne 0 ] || rm -rf "$work"
    return "$code"
}
