#!/usr/bin/env bash
# Runs the end-to-end tests: `make e2e`. Without KUBECONFIG on the three-node Kubernetes of deploy/kube, which is started, and ended
# again unless it ran already; with KUBECONFIG on that one, with the images IMAGE and OPERATOR_IMAGE. Arguments go to
# the test program: names of tests, --nocapture. Without any, the charts' lives come first.
set -euo pipefail
cd "$(dirname "$0")/../../.."

cache=${SHARDKV_KUBE_CACHE:-${HOME:-/root}/.cache/shardkv-kube}
own_config=$cache/run/admin.kubeconfig
export PATH="$cache/bin:$PATH"
started=""
tested=""

say() { printf 'e2e: %s\n' "$*"; }

# What scenarios leave that were interrupted. Clusters go first, while there is an operator to let them go.
remove_leftovers() {
    local namespace
    for namespace in $(kubectl get namespaces --selector shardkv.io/e2e=true -o jsonpath='{.items[*].metadata.name}'); do
        kubectl delete skv --all --namespace "$namespace" --timeout=120s
        kubectl delete namespace "$namespace" --timeout=120s
    done
}

clean_up() {
    local code=$?
    trap - EXIT
    set +e
    if [ -n "$tested" ]; then
        remove_leftovers
        helm uninstall shardkv-operator --namespace shardkv-system --ignore-not-found --wait >/dev/null
        kubectl delete namespace shardkv-system --ignore-not-found --timeout=120s >/dev/null
    fi
    if [ -n "$started" ]; then
        deploy/kube/down || code=1
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

if [ -z "${KUBECONFIG:-}" ] || [ "$KUBECONFIG" = "$own_config" ]; then
    export KUBECONFIG=$own_config E2E_OWN_KUBERNETES=1
    if ! kubectl get --raw /readyz >/dev/null 2>&1; then
        started=1
        deploy/kube/up
    fi
elif ! { command -v kubectl && command -v helm; } >/dev/null; then
    deploy/kube/build kubectl helm
fi
if helm status shardkv-operator --namespace shardkv-system >/dev/null 2>&1; then
    say "the operator is installed already: \`helm uninstall shardkv-operator -n shardkv-system\` first" >&2
    exit 1
fi
if [ $# -eq 0 ]; then
    .ci/charts/lifecycle
fi
tested=1
# Two at a time: what they do is mostly wait for pods.
${CARGO:-cargo} test --release -p shardkv-operator --test e2e -- --test-threads=2 "$@"
