#!/bin/sh
# Finds Chromium for the browser tests, or installs Debian's as root. Where neither can be, those tests name themselves
# as skipped.
set -eu
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "> No Chromium here: the browser tests will be skipped. To run them: sudo apt install chromium" >&2
    exit 0
fi
echo "> Installing Chromium for the browser tests" >&2
apt-get update -qq >/dev/null || true
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null ||
    echo "> Chromium could not be installed: the browser tests will be skipped." >&2
