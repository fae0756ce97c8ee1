#!/bin/sh
# Figures of `dr repo prune`: 1,000 restore points, 250,000 to 1 million chunks.
# Usage: scripts/prune-figures.sh [FOLDER], which needs some 2 GB for a while.
set -eu
folder=${1:-/var/tmp/dr-prune-figures}
points=1000
cargo build --release -p dr-store --features testing --bin prune-figures
program=${CARGO_TARGET_DIR:-target}/release/prune-figures
mkdir -p "$folder"
for chunks in 250000 500000 1000000; do
    rm -rf "$folder/repository" "$folder/repository.key"
    "$program" build "$folder/repository" "$chunks" "$points"
    printf '%s chunks: ' "$chunks"
    "$program" run "$folder/repository"
done
rm -rf "$folder"
