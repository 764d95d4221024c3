#!/usr/bin/env bash
# Shows a ShardKvCluster as the store of ten control planes: each has a keyspace and a kube-apiserver. Under load a group joins, and the
# pod of a leader is deleted. No API server restarts, fails a health check or loses a watch. At the end it prints memory, pods
# and volumes beside those of an etcd cluster of three members for each tenant; one such cluster is started and measured.
# `make tenants-demo` builds and runs it. Without KUBECONFIG it starts the three-node Kubernetes of deploy/kube, and stops it at the end;
# with KUBECONFIG it uses that cluster, with the images IMAGE, OPERATOR_IMAGE, APISERVER_IMAGE, ETCD_IMAGE and LOAD_IMAGE.
# TENANTS=10 and OBJECTS=100 say how many control planes there are, and how many objects of 1 KB each has.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
program="tenants-demo"
name=platform
namespace=control-planes
# shellcheck source=kube-demo-lib.sh
. deploy/kube-demo-lib.sh

tenants=${TENANTS:-10}
objects=${OBJECTS:-100}
rate=2
image=${IMAGE:-shardkv:0.1.0}
operator_image=${OPERATOR_IMAGE:-shardkv-operator:0.1.0}
apiserver_image=${APISERVER_IMAGE:-kube-apiserver:3}
etcd_image=${ETCD_IMAGE:-etcd:3}
load_image=${LOAD_IMAGE:-tenants:3}
made_namespace=""
[[ $tenants =~ ^[1-9][0-9]?$ ]] || fail "TENANTS=$tenants: must be 1 to 99"
[[ $objects =~ ^[1-9][0-9]{0,3}$ ]] || fail "OBJECTS=$objects: must be 1 to 9999"

clean_up() {
    local code=$?
    trap - EXIT
    set +e
    if [ "$code" -ne 0 ]; then
        dump
        printf '%s: FAILED; logs, events and objects are in %s\n' "$program" "$work" >&2
    fi
    if [ -n "$made_namespace" ]; then
        in_shop delete deployments,pods --all --grace-period=1 --timeout=60s >/dev/null 2>&1
        in_shop delete skvks,skv --all --timeout=120s >/dev/null 2>&1
        kubectl delete namespace "$namespace" --timeout=120s >/dev/null
    fi
    remove_kubernetes "$code"
    exit
}
trap clean_up EXIT
trap 'exit 130' INT TERM

each_tenant() { seq -f 'tenant-%g' "$tenants"; }

apply_cluster() {
    made_namespace=1
    kubectl create namespace "$namespace" >/dev/null
    kubectl label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted >/dev/null
    kubectl apply -f - <<RESOURCE | indented
apiVersion: shardkv.io/v1alpha1
kind: ShardKvCluster
metadata: {name: $name, namespace: $namespace}
spec:
  groups: 2
  image: $image
  storage: {size: 1Gi, onGroupRemoval: Delete, onClusterDeletion: Delete}
  controllers: {resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 512Mi}}}
  resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 1Gi}}
RESOURCE
    await condition=Available 180
    await condition=Progressing=False 60
}

apply_keyspaces() {
    local tenant
    for tenant in $(each_tenant); do
        cat <<RESOURCE
apiVersion: shardkv.io/v1alpha1
kind: ShardKvKeyspace
metadata: {name: $tenant, namespace: $namespace}
spec:
  clusterRef: {name: $name}
  quota: 256Mi
  deletionPolicy: Delete
---
RESOURCE
    done | kubectl apply -f - >/dev/null
    in_shop wait skvks --all --for=condition=Ready --timeout=120s >/dev/null || fail "keyspaces: $(in_shop get skvks -o wide)"
    in_shop get skvks | indented
}

# Makes an authority, the API servers' certificate and keys, and a token for the load.
make_keys() {
    local names
    names=$(each_tenant | sed "s/.*/DNS:api-&.$namespace.svc/" | paste -sd,),DNS:api-etcd.$namespace.svc
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tenants -keyout "$work/ca.key" -out "$work/ca.crt" 2>/dev/null
    openssl req -newkey rsa:2048 -nodes -subj /CN=kube-apiserver -keyout "$work/tls.key" -out "$work/tls.csr" 2>/dev/null
    openssl x509 -req -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days 2 \
        -extfile <(printf 'subjectAltName=%s\n' "$names") -out "$work/tls.crt" 2>/dev/null
    openssl genrsa -out "$work/sa.key" 2048 2>/dev/null
    token=$(openssl rand -hex 16)
    printf '%s,load,load,system:masters\n' "$token" >"$work/tokens.csv"
    in_shop create secret generic keys --from-file="$work/tls.crt" --from-file="$work/tls.key" --from-file="$work/sa.key" \
        --from-file="$work/tokens.csv" | indented
}

