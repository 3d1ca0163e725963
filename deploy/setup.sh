#!/usr/bin/env bash
# Installs the Debian packages named as arguments that are not installed yet. Silent when there is nothing to do.
set -euo pipefail

missing=()
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "these packages are missing; run as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    # No service of an installed package is started: the tests run their own.
    printf '#!/bin/sh\nexit 101\n' > /tmp/skep-policy-rc.d
    installed_policy=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        install -m 755 /tmp/skep-policy-rc.d /usr/sbin/policy-rc.d
        installed_policy=1
    fi
    trap '[ -z "$installed_policy" ] || rm -f /usr/sbin/policy-rc.d; rm -f /tmp/skep-policy-rc.d' EXIT
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or newer (https://rustup.rs)" >&2; exit 1; }
