#!/bin/sh
# Makes sure that Ceph's S3 gateway is installed, from Debian: `make test-s3` starts a private one of its
# own. Only what is missing is installed, with sudo when not root.
set -eu

missing=""
command -v radosgw >/dev/null 2>&1 || missing="$missing radosgw"
command -v ceph-mon >/dev/null 2>&1 || missing="$missing ceph-mon"
command -v ceph-osd >/dev/null 2>&1 || missing="$missing ceph-osd"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: missing:$missing"
    echo
    echo "hint: install Ceph's radosgw, ceph-mon and ceph-osd with your system's package manager"
    exit 1
fi

echo "Installing$missing with apt: the S3 tests start a private gateway of their own from them."
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
$sudo apt-get update -qq
# shellcheck disable=SC2086 # a list of package names
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
