#!/usr/bin/env bash
# Runs the end-to-end tests: `make e2e`. With KUBECONFIG they use that Kubernetes, with the images IMAGE and OPERATOR_IMAGE.
# Without KUBECONFIG they use the three-node Kubernetes of deploy/kube; the script starts it if needed, and then stops it at the
# end. Arguments go to the test program: names of tests, --nocapture. Without arguments the lifecycle tests of the charts run first.
set -euo pipefail
cd "$(dirname "$0")/../../.."

cache=${SHARDKV_KUBE_CACHE:-${HOME:-/root}/.cache/shardkv-kube}
own_config=$cache/run/admin.kubeconfig
export PATH="$cache/bin:$PATH"
started=""
tested=""

say() { printf 'e2e: %s\n' "$*"; }

# Deletes what interrupted scenarios left. Clusters first, while the operator can finish their deletion.
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
# Two scenarios at a time: they mostly wait for pods.
${CARGO:-cargo} test --release -p shardkv-operator --test e2e -- --test-threads=2 "$@"
