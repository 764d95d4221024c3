# shellcheck shell=bash
# Finds and installs missing Debian packages: call `need` for each package, then `install_missing`.

missing=()

say() { printf 'deps: %s\n' "$*"; }

# Notes a package as missing unless a command succeeds. The command tries what the package is needed for, so that a file
# with a similar name, or a program that can't start, doesn't pass for the package.
need() { # package, command...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 </dev/null || missing+=("$package")
}

# Runs apt-get as root. Another apt may hold its lock, as on a machine that was just started: waits for it, five minutes at most.
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

# Installs the packages that a function finds missing by `need`, then calls that function again: a package that is installed
# and still fails its check is an error.
install_missing() { # function, a remark on the time that it takes
    missing=()
    "$1"
    if [ ${#missing[@]} -eq 0 ]; then
        return 0
    fi
    command -v apt-get >/dev/null || {
        say "missing: ${missing[*]}. There is no apt-get here: install them by hand." >&2
        exit 1
    }
    say "installing ${missing[*]}${2:+ ($2)}"
    apt update
    apt install -y --no-install-recommends "${missing[@]}"
    missing=()
    "$1"
    if [ ${#missing[@]} -gt 0 ]; then
        say "installed, but not usable: ${missing[*]}. $0 lists the checks." >&2
        exit 1
    fi
    say "done"
}
