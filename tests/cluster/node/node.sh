#!/bin/bash
# A real Kubernetes cluster of one node without a container registry, for tests. Root on Linux; one a machine.
#
#   node.sh up            start it, or go on with what `kill` left: etcd, images and volumes are kept
#   node.sh kill          end every process of it at once, as a power cut does
#   node.sh down          end it and remove what it stored
#   node.sh load TAR...   import images into it
#   node.sh exec CMD...   run a command in it
#
# CNCMON_NODE_PROGRAMS: folder of scripts/setup-cluster.sh. CNCMON_NODE_DIR: what it stores; admin.conf there is the
# KUBECONFIG. CNCMON_NODE_IMAGES: folder of images that it starts with.
#
# Everything runs in one private network, mount and PID namespace. Seen from outside are a pair of veth (172.30.0.1 here,
# 172.30.0.2 the node), routes to pods and Services, and the cgroup /kubepods.
set -euo pipefail

BIN=${CNCMON_NODE_PROGRAMS:?folder of scripts/setup-cluster.sh} RUN=${CNCMON_NODE_DIR:?folder of the node}
IMAGES=${CNCMON_NODE_IMAGES:-}
HOST=172.30.0.1 NODE=172.30.0.2 NAME=node1
PODS=10.244.0.0/24 SERVICES=10.96.0.0/16 API_SERVICE=10.96.0.1 DNS_SERVICE=10.96.0.10
# What the kubelet sets for the whole machine; `down` puts it back.
SYSCTLS="vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes"
PKI=$RUN/pki CONF=$RUN/conf LOG=$RUN/log FS=$RUN/fs
HERE=$(cd "$(dirname "$0")" && pwd)
export KUBECONFIG=$RUN/admin.conf

die() { printf 'node.sh: %s\n' "$*" >&2; exit 1; }

# ---------------------------------------------------------------- certificates and configuration

# certificate NAME SUBJECT [SANS]: of the cluster's one authority, for clients and servers.
certificate() {
    local extensions="extendedKeyUsage=clientAuth,serverAuth"
    [ -z "${3:-}" ] || extensions+=$'\n'"subjectAltName=$3"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$PKI/$1.key" -out "$PKI/$1.csr" 2>/dev/null
    openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 30 \
        -extfile <(echo "$extensions") -out "$PKI/$1.crt" 2>/dev/null
}

kubeconfig() { # FILE CERTIFICATE
    cat >"$1" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://$NODE:6443", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}}]
users: [{name: user, user: {client-certificate-data: $(base64 -w0 "$PKI/$2.crt"), client-key-data: $(base64 -w0 "$PKI/$2.key")}}]
contexts: [{name: node, context: {cluster: node, user: user}}]
current-context: node
YAML
}

certificates() {
    mkdir -p "$PKI"
    chmod 700 "$PKI"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=kubernetes-ca \
        -addext keyUsage=critical,keyCertSign,cRLSign -keyout "$PKI/ca.key" -out "$PKI/ca.crt" 2>/dev/null
    openssl genrsa -out "$PKI/accounts.key" 2048 2>/dev/null
    certificate apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$NODE,IP:$API_SERVICE"
    certificate apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client
    certificate admin /O=system:masters/CN=admin
    certificate controller-manager /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate kube-proxy /CN=system:kube-proxy
    certificate kubelet "/O=system:nodes/CN=system:node:$NAME" "DNS:$NAME,IP:$NODE"
    kubeconfig "$KUBECONFIG" admin
    local each
    for each in controller-manager scheduler kube-proxy kubelet; do kubeconfig "$CONF/$each.conf" $each; done
}

configuration() {
    cat >"$CONF/containerd.toml" <<TOML
version = 2
oom_score = 0
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "$CONF/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
TOML
    mkdir -p "$CONF/cni"
    cat >"$CONF/cni/10-bridge.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "$PODS"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
    echo "{\"nodePathMap\": [{\"node\": \"DEFAULT_PATH_FOR_NON_LISTED_NODES\", \"paths\": [\"$RUN/volumes\"]}]}" >"$CONF/local-path.json"
    : >"$CONF/resolv.conf"
    # failCgroupV1: hosts of both versions. Images can't be pulled again, so they are never collected.
    cat >"$CONF/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
oomScoreAdj: 0
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [$DNS_SERVICE]
clusterDomain: cluster.local
resolvConf: $CONF/resolv.conf
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/kubelet.crt
tlsPrivateKeyFile: $PKI/kubelet.key
failSwapOn: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
localStorageCapacityIsolation: false
syncFrequency: 10s
YAML
    # minSyncPeriod: with the default of 1 s Services refuse for as long after their pods are ready. conntrack: not
    # writable outside the first network namespace.
    cat >"$CONF/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
nftables: {minSyncPeriod: 50ms}
clusterCIDR: $PODS
clientConnection: {kubeconfig: $CONF/kube-proxy.conf}
hostnameOverride: $NAME
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0}
YAML
}

# ---------------------------------------------------------------- in the namespaces

# keep NAME CMD...: keep a program running, its output in $LOG/NAME.log; its pid in $RUN/pids/NAME.
keep() {
    local name=$1
    shift
    (
        while :; do
            "$@" >>"$LOG/$name.log" 2>&1 &
            echo $! >"$RUN/pids/$name"
            wait $! || true
            sleep 1
        done
    ) &
}

