#!/bin/sh
# Makes sure that what the demo and the tests start is installed: PostgreSQL 15 and nats-server, and for
# the tests two packages of Python. A second program reads repositories there (tests/format/reader.py),
# written from docs/FORMAT.md alone, to prove that the document suffices; Python's own library has
# neither zstd nor AES-GCM. Only what is missing is installed, by apt, with sudo when not root. Servers that
# Debian's packages start by themselves are left alone; the demo and the tests start their own.
set -eu

missing=""
[ -x /usr/lib/postgresql/15/bin/postgres ] || missing="$missing postgresql-15"
command -v nats-server >/dev/null 2>&1 || [ -x /usr/sbin/nats-server ] || missing="$missing nats-server"
if [ "${1:-}" != demo ]; then
    # Debian's own Python: another one on the PATH does not see Debian's packages.
    python=/usr/bin/python3
    [ -x "$python" ] || python=python3
    "$python" -c "import zstandard" 2>/dev/null || missing="$missing python3-zstandard"
    "$python" -c "import cryptography" 2>/dev/null || missing="$missing python3-cryptography"
fi
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: missing:$missing"
    echo
    echo "hint: install PostgreSQL 15 (server programs in /usr/lib/postgresql/15/bin), nats-server and, for"
    echo "      the tests, Python's zstandard and cryptography with your system's package manager, then run"
    echo "      this again."
    exit 1
fi

echo "Installing$missing with apt: the demo and the tests start private servers of their own from them,"
echo "and a reader in Python that proves the description of the repository's format."
sudo=""
if [ "$(id -u)" != 0 ]; then
    sudo="sudo"
    echo "This asks for your password, because only an administrator may install packages."
fi
$sudo apt-get update -qq
# shellcheck disable=SC2086 # a list of package names
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
