#!/bin/sh
# Makes sure that the servers which the demo and the tests start are installed: PostgreSQL 15 and
# nats-server. Only what is missing is installed, by apt, with sudo when not root. Servers that
# Debian's packages start by themselves are left alone; the demo and the tests start their own.
set -eu

missing=""
[ -x /usr/lib/postgresql/15/bin/postgres ] || missing="$missing postgresql-15"
command -v nats-server >/dev/null 2>&1 || [ -x /usr/sbin/nats-server ] || missing="$missing nats-server"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: missing:$missing"
    echo
    echo "hint: install PostgreSQL 15 (server programs in /usr/lib/postgresql/15/bin) and nats-server"
    echo "      with your system's package manager, then run this again."
    exit 1
fi

echo "Installing$missing with apt: the demo and the tests start private servers of their own from them."
sudo=""
if [ "$(id -u)" != 0 ]; then
    sudo="sudo"
    echo "This asks for your password, because only an administrator may install packages."
fi
$sudo apt-get update -qq
# shellcheck disable=SC2086 # a list of package names
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
