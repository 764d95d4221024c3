# shellcheck shell=bash
# A bridge with the addresses of the API server, the nodes and the pods, without routes to other networks.

# Kernel settings that Kubernetes needs, and those that the kubelet changes by itself. All are restored at the end.
settings=(net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
    vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops
    kernel.keys.root_maxkeys kernel.keys.root_maxbytes)

network_up() {
    local range other
    for range in $pod_range $service_range; do
        other=$(ip -4 route show root "$range" | grep -v " dev $bridge " || true)
        [ -z "$other" ] || die "$range is in use on this machine: $other"
    done
    save_settings
    if ! ip link show "$bridge" >/dev/null 2>&1; then
        ip link add "$bridge" type bridge
    fi
    ip address replace "$host_ip/16" dev "$bridge"
    ip link set "$bridge" up
    # Without this route a packet to a service that isn't programmed yet would take the default route.
    ip route replace "$service_range" dev "$bridge"
    fence
}

save_settings() {
    local setting name
    : >"$state/settings"
    for setting in "${settings[@]}"; do
        name=${setting%%=*}
        if [ -e "/proc/sys/${name//.//}" ]; then
            printf '%s=%s\n' "$name" "$(sysctl_get "$name")" >>"$state/settings"
        elif [ "$name" = net.bridge.bridge-nf-call-iptables ]; then
            die "the kernel filters no bridged packets, so services won't work: modprobe br_netfilter"
        fi
    done
    for setting in "${settings[@]}"; do
        if [[ $setting == *=* ]]; then
            sysctl_set "$setting"
        fi
    done
}

sysctl_get() { cat "/proc/sys/${1//.//}"; }
sysctl_set() {
    local name=${1%%=*}
    printf '%s' "${1#*=}" >"/proc/sys/${name//.//}"
}

restore_settings() {
    local setting
    if [ -e "$state/settings" ]; then
        while read -r setting; do
            sysctl_set "$setting" || complain "could not put back $setting"
        done <"$state/settings"
    fi
}

# Lets pods reach each other and the host regardless of other rules. Blocks traffic between pods and outside networks.
fence() {
    rules_down
    iptables-restore --wait 10 --noflush <<RULES
*filter
:SHARDKV-KUBE - [0:0]
-A SHARDKV-KUBE -i $bridge -o $bridge -j ACCEPT
-A SHARDKV-KUBE -i $bridge -j REJECT
-A SHARDKV-KUBE -j DROP
-I FORWARD -i $bridge -j SHARDKV-KUBE
-I FORWARD -o $bridge -j SHARDKV-KUBE
:SHARDKV-KUBE-INPUT - [0:0]
-A SHARDKV-KUBE-INPUT -i lo -j RETURN
-A SHARDKV-KUBE-INPUT -i $bridge -j RETURN
-A SHARDKV-KUBE-INPUT -j DROP
-I INPUT -d $pod_range -j SHARDKV-KUBE-INPUT
COMMIT
RULES
}

# Removes the chains of these scripts and of kube-proxy, and the rules that jump to them. Other rules stay.
rules_down() {
    local family
    for family in ip ip6; do
        if command -v "${family}tables-save" >/dev/null; then
            "${family}tables-save" 2>/dev/null | removal | "${family}tables-restore" --wait 10 --noflush
        fi
    done
}

# Converts a listing of all rules into the commands that remove the cluster's: first its rules in other chains, then the contents of its
# chains (naming a chain empties it), then the chains.
removal() {
    awk '
        function ours(chain) { return chain ~ /^(KUBE|SHARDKV-KUBE)(-|$)/ }
        /^\*/ { table = $0; rules = chains = ends = "" }
        /^:/ && ours(substr($1, 2)) { chains = chains $1 " - [0:0]\n"; ends = ends "-X " substr($1, 2) "\n" }
        /^-A/ && !ours($2) && match($0, / -j [^ ]+/) && ours(substr($0, RSTART + 4, RLENGTH - 4)) {
            sub(/^-A/, "-D"); rules = rules $0 "\n"
        }
        /^COMMIT/ && (rules chains) != "" { printf "%s\n%s%s%sCOMMIT\n", table, chains, rules, ends }
    '
}

network_down() {
    rules_down
    ip route flush "$service_range" dev "$bridge" 2>/dev/null || true
    if ip link show "$bridge" >/dev/null 2>&1; then
        # The kernel removes a pod's end of a pair with its namespace, in the background; this end would remain until then.
        local port
        for port in /sys/class/net/"$bridge"/brif/*; do
            if [ -e "$port" ]; then
                ip link delete "${port##*/}" 2>/dev/null || true
            fi
        done
        ip link delete "$bridge"
    fi
    if command -v conntrack >/dev/null; then
        conntrack -D -s "$pod_range" >/dev/null 2>&1 || true
    fi
    restore_settings
}
