# shellcheck shell=bash
# Services of the cluster: the service network (kube-proxy), DNS (CoreDNS) and volumes. One process each serves all nodes.

services_start() {
    start_proxy
    start_dns
    start_storage
}

# kube-proxy starts its work only after the Node object exists.
services_wait() {
    wait_for 30 "service rules" kube-proxy http_ok 127.0.0.1:10256 /healthz
    wait_for 30 "cluster DNS" coredns http_ok "$host_ip:8181" /ready
    wait_for 30 "provisioning of volumes" local-path-provisioner admin get storageclass local-path
}

start_proxy() {
    cat >"$run/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: $run/kube-proxy.kubeconfig}
clusterCIDR: $pod_range
hostnameOverride: node1
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
nodePortAddresses: [$pod_range]
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0}
YAML
    start kube-proxy kube-proxy --config "$run/kube-proxy.yaml"
}

start_dns() {
    cat >"$run/Corefile" <<COREFILE
cluster.local in-addr.arpa ip6.arpa {
    bind $host_ip
    errors
    ready $host_ip:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig $run/admin.kubeconfig
        ttl 5
    }
}
COREFILE
    start coredns coredns -conf "$run/Corefile"
}

# Volumes are folders of the node; a helper pod on the node creates and removes them. They have the type `local` instead of
# `hostPath`, so that the kubelet sets their group to a pod's fsGroup, as for a disk.
start_storage() {
    cat >"$run/storage.json" <<JSON
{"nodePathMap": [
    {"node": "node1", "paths": ["$run/node1/volumes"]},
    {"node": "node2", "paths": ["$run/node2/volumes"]},
    {"node": "node3", "paths": ["$run/node3/volumes"]}
]}
JSON
    cat >"$run/storage-pod.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata: {name: helper-pod}
spec:
  priorityClassName: system-node-critical
  containers:
    - {name: helper-pod, image: "$busybox_image", imagePullPolicy: Never}
YAML
    admin apply --server-side --force-conflicts -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Namespace
metadata: {name: local-path-storage}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: local-path-provisioner-service-account, namespace: local-path-storage}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: local-path-config, namespace: local-path-storage}
data:
  setup: |
    mkdir -m 0777 -p "$VOL_DIR"
  teardown: |
    rm -rf "$VOL_DIR"
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local-path
  annotations:
    storageclass.kubernetes.io/is-default-class: "true"
    defaultVolumeType: local
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Delete
YAML
    start local-path-provisioner local-path-provisioner start --kubeconfig "$run/admin.kubeconfig" \
        --config "$run/storage.json" --helper-image "$busybox_image" --helper-pod-file "$run/storage-pod.yaml" \
        --namespace local-path-storage --configmap-name local-path-config
}
