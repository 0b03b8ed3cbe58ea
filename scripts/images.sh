#!/bin/bash
# Builds the images of our services with docker or podman, and writes them into build/images.tar, which container
# runtimes import.
#
#   images.sh [--arch amd64|arm64] [--tag TAG] [--out FILE] [--push REGISTRY/PATH] [SERVICE...]
#
# --arch: of the nodes; this machine's by default. --tag: the charts' version by default. --push: into a registry, and
# no file. CNCMON_IMAGES_ENGINE: docker or podman. CNCMON_IMAGES_BUILD: more options for its `build`, such as
# `--build-arg SSL_CERT_FILE=/ca.crt -v /ca.crt:/ca.crt:ro` behind a proxy that signs with a certificate of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m>\033[0m %s\n' "$*" >&2; }
die() { printf 'images.sh: %s\n' "$*" >&2; exit 2; }

tag=$(sed -n 's/^appVersion: //p' charts/cnc-monitor/Chart.yaml)
out=build/images.tar arch='' push='' services=()
while [ $# -gt 0 ]; do
    case $1 in
    --arch | --tag | --out | --push)
        [ $# -ge 2 ] || die "$1 needs a value"
        declare "${1#--}=${2%/}"
        shift
        ;;
    -*) sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"; exit 2 ;;
    *) [ -f "services/$1/Dockerfile" ] || die "there is no services/$1/Dockerfile"; services+=("$1") ;;
    esac
    shift
done
[ -z "$arch" ] || [ "$arch" = amd64 ] || [ "$arch" = arm64 ] || die "--arch is amd64 or arm64, not $arch"
if [ ${#services[@]} = 0 ]; then
    for file in services/*/Dockerfile; do services+=("$(basename "$(dirname "$file")")"); done
fi
engine=${CNCMON_IMAGES_ENGINE:-}
for candidate in docker podman; do
    # A docker without its daemon is no engine.
    if [ -z "$engine" ] && "$candidate" info >/dev/null 2>&1; then engine=$candidate; fi
done
[ -n "$engine" ] || die "needs docker (and its daemon) or podman; Debian: sudo apt install podman"

images=()
for service in "${services[@]}"; do
    # The page comes with its API.
    name=cncmon-${service#query-}
    # The full name: podman would put localhost/ in front, and no node looks for that.
    image=${push:-docker.io/library}/$name:$tag
    say "Building $image"
    # shellcheck disable=SC2086 # options are words
    "$engine" build --quiet ${arch:+--platform linux/$arch} ${CNCMON_IMAGES_BUILD:-} \
        --file "services/$service/Dockerfile" --tag "$image" . >/dev/null
    images+=("$image")
done
if [ -n "$push" ]; then
    for image in "${images[@]}"; do
        say "Sending $image"
        "$engine" push --quiet "$image"
    done
    exit
fi
mkdir -p "$(dirname "$out")"
say "Writing $out"
rm -f "$out"
multi=()
[ "$engine" != podman ] || multi=(--quiet --multi-image-archive)
"$engine" save "${multi[@]}" --output "$out" "${images[@]}"
say "On each k3s node: sudo k3s ctr images import $out"
