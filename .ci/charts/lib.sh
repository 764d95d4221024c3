# shellcheck shell=bash
# shellcheck disable=SC2034 # Used by those who source this.
# What the scripts of this folder share.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/.ci/charts
export PATH="${SHARDKV_KUBE_CACHE:-$HOME/.cache/shardkv-kube}/bin:$PATH"
# Nothing here talks to a cluster, and nothing that a person has configured may change what is rendered.
unset KUBECONFIG HELM_NAMESPACE HELM_KUBECONTEXT
export HELM_CONFIG_HOME=/nonexistent HELM_PLUGINS=/nonexistent HELM_DATA_HOME=/nonexistent

say() { printf 'charts: %s\n' "$*"; }
die() {
    printf 'charts: %s\n' "$*" >&2
    exit 1
}
