#!/usr/bin/env bash
# `make test-vm`: what this machine's kernel may lack (kernel WireGuard, cgroup v2 alone, systemd), proved in a virtual
# machine: Debian's cloud kernel and a small Debian in QEMU. Takes root and Debian packages; the first run fetches a kernel
# and makes a system (two minutes), which stay in target/vm. Exit code: that of the checks inside (inside.sh).
# run.sh PATH-OF-SKEP PATH-OF-WHOAMI.TAR PATH-OF-NETD'S-TESTS PATH-OF-CONTAINERS'-TESTS…
#   SKEP_VM_ACCEL=kvm|tcg   instead of what fits this machine
#   SKEP_VM_ONLY=words      only the checks whose names have one of the words
set -euo pipefail
if [ $# -lt 4 ] || [ "$(id -u)" != 0 ]; then
    echo "run.sh PATH-OF-SKEP PATH-OF-WHOAMI.TAR PATH-OF-NETD'S-TESTS PATH-OF-CONTAINERS'-TESTS…, as root" >&2
    exit 2
fi
skep=$(realpath "$1") whoami=$(realpath "$2") netd=$(realpath "$3")
shift 3
here=$(realpath "$(dirname "$0")")
vm=$here/../../target/vm
mkdir -p "$vm"
vm=$(realpath "$vm")
if [ "$(uname -m)" != x86_64 ]; then
    echo "not supported yet: a virtual machine on $(uname -m)" >&2
    exit 78
fi
work=$(mktemp -d "$vm/run.XXXXXX")
trap 'rm -rf "$work"' EXIT

read -r kernel disk < <("$here/system.sh" "$vm")
release=${kernel##*/linux-image-}

# What finds that disk.
mkdir -p "$work"/init/{bin,dev,proc,sys,new,modules}
cp /bin/busybox "$work/init/bin/"
number=0
modprobe -d "$kernel" -S "$release" --show-depends -a virtio_pci virtio_blk | sed -n 's/^insmod //p' | awk '!seen[$1]++' |
    while read -r module _; do
        number=$((number + 1))
        cp "$module" "$work/init/modules/$(printf '%02d' $number).ko"
    done
cat >"$work/init/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
/bin/busybox mount -t ext4 /dev/vda /new && exec /bin/busybox switch_root /new /sbin/init
/bin/busybox poweroff -f
INIT
chmod +x "$work/init/init"
(cd "$work/init" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd"

# What is tested.
mkdir -p "$work/skep/containers"
cp "$here/inside.sh" "$whoami" /bin/busybox "$work/skep/"
for program in "$@"; do
    strip -o "$work/skep/containers/$(basename "$program" | sed 's/-[0-9a-f]*$//')" "$program"
done
for program in "$skep" "$netd"; do
    strip -o "$work/skep/$(basename "$program")" "$program"
done
mv "$work/skep/$(basename "$netd")" "$work/skep/netd-tests"
echo "${SKEP_VM_ONLY:-}" >"$work/skep/only"
mke2fs -q -t ext4 -d "$work/skep" "$work/skep.ext4" 512M

# Of the modules only Intel's and AMD's run any kernel.
accel=${SKEP_VM_ACCEL:-tcg}
if [ -z "${SKEP_VM_ACCEL:-}" ] && [ -w /dev/kvm ] && { [ -d /sys/module/kvm_intel ] || [ -d /sys/module/kvm_amd ]; }; then
    accel=kvm
fi
case $accel in kvm) cpu=host ;; *) cpu=max ;; esac
echo "QEMU ($accel), $release; the system's messages go to target/vm/console.log"
code=0
timeout --foreground 2400 qemu-system-x86_64 -accel "$accel" -cpu "$cpu" -smp 1 -m 1536 -nodefaults -display none -no-reboot \
    -kernel "$kernel/boot/vmlinuz-$release" -initrd "$work/initrd" \
    -append "console=ttyS0 rw panic=-1 systemd.unit=multi-user.target systemd.unified_cgroup_hierarchy=1" \
    -drive file="$disk",if=none,id=system,format=raw,snapshot=on -device virtio-blk-pci,drive=system \
    -drive file="$work/skep.ext4",if=none,id=skep,format=raw,snapshot=on -device virtio-blk-pci,drive=skep \
    -serial file:"$vm/console.log" -serial stdio </dev/null | sed -u 's|\r||g' | tee "$work/output" || code=$?
result=$(sed -n 's/^SKEP-VM-RESULT //p' "$work/output" | tail -n 1)
if [ -z "$result" ]; then
    echo "the virtual machine ended without a result (code $code); the end of target/vm/console.log:" >&2
    tail -n 20 "$vm/console.log" >&2
    exit 1
fi
exit "$result"
