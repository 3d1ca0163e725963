#!/usr/bin/env bash
# `make test`: every phase with its time; stops at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    echo "the tests run real containers and network namespaces: run them as root" >&2
    exit 1
fi
if ! cargo nextest --version >/dev/null 2>&1; then
    cargo install --locked cargo-nextest
fi

phase() {
    local name=$1 started=$SECONDS
    shift
    echo "== $name"
    "$@"
    echo "== $name: $((SECONDS - started)) s"
}

phase "format" cargo fmt --all --check
phase "lints" cargo clippy --locked --workspace --all-targets -- -D warnings
phase "build" make build target/whoami.tar
phase "unit tests" make unit
phase "simulation" make sim SEEDS=200
phase "simulation's own tests" make sim-test
phase "end-to-end tests" make e2e
echo "== all phases: $SECONDS s"
