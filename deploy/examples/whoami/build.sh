#!/usr/bin/env bash
# Builds whoami as a static program and packs it as a root file system: build.sh OUTPUT.tar
set -euo pipefail
output=$(realpath -m "$1")
cd "$(dirname "$0")/../../.."

target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --quiet --profile shim -p whoami --target "$target" \
    --target-dir target/static
tar --create --file "$output.tmp" --owner=0 --group=0 --mtime=@0 --sort=name \
    --directory "target/static/$target/shim" whoami
mv "$output.tmp" "$output"
