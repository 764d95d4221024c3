# shellcheck shell=bash
# shellcheck disable=SC2034 # Used by the scripts that source this file.
# Paths and functions of the scripts in this folder.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/.ci/charts
export PATH="${SHARDKV_KUBE_CACHE:-$HOME/.cache/shardkv-kube}/bin:$PATH"
# The scripts contact no cluster, and the user's configuration must not change the rendered charts.
unset KUBECONFIG HELM_NAMESPACE HELM_KUBECONTEXT
export HELM_CONFIG_HOME=/nonexistent HELM_PLUGINS=/nonexistent HELM_DATA_HOME=/nonexistent

say() { printf 'charts: %s\n' "$*"; }
die() {
    printf 'charts: %s\n' "$*" >&2
    exit 1
}
