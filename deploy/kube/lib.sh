# shellcheck shell=bash
# shellcheck disable=SC2034 # Used by those who source this.
# What all scripts of this folder share: where things lie, how they talk, and how they wait.

kube_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SHARDKV_KUBE_CACHE:-$HOME/.cache/shardkv-kube}
export PATH="$cache/bin:$PATH"

say() { printf 'kube: %s\n' "$*"; }
die() {
    printf 'kube: %s\n' "$*" >&2
    exit 1
}