init() { # the first process of the node
    mount --make-rshared /
    local each
    for each in /var/lib/containerd /var/lib/kubelet /var/lib/cni /var/log/pods /var/log/containers /run/containerd /run/netns /usr/libexec/kubernetes; do
        mkdir -p "$each" "$FS$each"
        mount --bind "$FS$each" "$each"
    done
    ip link set lo up
    sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
    keep etcd "$BIN/etcd" --data-dir="$RUN/etcd" --listen-client-urls=http://127.0.0.1:2379 \
        --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380 --unsafe-no-fsync --log-level=warn
    keep kube-apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --advertise-address=$NODE --secure-port=6443 \
        --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file="$PKI/accounts.key" \
        --service-account-signing-key-file="$PKI/accounts.key" --service-cluster-ip-range=$SERVICES --allow-privileged=true \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
        --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-client-certificate="$PKI/apiserver-kubelet.crt" \
        --kubelet-client-key="$PKI/apiserver-kubelet.key" --kubelet-preferred-address-types=InternalIP
    keep kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig="$CONF/controller-manager.conf" --leader-elect=false \
        --root-ca-file="$PKI/ca.crt" --service-account-private-key-file="$PKI/accounts.key" --use-service-account-credentials \
        --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key"
    keep kube-scheduler "$BIN/kube-scheduler" --kubeconfig="$CONF/scheduler.conf" --leader-elect=false
    keep containerd containerd --config "$CONF/containerd.toml"
    until ctr -n k8s.io images ls -q >/dev/null 2>&1; do sleep 0.2; done
    if [ ! -e "$RUN/imported" ] && [ -n "$IMAGES" ]; then
        for each in "$IMAGES"/*.tar; do ctr -n k8s.io images import "$each" >>"$LOG/import.log" 2>&1; done
        : >"$RUN/imported"
    fi
    keep kubelet "$BIN/kubelet" --config="$CONF/kubelet.yaml" --kubeconfig="$CONF/kubelet.conf" --hostname-override=$NAME --node-ip=$NODE
    keep kube-proxy "$BIN/kube-proxy" --config="$CONF/kube-proxy.yaml"
    keep policies "${CNCMON_NODE_PYTHON:-python3}" "$HERE/policies.py" "$BIN/kubectl"
    keep local-path "$BIN/local-path-provisioner" start --kubeconfig="$KUBECONFIG" --namespace=kube-system \
        --service-account-name=default --config="$CONF/local-path.json" --helper-image=docker.io/library/python:3.13-slim-trixie
    trap 'exit 0' TERM
    while :; do wait -n || true; done # collects orphans until it is killed
}

# ---------------------------------------------------------------- from outside

# The node's first process as this machine sees it. The name is looked at lest its number was given to another.
first() {
    local pid
    pid=$(cat "$RUN/pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = unshare ] && pgrep -P "$pid"
}

inside() { nsenter -t "$(first)" --net --mount --pid "$@"; }

await() { # SECONDS WHAT CMD...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "$what is not there in time; see $LOG"
        sleep 0.3
    done
}

up() {
    if ! first >/dev/null; then
        ! ip link show kube-host >/dev/null 2>&1 || die "there is a node on this machine already"
        mkdir -p "$CONF" "$LOG" "$RUN/pids"
        [ -e "$KUBECONFIG" ] || { certificates; configuration; sysctl $SYSCTLS >"$RUN/sysctls"; }
        rm -rf "${FS:?}/run" # as a machine that boots
        setsid unshare --net --mount --pid --fork --kill-child --mount-proc bash "$HERE/node.sh" init </dev/null >>"$LOG/node.log" 2>&1 &
        echo $! >"$RUN/pid"
        await 10 "the first process" first
        local pid
        pid=$(first)
        ip link add kube-host type veth peer name kube-node netns "$pid"
        ip addr add $HOST/24 dev kube-host
        ip link set kube-host up
        nsenter -t "$pid" -n sh -c "ip addr add $NODE/24 dev kube-node; ip link set kube-node up"
        ip route add $PODS via $NODE
        ip route add $SERVICES via $NODE
    fi
    await 90 "the API server" "$BIN/kubectl" get --raw /readyz
    await 60 "the default account" "$BIN/kubectl" get serviceaccount default
    sed "s/@DNS_SERVICE@/$DNS_SERVICE/" "$HERE/addons.yaml" | "$BIN/kubectl" apply -f - >/dev/null
    await 120 "the node" "$BIN/kubectl" wait --for=condition=Ready node/$NAME --timeout=1s
    await 120 "DNS" "$BIN/kubectl" -n kube-system wait --for=condition=Available deployment/coredns --timeout=1s
}

end() {
    local pid child each
    pid=$(cat "$RUN/pid" 2>/dev/null || true)
    child=$(first || true)
    if [ -n "$child" ]; then
        kill -KILL "$pid"
        while kill -0 "$child" 2>/dev/null; do sleep 0.1; done
    fi
    ! ip link show kube-host >/dev/null 2>&1 || ip link del kube-host
    rm -f "$RUN/pid"
    for each in /sys/fs/cgroup/kubepods /sys/fs/cgroup/*/kubepods; do
        [ ! -d "$each" ] || find "$each" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
}

case "${1:-}" in
up) up ;;
kill) end ;;
down)
    end
    [ ! -s "$RUN/sysctls" ] || sysctl -qp "$RUN/sysctls"
    rm -rf "$RUN"
    ;;
load)
    shift
    for each in "$@"; do inside ctr -n k8s.io images import - <"$each" >>"$LOG/import.log"; done
    ;;
exec)
    shift
    inside "$@"
    ;;
init) init ;;
*)
    sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