# Prints the manifests of an API server and its service.
api_server() { # name, address of its store
    cat <<RESOURCE
apiVersion: apps/v1
kind: Deployment
metadata: {name: api-$1, namespace: $namespace}
spec:
  selector: {matchLabels: {api: "$1"}}
  template:
    metadata: {labels: {api: "$1", app: kube-apiserver}}
    spec:
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: kube-apiserver
          image: $apiserver_image
          imagePullPolicy: IfNotPresent
          command:
            - kube-apiserver
            - --etcd-servers=http://$2
            - --secure-port=6443
            - --tls-cert-file=/keys/tls.crt
            - --tls-private-key-file=/keys/tls.key
            - --cert-dir=/tmp
            - --service-account-issuer=https://api-$1.$namespace.svc
            - --service-account-key-file=/keys/sa.key
            - --service-account-signing-key-file=/keys/sa.key
            - --service-cluster-ip-range=10.0.0.0/24
            - --token-auth-file=/keys/tokens.csv
            - --authorization-mode=RBAC
          readinessProbe: {httpGet: {path: /readyz, port: 6443, scheme: HTTPS}, periodSeconds: 2, timeoutSeconds: 5}
          livenessProbe: {httpGet: {path: /livez, port: 6443, scheme: HTTPS}, initialDelaySeconds: 60, periodSeconds: 5, timeoutSeconds: 5}
          resources: {requests: {cpu: 20m, memory: 128Mi}, limits: {memory: 1Gi}}
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: keys, mountPath: /keys, readOnly: true}, {name: tmp, mountPath: /tmp}]
      volumes:
        - {name: keys, secret: {secretName: keys}}
        - {name: tmp, emptyDir: {}}
---
apiVersion: v1
kind: Service
metadata: {name: api-$1, namespace: $namespace}
spec:
  selector: {api: "$1"}
  ports: [{port: 443, targetPort: 6443}]
---
RESOURCE
}

# Starts API servers, a few at a time: each needs a whole processor for some seconds.
start_api_servers() { # names...
    local server store
    for server in "$@"; do
        store=$server.$namespace:2379
        api_server "$server" "$store" | kubectl apply -f - >/dev/null
        in_shop rollout status "deployment/api-$server" --timeout=240s >/dev/null || fail "the API server of $server doesn't start"
    done
    in_shop get pods --selector app=kube-apiserver | indented
}

# Starts the load against API servers, and returns when it has made all objects.
start_load() { # name, API servers...
    local load=$1 server
    shift
    for server in "$@"; do
        printf '%s\thttps://api-%s.%s.svc\t%s\n' "$server" "$server" "$namespace" "$token"
    done >"$work/$load.tsv"
    in_shop create secret generic "$load" --from-file=tenants="$work/$load.tsv" --from-file="$work/ca.crt" >/dev/null
    kubectl apply -f - >/dev/null <<RESOURCE
apiVersion: v1
kind: Pod
metadata: {name: $load, namespace: $namespace}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: load
      image: $load_image
      imagePullPolicy: IfNotPresent
      command: [tenants, -tenants, /load/tenants, -ca, /load/ca.crt, -objects, "$objects", -rate, "$rate"]
      resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 512Mi}}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: load, mountPath: /load, readOnly: true}]
  volumes: [{name: load, secret: {secretName: $load}}]
RESOURCE
    until_true 240 "the objects of $load" load_is_ready "$load"
    in_shop logs "$load" | indented
}
load_is_ready() {
    load_runs "$1"
    in_shop logs "$1" 2>/dev/null | grep -q '^ready'
}
load_runs() {
    case $(in_shop get pod "$1" -o jsonpath='{.status.phase}') in Failed | Succeeded) fail "the load ended: $(in_shop logs "$1" --tail=20)" ;; esac
}
load_ended() { [[ $(in_shop get pod "$1" -o jsonpath='{.status.phase}') =~ Failed|Succeeded ]]; }

# Stops the load, and prints its report.
finish_load() { # name
    load_runs "$1"
    # The deadline stops the pod in an orderly way, and keeps its log.
    in_shop patch pod "$1" --patch '{"spec": {"activeDeadlineSeconds": 1}}' >/dev/null
    until_true 90 "the end of the load" load_ended "$1"
    in_shop logs "$1" | grep -v '^ready' | tee "$work/$1.report" | indented
    [ "$(grep -c 'changes watched' "$work/$1.report")" -eq "$2" ] || fail "the load has no report of each API server"
    ! grep -q '^tenants:' "$work/$1.report" || fail "the load lost something"
}

# Fails if an API server was restarted.
no_restarts() {
    local restarts
    restarts=$(in_shop get pods --selector app=kube-apiserver \
        -o jsonpath='{range .items[*]}{.metadata.name}{" "}{.status.containerStatuses[0].restartCount}{"\n"}{end}')
    [ -z "$(grep -v ' 0$' <<<"$restarts" || true)" ] || fail "API servers were restarted: $restarts"
}

