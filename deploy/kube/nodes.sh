# shellcheck shell=bash
# A node: containerd and a kubelet, with their own folders, sockets, address and range of pod addresses.

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

# Asks the kubelet first: after a kill, the API server reports the old node as ready for a while.
node_ready() {
    http_ok "$(node_ip "$1"):10248" /healthz &&
        [ "$(admin get node "node$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ] &&
        ! admin get node "node$1" -o 'jsonpath={.spec.taints[*].key}' | grep -E 'not-ready|unreachable'
}

# Kills a node like a power failure: all programs of the node are killed at once, and its addresses don't answer any more.
node_kill() {
    local node=$1
    stop "node$node"
    node_clean "$node"
    ip address delete "$(node_ip "$node")/16" dev "$bridge" 2>/dev/null || true
}

# Removes mounts, namespaces and sockets, like a reboot. The pods' files and volumes stay.
node_clean() {
    local node=$1 file address folder
    # A container's shim always has its socket in /run/containerd; the bundle contains its address.
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
# These plugins are disabled: their file systems are missing here, or all nodes would share their folders.
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
  # Without this setting no container starts where root may not lower an OOM score (CAP_SYS_RESOURCE).
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
    # Each node's pods have their own root control group, because a kubelet removes the groups of pods that it doesn't know.
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
# With the controllers' grace period, Kubernetes notices a lost node quickly, and doesn't mark a slow node as lost at once.
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 12
# The nodes share the machine's disk and memory with other programs, whose use must not cause evictions or the removal of images.
# On some machines the kubelet can't determine the size of the disk either.
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
