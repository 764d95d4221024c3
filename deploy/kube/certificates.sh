# shellcheck shell=bash
# Keys, certificates and kubeconfigs, as kubeadm would make them: one authority, and a name for each component.

certificates_up() {
    if [ -e "$pki/complete" ]; then
        return 0
    fi
    mkdir -p "$pki"
    chmod 700 "$pki"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=shardkv-kube \
        -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>/dev/null
    certificate kube-apiserver /CN=kube-apiserver \
        "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:${service_range%.*}.1,IP:$host_ip"
    certificate admin /O=system:masters/CN=shardkv-kube-admin
    certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
    local component node
    for component in kube-controller-manager kube-scheduler kube-proxy; do
        certificate "$component" "/CN=system:$component"
    done
    for node in "${nodes[@]}"; do
        certificate "node$node" "/O=system:nodes/CN=system:node:node$node" "DNS:node$node,IP:$(node_ip "$node")"
    done
    openssl ecparam -name prime256v1 -genkey -noout -out "$pki/service-account.key"
    openssl ec -in "$pki/service-account.key" -pubout -out "$pki/service-account.pub" 2>/dev/null
    for component in admin kube-controller-manager kube-scheduler kube-proxy node{1,2,3}; do
        kubeconfig "$component"
    done
    : >"$pki/complete"
}

# Creates a key and a certificate: name, subject, and alternative names for a server.
certificate() {
    local name=$1 subject=$2 names=${3:-}
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$subject" \
        -keyout "$pki/$name.key" -out "$pki/$name.csr" 2>/dev/null
    openssl x509 -req -in "$pki/$name.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -days 3650 \
        -set_serial "0x$(openssl rand -hex 8)" -out "$pki/$name.crt" -extfile - 2>/dev/null <<EXTENSIONS
basicConstraints = CA:FALSE
keyUsage = digitalSignature
extendedKeyUsage = clientAuth, serverAuth
${names:+subjectAltName = $names}
EXTENSIONS
    rm "$pki/$name.csr"
}

kubeconfig() {
    local user=$1
    (umask 077 && cat >"$run/$user.kubeconfig") <<CONFIG
apiVersion: v1
kind: Config
clusters:
  - name: shardkv-kube
    cluster:
      server: $api_url
      certificate-authority-data: $(base64 -w0 <"$pki/ca.crt")
users:
  - name: $user
    user:
      client-certificate-data: $(base64 -w0 <"$pki/$user.crt")
      client-key-data: $(base64 -w0 <"$pki/$user.key")
contexts:
  - name: shardkv-kube
    context:
      cluster: shardkv-kube
      user: $user
current-context: shardkv-kube
CONFIG
}
