#!/usr/bin/env bash
# `make fuzz`: builds the fuzzer, runs each target for FUZZ_SECONDS, two at a time, and prints a line for each. Fails if one
# has a finding. What was found lies in tests/fuzz/artifacts/TARGET; what the corpora grew to in target/fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${FUZZ_SECONDS:-60}
sanitizer=${FUZZ_SANITIZER:-none}
jobs=${FUZZ_JOBS:-2}
if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install --locked cargo-fuzz
fi

# As .cargo/config.toml says, unless the caller says something else.
output=${CARGO_TARGET_DIR:-$PWD/../../target/fuzz}
# Sanitizers are not in stable Rust; what they need lies beside it all the same.
if [ "$sanitizer" != none ]; then export RUSTC_BOOTSTRAP=1; fi
CARGO_TARGET_DIR=$output cargo fuzz build --fuzz-dir . --sanitizer "$sanitizer" --codegen-units 16

program=$output/$(rustc -vV | sed -n 's/^host: //p')/release/fuzz
# A folder of the corpus for each target: a test in targets/tests sees to it.
read -ra targets <<<"${FUZZ_TARGETS:-$(ls corpus | tr '\n' ' ')}"

run() {
    local target=$1 grown=$output/corpus/$1 log=$output/corpus/$1.log verdict=ok
    mkdir -p "$grown" "artifacts/$target"
    SKEP_FUZZ_TARGET=$target "$program" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=3000 -max_len=16384 -len_control=50 \
        -print_final_stats=1 -artifact_prefix="artifacts/$target/" "$grown" "corpus/$target" >"$log" 2>&1 || verdict=FINDING
    local runs speed covered
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    covered=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2) || true
    printf '%-18s %10s runs %8s/s %7s covered   %s\n' "$target" "${runs:-?}" "${speed:-?}" "${covered:-?}" "$verdict"
    if [ "$verdict" != ok ]; then
        grep -m 3 -E 'panicked at|ERROR:|Test unit written' -A 1 "$log" | sed 's/^/    /' || true
        return 1
    fi
    rmdir --ignore-fail-on-non-empty "artifacts/$target"
}
export -f run
export output program seconds

printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} bash -c 'run {}' || {
    echo "findings are in tests/fuzz/artifacts; README.md there says how to repeat one" >&2
    exit 1
}
