#!/bin/sh
# Calls rustc for cargo (RUSTC_WRAPPER), with the coverage instrumentation that libFuzzer needs for our own
# crates only: not for those they use, which need not be explored and take minutes to compile. Stable Rust
# has the instrumentation, but no switch for it.
set -eu
name=""
for argument in "$@"; do
    [ "${previous:-}" = --crate-name ] && name="$argument"
    previous="$argument"
done
case "$name" in
dr_store | dr_model | decoders)
    set -- "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table --cfg fuzzing
    ;;
esac
exec "$@"
