# shellcheck shell=bash
# A node: containerd and a kubelet, with folders, sockets, an address and a range of pods' addresses of their own.

node_ip() { printf '10.244.0.%d' $((10 + $1)); }

nodes_up() {
    local node starting=()
    for node in "${nodes[@]}"; do
        node_start "$node" &
        starting+=($!)
    done
    for node in "${starting[@]}"; do
        wait "$node"
    done
    for node in "${nodes[@]}"; do
        node_wait "$node"
    done
}

node_start() {
    local node=$1
    mkdir -p "$run/node$node/"{containerd,kubelet,pod-logs,volumes,certificates,plugins,opt} "$state/node$node"
    ip address replace "$(node_ip "$node")/16" dev "$bridge"
    containerd_config "$node"
    start "node$node/containerd" containerd --config "$run/node$node/containerd.toml"
    wait_for 30 "containerd on node$node" "node$node/containerd" node_ctr "$node" version
    images_load "$node"
    kubelet_config "$node"
    start "node$node/kubelet" kubelet \
        --config "$run/node$node/kubelet.yaml" --kubeconfig "$run/node$node.kubeconfig" \
        --root-dir "$run/node$node/kubelet" --cert-dir "$run/node$node/certificates" \
        --hostname-override "node$node" --node-ip "$(node_ip "$node")" \
        --node-labels "topology.kubernetes.io/zone=zone$node"
}

node_wait() {
    wait_for 60 "node$1 is Ready" "node$1/kubelet" node_ready "$1"
}

# Asks the kubelet first: after a kill, the API server believes for a while in the node that was.
node_ready() {
    http_ok "$(node_ip "$1"):10248" /healthz &&
        [ "$(admin get node "node$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ] &&
        ! admin get node "node$1" -o 'jsonpath={.spec.taints[*].key}' | grep -E 'not-ready|unreachable'
}

# As if the machine had lost its power: no program of the node gets to do anything, and its addresses answer no more.
node_kill() {
    local node=$1
    stop "node$node"
    node_clean "$node"
    ip address delete "$(node_ip "$node")/16" dev "$bridge" 2>/dev/null || true
}

# Removes what a reboot would: mounts, namespaces and sockets. The pods' files and volumes stay.
node_clean() {
    local node=$1 file address folder
    # A container's supervisor has its socket in /run/containerd, whatever is configured; its bundle says where.
    for file in "$state/node$node"/containerd/io.containerd.runtime.v2.task/k8s.io/*/address; do
        if [ -e "$file" ]; then
            address=$(<"$file")
            rm -f "${address#unix://}"
        fi
    done
    for folder in "$state" "$run"; do
        unmount_below "$folder/node$node"
    done
    rm -rf "${state:?}/node$node" "$run/node$node/addresses"
    remove_cgroups "node$node"
}

node_ctr() {
    local node=$1
    shift
    ctr --address "$state/node$node/containerd.sock" -n k8s.io "$@"
}

containerd_config() {
    local node=$1 folder=$run/node$1
    mkdir -p "$folder/cni"
    cat >"$folder/containerd.toml" <<TOML
version = 2
root = "$folder/containerd"
state = "$state/node$node/containerd"
# Their file systems aren't here, or their folders would be shared by all nodes.
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[grpc]
  address = "$state/node$node/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$folder/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$pause_image"
  netns_mounts_under_state_dir = true
  # Where root may not lower a score (CAP_SYS_RESOURCE), no container would start without this.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$cni_plugins"
    conf_dir = "$folder/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "$state/node$node/runc"
      SystemdCgroup = false
TOML
    cat >"$folder/cni/10-bridge.conflist" <<JSON
{
  "cniVersion": "0.4.0",
  "name": "shardkv-kube-node$node",
  "plugins": [{
    "type": "bridge", "bridge": "$bridge", "isGateway": true, "hairpinMode": true,
    "ipam": {
      "type": "host-local", "dataDir": "$folder/addresses",
      "ranges": [[{
        "subnet": "$pod_range", "gateway": "$host_ip",
        "rangeStart": "10.244.$node.1", "rangeEnd": "10.244.$node.254"
      }]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
JSON
}

kubelet_config() {
    local node=$1 folder=$run/node$1
    # Each node's pods have a root of their own: a kubelet removes the groups of pods that it doesn't know.
    mkdir -p "${hierarchies[@]/%//$cgroup/node$node/pods}"
    cat >"$folder/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_ip "$node")
healthzBindAddress: $(node_ip "$node")
containerRuntimeEndpoint: unix://$state/node$node/containerd.sock
podLogsDir: $folder/pod-logs
volumePluginDir: $folder/plugins
tlsCertFile: $pki/node$node.crt
tlsPrivateKeyFile: $pki/node$node.key
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $pki/ca.crt}
authorization: {mode: Webhook}
clusterDNS: [$host_ip]
clusterDomain: cluster.local
resolvConf: ""
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup/node$node/pods
cgroupsPerQOS: true
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
maxPods: 60
# With the controllers' grace period: a lost node is noticed quickly, a slow one not lost at once.
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 12
# The nodes share the machine's disk and memory with everything else: nothing is evicted, and no image dropped, because of others.
# The disk's size can't be found everywhere either.
localStorageCapacityIsolation: false
imageGCHighThresholdPercent: 100
evictionHard:
  memory.available: 0%
  nodefs.available: 0%
  nodefs.inodesFree: 0%
  imagefs.available: 0%
  imagefs.inodesFree: 0%
YAML
}