# Deletes the pod of a leader at once.
kill_leader() {
    local leader uid
    leader=$(in_shop get skv "$name" -o jsonpath='{.status.groups[0].leader}')
    uid=$(in_shop get pod "$leader" -o jsonpath='{.metadata.uid}')
    in_shop delete pod "$leader" --grace-period=0 --force 2>/dev/null | indented
    same_pod_is_new() { [ "$(in_shop get pod "$leader" -o jsonpath='{.metadata.uid}' 2>/dev/null || printf '%s' "$uid")" != "$uid" ]; }
    until_true 60 "a new pod in place of $leader" same_pod_is_new
    in_shop wait "pod/$leader" --for=condition=Ready --timeout=120s | indented
}

# Starts an etcd of three members.
start_etcd() {
    local peers
    peers=$(seq 0 2 | sed "s|.*|etcd-&=http://etcd-&.etcd-peers.$namespace.svc:2380|" | paste -sd,)
    kubectl apply -f - >/dev/null <<RESOURCE
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: etcd, namespace: $namespace}
spec:
  serviceName: etcd-peers
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: etcd}}
  template:
    metadata: {labels: {app: etcd}}
    spec:
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: etcd
          image: $etcd_image
          imagePullPolicy: IfNotPresent
          env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
          command:
            - etcd
            - --name=\$(POD)
            - --data-dir=/data/etcd
            - --listen-client-urls=http://0.0.0.0:2379
            - --advertise-client-urls=http://\$(POD).etcd-peers.$namespace.svc:2379
            - --listen-peer-urls=http://0.0.0.0:2380
            - --initial-advertise-peer-urls=http://\$(POD).etcd-peers.$namespace.svc:2380
            - --initial-cluster=$peers
          readinessProbe: {httpGet: {path: /readyz, port: 2379}, periodSeconds: 1}
          resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 1Gi}}
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Service
metadata: {name: etcd-peers, namespace: $namespace}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: etcd}, ports: [{name: client, port: 2379}, {name: peer, port: 2380}]}
---
apiVersion: v1
kind: Service
metadata: {name: etcd, namespace: $namespace}
spec: {selector: {app: etcd}, ports: [{port: 2379}]}
RESOURCE
    in_shop rollout status statefulset/etcd --timeout=120s | indented
}

# Prints the resident memory of the pods' processes in MiB, as they tell it.
memory_of() { # selector, port of the metrics
    local pod
    for pod in $(in_shop get pods --selector "$1" -o jsonpath='{.items[*].metadata.name}'); do
        kubectl get --raw "/api/v1/namespaces/$namespace/pods/$pod:$2/proxy/metrics" | grep '^process_resident_memory_bytes ' ||
            fail "$pod doesn't tell its memory"
    done | awk '{ bytes += $2 } END { printf "%d\n", bytes / 1048576 }'
}

compare() { # memory of the store, memory of one etcd
    local groups pods operators
    groups=$(in_shop get skv "$name" -o jsonpath='{.status.replicas}')
    pods=$(in_shop get pods --selector app.kubernetes.io/instance="$name" -o name | wc -l)
    operators=$(kubectl --namespace "$operator_namespace" get pods -o name | wc -l)
    printf '    %-44s %10s %6s %8s\n' "$tenants control planes with $objects objects each" 'memory MiB' pods volumes
    printf '    %-44s %10s %6s %8s\n' "one ShardKvCluster of $groups groups" "$1" "$pods" "$pods"
    printf '    %-44s %10s %6s %8s\n' "$tenants etcd clusters of 3, as measured for one" $(($2 * tenants)) $((3 * tenants)) $((3 * tenants))
    printf '    The cluster has three controllers; %s pods of the operator serve all clusters and are not counted. One etcd: %s MiB.\n' "$operators" "$2"
}

start_kubernetes
deploy/kube/tenant-images | indented

say "helm install shardkv-operator"
install_operator

say "One ShardKvCluster of two groups, and $tenants keyspaces"
apply_cluster
apply_keyspaces

say "$tenants kube-apiservers, each with its keyspace as the store"
make_keys
mapfile -t names < <(each_tenant)
start_api_servers "${names[@]}"

say "Load: each API server gets $objects objects, $rate updates a second, a watch, and two health checks a second"
start_load load "${names[@]}"

say "Under load: kubectl scale from 2 groups to 3"
in_shop scale "skv/$name" --replicas=3 | indented
await jsonpath='{.status.replicas}'=3 180
await condition=Progressing=False 180
has_moved() { [[ " $(in_shop get skvks -o jsonpath='{.items[*].status.group}') " == *" 3 "* ]]; }
until_true 120 "a keyspace in the new group" has_moved
in_shop get skvks | indented

say "Under load: kubectl delete pod --force: the leader of a group"
kill_leader

say "The end of the load: each watch saw each change once and in order, and no check failed"
store_memory=$(memory_of "app.kubernetes.io/instance=$name" 7401)
finish_load load "$tenants"
no_restarts

say "For comparison: one kube-apiserver on an etcd of three members, with the same load"
start_etcd
start_api_servers etcd
start_load load-etcd etcd
etcd_memory=$(memory_of app=etcd 2379)
finish_load load-etcd 1

say "What it takes"
compare "$store_memory" "$etcd_memory"

say "Clean up"
