#!/usr/bin/env bash
# Runs the application: `run.sh work NAME`, `run.sh report`. Installs etcd3gw into VENV=DIR once; `run.sh install` does nothing else.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${VENV:-$here/../../../target/election-python}

if ! cmp -s "$here/requirements.txt" "$venv/ready"; then
    exec 9>"$venv.lock"
    flock 9
    if ! cmp -s "$here/requirements.txt" "$venv/ready"; then
        printf 'Installing etcd3gw into %s\n' "$venv" >&2
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
        cp "$here/requirements.txt" "$venv/ready"
    fi
    exec 9>&-
fi
[ "${1:-}" != install ] || exit 0
exec "$venv/bin/python" "$here/election.py" "$@"
