# shellcheck shell=bash
# shellcheck disable=SC2034 # Used by the sourced parts.
# Sources all parts of the cluster, and tears the cluster down.

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=image-lib.sh
. "$kube_dir/image-lib.sh"
# shellcheck source=network.sh
. "$kube_dir/network.sh"
# shellcheck source=certificates.sh
. "$kube_dir/certificates.sh"
# shellcheck source=control-plane.sh
. "$kube_dir/control-plane.sh"
# shellcheck source=nodes.sh
. "$kube_dir/nodes.sh"
# shellcheck source=services.sh
. "$kube_dir/services.sh"

cni_plugins=/usr/lib/cni
[ -x "$cni_plugins/bridge" ] || cni_plugins=/opt/cni/bin
busybox=$(command -v busybox || true)

# Lists what exists of a cluster besides its data: nothing after tear_down.
leftovers() {
    members "" | sed 's/^/process /'
    awk -v state="$state/" -v run="$run/" 'index($5, state) == 1 || index($5, run) == 1 { print "mount " $5 }' /proc/self/mountinfo
    find "${hierarchies[@]/%//$cgroup}" -maxdepth 0 2>/dev/null | sed 's/^/control group /'
    ip -brief link show "$bridge" 2>/dev/null | sed 's/^/link /'
    ip route show root "$service_range" | sed 's/^/route /'
    ip netns list | sed -n 's/^cni-/network namespace cni-/p'
    { iptables-save; ip6tables-save; } 2>/dev/null | grep -E 'KUBE-' | sed 's/^/rule /' || true
}

# Stops and removes everything but the data. May be called at any time, and repeatedly.
tear_down() {
    local node
    # The API server and its store may finish their writes; for everything else this is like a power failure.
    for node in "${nodes[@]}"; do
        stop "node$node"
    done
    for node in kube-apiserver etcd shardkv; do
        signal TERM "$node" 3 || true
    done
    stop ""
    for node in "${nodes[@]}"; do
        node_clean "$node"
    done
    network_down
    remove_cgroups ""
    # The kubelet always links the pods' logs from this folder.
    if [ -d /var/log/containers ]; then
        find /var/log/containers -lname "$run/*" -delete
        rmdir --ignore-fail-on-non-empty /var/log/containers
    fi
    # Files that the programs create at fixed places. Another kubelet on this machine needs its own socket.
    grep -lsF "$state/" /var/lib/cni/results/* | xargs -r rm -f || true
    if ! pgrep -r D,R,S -x kubelet >/dev/null; then
        rm -f /var/lib/kubelet/device-plugins/kubelet.sock
    fi
    rmdir -p /var/lib/kubelet/device-plugins /run/containerd/s /var/lib/cni/results 2>/dev/null || true
    rm -rf "$state"
}
