# shellcheck shell=bash
# The API server with its store, the controllers and the scheduler.

# Time until a lost node is noticed, and again until its pods are replaced; Kubernetes' defaults are 40 s and 5 min.
grace_seconds=16
toleration_seconds=20
# Number of nodes per second whose pods may be evicted. It must not be 1. While no node is ready yet, the node controller stops evictions
# with a limiter whose rate is reported as 1; when it goes on, it puts in a limiter of the rate wanted here only if that
# differs from the reported one (client-go's rate_limited_queue.go and throttle.go, v1.34). So with 1 a lost node's pods may
# stay "Running" for ever, depending on the order in which nodes register.
evictions_per_second=10

control_plane_up() {
    case $(store) in
        etcd)
            start_etcd
            wait_for 20 "etcd" etcd http_ok 127.0.0.1:12379 /health
            start_apiserver http://127.0.0.1:12379
            ;;
        shardkv)
            start_shardkv
            wait_for 60 "the keyspace" shardkv http_ok 127.0.0.1:12379 /health
            start_apiserver http://127.0.0.1:12379,http://127.0.0.1:12380,http://127.0.0.1:12381
            ;;
    esac
    wait_for 60 "a ready API server" kube-apiserver admin get --raw /readyz
    start_controllers
}

start_etcd() {
    # etcd isn't the database under test, so it needn't wait for the disk.
    start etcd etcd --name etcd --data-dir "$run/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls http://127.0.0.1:12379 --advertise-client-urls http://127.0.0.1:12379 \
        --listen-peer-urls http://127.0.0.1:12380 --initial-advertise-peer-urls http://127.0.0.1:12380 \
        --initial-cluster etcd=http://127.0.0.1:12380
}

# A playground of three nodes. The API server dials addresses and names no keyspace, so it gets the playground's keyspace `default`.
start_shardkv() {
    start shardkv "$release/shardkv" playground --dir "$run/shardkv" --replicas 3 --base-port 12379
}

# The argument: the URLs of the store.
start_apiserver() {
    start kube-apiserver kube-apiserver \
        --etcd-servers "$1" \
        --bind-address "$host_ip" --advertise-address "$host_ip" --secure-port 6443 \
        --service-cluster-ip-range "$service_range" \
        --tls-cert-file "$pki/kube-apiserver.crt" --tls-private-key-file "$pki/kube-apiserver.key" \
        --client-ca-file "$pki/ca.crt" \
        --kubelet-certificate-authority "$pki/ca.crt" \
        --kubelet-client-certificate "$pki/kubelet-client.crt" --kubelet-client-key "$pki/kubelet-client.key" \
        --kubelet-preferred-address-types InternalIP \
        --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
        --service-account-issuer https://kubernetes.default.svc.cluster.local \
        --service-account-key-file "$pki/service-account.pub" \
        --service-account-signing-key-file "$pki/service-account.key" \
        --default-not-ready-toleration-seconds $toleration_seconds \
        --default-unreachable-toleration-seconds $toleration_seconds \
        --allow-privileged
}

start_controllers() {
    # Only one of each runs, so there is no election, and no wait for a lease after a restart.
    start kube-controller-manager kube-controller-manager \
        --kubeconfig "$run/kube-controller-manager.kubeconfig" \
        --authentication-kubeconfig "$run/kube-controller-manager.kubeconfig" \
        --authorization-kubeconfig "$run/kube-controller-manager.kubeconfig" \
        --bind-address 127.0.0.1 --leader-elect=false --allocate-node-cidrs=false \
        --use-service-account-credentials \
        --root-ca-file "$pki/ca.crt" \
        --service-account-private-key-file "$pki/service-account.key" \
        --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" \
        --node-monitor-period 2s --node-monitor-grace-period ${grace_seconds}s --node-eviction-rate $evictions_per_second
    start kube-scheduler kube-scheduler \
        --kubeconfig "$run/kube-scheduler.kubeconfig" \
        --authentication-kubeconfig "$run/kube-scheduler.kubeconfig" \
        --authorization-kubeconfig "$run/kube-scheduler.kubeconfig" \
        --bind-address 127.0.0.1 --leader-elect=false
}
