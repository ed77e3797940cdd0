#!/usr/bin/env bash
# Builds the fuzz targets and runs them one after the other.
#
#   fuzz/run.sh                          every target for 3 minutes
#   fuzz/run.sh "fp8 mxfp4" -runs=20000  some targets, with options of libFuzzer
#   SANITIZER=address fuzz/run.sh experts
#
# A stable compiler and a C++ compiler are enough; a sanitizer is switched on by RUSTC_BOOTSTRAP.
# Inputs that are worth keeping go to fuzz/corpus, those that fail to fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")"

targets=${1:-$(cd fuzz_targets && ls fuzz_*.rs | sed 's/^fuzz_//; s/\.rs$//')}
shift || true
options=("$@")
[ ${#options[@]} -gt 0 ] || options=(-max_total_time=180)

flags=(
    --cfg=fuzzing
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Ccodegen-units=1
)
target_dir=target
if [ -n "${SANITIZER:-}" ]; then
    export RUSTC_BOOTSTRAP=1
    flags+=("-Zsanitizer=$SANITIZER")
    target_dir=target/$SANITIZER
fi
# The target is named, so that build scripts and procedural macros are built without counters.
RUSTFLAGS="${flags[*]}" cargo build --release --target host-tuple --target-dir "$target_dir"

# First inputs from the checkpoints of this repository: configurations, headers, and weights as the
# noise from which the other targets make their cases.
seed() {
    local header file target
    mkdir -p corpus/fuzz_config corpus/fuzz_checkpoint
    for dir in ../tests/fixtures/checkpoints/*/; do
        file=$(basename "$dir")
        for target in $targets; do
            mkdir -p "corpus/fuzz_$target"
            case $target in
                config | checkpoint) ;;
                *) cat "$dir"/model*.safetensors | tail -c 400 > "corpus/fuzz_$target/$file" ;;
            esac
        done
        cp "$dir/config.json" "corpus/fuzz_config/$file"
        { printf '\3'; cat "$dir/config.json"; } > "corpus/fuzz_checkpoint/$file-config"
        header=$(od -An -tu8 -N8 "$dir/model.safetensors" 2>/dev/null | tr -d ' ') || continue
        # A header as long as that of a real model only slows the fuzzer down.
        [ "$header" -le 8192 ] || continue
        { printf '\1'; head -c $((8 + header)) "$dir/model.safetensors" | tail -c +9; } \
            > "corpus/fuzz_checkpoint/$file-header"
    done
    printf '\2{"weight_map":{"a":"one.safetensors","c":"two.safetensors"}}' \
        > corpus/fuzz_checkpoint/index
}
seed

bin=$(ls -d "$target_dir"/*/release/fuzz_config | head -1)
for target in $targets; do
    mkdir -p "artifacts/fuzz_$target"
    echo "== fuzz_$target"
    nice -n 19 "$(dirname "$bin")/fuzz_$target" "corpus/fuzz_$target" \
        -artifact_prefix="artifacts/fuzz_$target/" -max_len=8192 -len_control=0 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 "${options[@]}"
done
