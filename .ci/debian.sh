# shellcheck shell=bash
# Installing Debian packages: `need` each program, then `install_missing`.

missing=()

say() { printf 'deps: %s\n' "$*"; }

# Notes the package of a program that isn't here.
need() { command -v "$1" >/dev/null || missing+=("$2"); }

# Another apt may hold its lock, as on a machine that was just started: wait for it, five minutes at most.
apt() {
    local tries as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo)
    fi
    for tries in $(seq 1 30); do
        if "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; then
            return 0
        fi
        say "apt-get $1 failed (try $tries of 30); again in 10 s"
        sleep 10
    done
    return 1
}

# Installs what `need` noted; its argument is a remark on the time that it takes.
install_missing() {
    if [ ${#missing[@]} -eq 0 ]; then
        return 0
    fi
    command -v apt-get >/dev/null || {
        say "missing: ${missing[*]}. This is no Debian: install them by hand." >&2
        exit 1
    }
    say "installing ${missing[*]}${1:+ ($1)}"
    apt update
    apt install -y --no-install-recommends "${missing[@]}"
    say "done"
}
