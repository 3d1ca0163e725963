#!/usr/bin/env bash
# Makes what `make test-vm` starts, where it is not there yet: Debian's cloud kernel, unpacked, and a disk with a small
# Debian, both of this host's suite. Prints the kernel's folder and the disk's path. Takes root.
# system.sh FOLDER
set -euo pipefail
vm=$(realpath "$1")
here=$(realpath "$(dirname "$0")")
. /etc/os-release
suite=${VERSION_CODENAME:?"/etc/os-release names no suite: this takes Debian"}
work=$(mktemp -d "$vm/make.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The kernel: unpacked, never installed.
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | head -n 1)
kernel=$vm/$package
if [ ! -d "$kernel" ]; then
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2)
    dpkg-deb -x "$work"/"$package"_*.deb "$work/kernel"
    depmod -b "$work/kernel" "${package#linux-image-}"
    mv "$work/kernel" "$kernel"
fi
release=${package#linux-image-}

# The system: a disk that no run changes.
packages=systemd,systemd-sysv,dbus,kmod,iproute2,nftables,iputils-ping,wireguard-tools,libseccomp2,procps,curl,apparmor
stamp=$(echo "$suite $release $packages" | cat - "$here/system.sh" | sha256sum | cut -c1-12)
disk=$vm/system-$stamp.ext4
if [ ! -e "$disk" ]; then
    echo "making a small Debian ($suite) in $vm" >&2
    debootstrap --variant=minbase --include="$packages" "$suite" "$work/root" http://deb.debian.org/debian >"$vm/debootstrap.log"
    rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
    cp -a "$kernel/lib/modules" "$work/root/lib/"
    echo skep-vm >"$work/root/etc/hostname"
    echo "127.0.0.1 localhost skep-vm" >"$work/root/etc/hosts"
    cat >"$work/root/etc/systemd/system/skep-vm.service" <<'UNIT'
[Unit]
Description=The checks of make test-vm
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStartPre=/bin/mkdir -p /skep
ExecStartPre=/bin/mount /dev/vdb /skep
ExecStart=/skep/inside.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1

UNIT
    ln -s /etc/systemd/system/skep-vm.service "$work/root/etc/systemd/system/multi-user.target.wants/skep-vm.service"
    # Nothing that wakes up in the middle of a check.
    rm -f "$work"/root/etc/systemd/system/timers.target.wants/*
    for unit in apt-daily.timer apt-daily-upgrade.timer getty@tty1.service serial-getty@ttyS0.service; do
        ln -sf /dev/null "$work/root/etc/systemd/system/$unit"
    done
    rm -f "$vm"/system-*.ext4
    mke2fs -q -t ext4 -d "$work/root" "$work/system.ext4" 2G >/dev/null
    mv "$work/system.ext4" "$disk"
fi
echo "$kernel $disk"
