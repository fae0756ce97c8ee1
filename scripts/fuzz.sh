#!/bin/sh
# Runs every decoder of stored bytes under libFuzzer, each for so many seconds (default 60), and prints
# what each came to. Ends with 1 at the first input that makes one panic, hang or take too much memory;
# the input is then in fuzz/findings. With names behind the seconds, only these.
#
# libFuzzer itself comes with the crate libfuzzer-sys and is compiled by a C++ compiler; what it needs of
# rustc, scripts/instrument.sh adds.
set -eu
cd "$(dirname "$0")/.."

seconds="${1:-60}"
[ $# -gt 0 ] && shift

if ! command -v c++ >/dev/null 2>&1; then
    echo "error: no C++ compiler: libFuzzer is compiled from source"
    echo
    echo "hint: apt-get install g++"
    exit 1
fi

RUSTC_WRAPPER="$PWD/scripts/instrument.sh" cargo build --quiet --locked --manifest-path fuzz/Cargo.toml
program="fuzz/target/debug/decoders"

if [ $# -eq 0 ]; then
    # shellcheck disable=SC2046 # names without spaces
    set -- $(DR_FUZZ_LIST=1 "$program")
fi
mkdir -p fuzz/findings
printf '%-24s %12s %10s %10s\n' decoder executions a-second edges
for name in "$@"; do
    corpus="fuzz/corpus/$name"
    log="fuzz/findings/$name.log"
    mkdir -p "$corpus"
    if ! DR_FUZZ_TARGET="$name" DR_FUZZ_SEEDS="$corpus" "$program" "$corpus" \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=16384 \
        -artifact_prefix="fuzz/findings/$name-" -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log"
        echo "error: $name failed: the input is in fuzz/findings"
        exit 1
    fi
    executions="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    rate="$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")"
    edges="$(sed -n 's/.*DONE *cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)"
    printf '%-24s %12s %10s %10s\n' "$name" "$executions" "$rate" "$edges"
done
