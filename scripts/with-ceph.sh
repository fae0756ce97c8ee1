#!/bin/bash
# Runs a command beside a real S3 server: Ceph's radosgw over one monitor and one object daemon, in a
# temporary folder, on free loopback ports. The command finds the server in DR_TEST_S3_ENDPOINT,
# DR_TEST_S3_ACCESS_KEY and DR_TEST_S3_SECRET_KEY. Afterwards the three processes are stopped, by their
# ids, and the folder is deleted. Its objects are kept in memory: 4 GiB at most.
#
#   sudo scripts/with-ceph.sh COMMAND [ARGUMENT...]
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: $0 COMMAND [ARGUMENT...]" >&2; exit 2; }
for program in ceph ceph-mon ceph-osd radosgw radosgw-admin monmaptool; do
    command -v "$program" >/dev/null || {
        echo "error: $program is not installed" >&2
        echo >&2
        echo "hint: scripts/install-ceph.sh installs it" >&2
        exit 1
    }
done

folder=$(mktemp -d "${TMPDIR:-/tmp}/dr-ceph.XXXXXX")
pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 20000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}

# What went wrong is in the servers' logs, which are about to be deleted.
give_up() {
    echo "error: $1" >&2
    tail -n 20 "$folder"/*.log >&2 || true
    exit 1
}

fsid=$(cat /proc/sys/kernel/random/uuid)
monitor=$(free_port)
endpoint="127.0.0.1:$(free_port)"
export CEPH_CONF="$folder/ceph.conf"
cat > "$CEPH_CONF" <<CONF
[global]
fsid = $fsid
mon initial members = a
mon host = [v2:127.0.0.1:$monitor]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
ms mon client mode = crc
auth cluster required = none
auth service required = none
auth client required = none
run dir = $folder
admin socket = $folder/\$name.asok
log file = $folder/\$name.log
pid file =
crash dir = $folder/crash
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 1
osd objectstore = memstore
memstore device bytes = 4294967296
osd data = $folder/osd
mon data = $folder/mon
rgw data = $folder/rgw
rgw frontends = beast endpoint=$endpoint
rgw max put size = 5368709120
rgw multipart min part size = 5242880
debug rgw = 0
CONF

mkdir "$folder/mon" "$folder/osd" "$folder/rgw" "$folder/crash"
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$monitor]" "$folder/monmap" >"$folder/setup.log" 2>&1
ceph-mon --mkfs -i a --monmap "$folder/monmap" >>"$folder/setup.log" 2>&1 || give_up "the monitor cannot be set up"
ceph-mon -f -i a >>"$folder/mon-out.log" 2>&1 &
pids+=($!)
osd_uuid=$(cat /proc/sys/kernel/random/uuid)
osd_id=$(timeout 60 ceph osd new "$osd_uuid" 2>>"$folder/setup.log") || give_up "the monitor does not answer"
ceph-osd --mkfs -i "$osd_id" --osd-uuid "$osd_uuid" >>"$folder/setup.log" 2>&1 || give_up "the object daemon cannot be set up"
ceph-osd -f -i "$osd_id" >>"$folder/osd-out.log" 2>&1 &
pids+=($!)
# Creating a user makes the gateway's pools, and waits until the object daemon serves them.
timeout 120 radosgw-admin user create --uid=dr --display-name=dr \
    --access-key=test-access --secret-key=test-secret >>"$folder/setup.log" 2>&1 || give_up "no user can be created"
radosgw -f -n client.admin >>"$folder/rgw-out.log" 2>&1 &
pids+=($!)
for _ in $(seq 1 60); do
    (exec 3<>"/dev/tcp/${endpoint%:*}/${endpoint#*:}") 2>/dev/null && break
    kill -0 "${pids[-1]}" 2>/dev/null || give_up "the gateway ended"
    sleep 0.5
done
export DR_TEST_S3_ENDPOINT="http://$endpoint"
export DR_TEST_S3_ACCESS_KEY=test-access
export DR_TEST_S3_SECRET_KEY=test-secret
unset CEPH_CONF
"$@"
