#!/usr/bin/env bash
# Install the Debian packages of programs that tests use, those that are missing. Needs root.
# What cannot be installed is named, and its tests are skipped.
set -euo pipefail

have() {
    command -v "$1" >/dev/null || ldconfig -p | grep -q "$1\.so"
}

missing=()
want() {  # PACKAGE PROGRAM-OR-LIBRARY...: any of them will do
    local package=$1
    shift
    for each in "$@"; do
        ! have "$each" || return 0
    done
    missing+=("$package")
}
want redis-server redis-server valkey-server
want chromium chromium
want chromium-driver chromedriver
want nginx-light nginx
want npm npm
want prometheus promtool
want libb64-0d libb64 # of perf_analyzer
want qemu-user-static qemu-aarch64-static
want debootstrap debootstrap # for the emulated Python
[ ${#missing[@]} -gt 0 ] || exit 0

apt-get update -qq || true
for package in "${missing[@]}"; do
    # RUNLEVEL keeps the packages from starting services.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" >/dev/null 2>&1 ||
        echo "not installed, tests that need it are skipped: $package" >&2
done
