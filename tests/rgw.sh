#!/usr/bin/env bash
# A real Ceph object gateway (RGW) on loopback, for what a simulated store cannot answer.
#
#   tests/rgw.sh fetch   download Debian 12's Ceph packages and unpack them below RGW_HOME
#   tests/rgw.sh start   start it, empty; print how to reach it as NAME=value lines
#   tests/rgw.sh stop    stop it; its content is gone
#
# Nothing is installed system-wide: the packages are unpacked, not installed, and all data live in
# memory. One monitor, one OSD without replicas and the gateway, about 0.3 GB. Only `fetch` needs
# the network (about 75 MB), and only once.
#
# RGW_HOME, RGW_HTTP_PORT, RGW_HTTPS_PORT and RGW_MON_PORT may be set; instances with different
# HTTP ports share the packages and nothing else.
set -euo pipefail

home=${RGW_HOME:-${HOME:-~}/.cache/open-llm-proxy-rgw}
http_port=${RGW_HTTP_PORT:-17580}
https_port=${RGW_HTTPS_PORT:-17543}
mon_port=${RGW_MON_PORT:-16889}
packages=(radosgw ceph-mon ceph-osd)
tree=$home/tree
run=$home/run-$http_port
triplet=$(uname -m)-linux-gnu
lib=$tree/usr/lib/$triplet
access_key=AK secret_key=SK

fail() { echo "rgw.sh: $*" >&2; exit 1; }

# within SECONDS COMMAND...: repeat the command until it succeeds, for a limited time.
within() {
    local deadline=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

# Runs a program of the unpacked tree with the libraries of that tree, and only it.
from_tree() {
    LD_LIBRARY_PATH=$lib:$tree/lib/$triplet:$lib/ceph CEPH_CONF=$run/ceph.conf "$tree/usr/bin/$1" "${@:2}"
}

# The `ceph` command is Python with a compiled module for Debian's own interpreter.
ceph() {
    local python
    for python in /usr/bin/python3.11 "$tree/usr/bin/python3.11" python3.11; do
        command -v "$python" >/dev/null && break
    done
    LD_LIBRARY_PATH=$lib:$tree/lib/$triplet:$lib/ceph PYTHONPATH=$tree/usr/lib/python3/dist-packages \
        CEPH_CONF=$run/ceph.conf "$python" "$tree/usr/bin/ceph" --connect-timeout 10 "$@"
}

require_debian_and_root() {
    local codename
    codename=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}") || true
    [[ $codename == bookworm ]] ||
        fail "needs Debian 12 (bookworm), whose Ceph packages it uses; this is '${codename:-unknown}'"
    [[ $EUID -eq 0 ]] || fail "needs root, for apt-get's package lists and Ceph's daemons"
}

# Two runs at once: the second waits, and then finds the work done.
one_at_a_time() {
    exec 9>"$home/lock"
    flock --timeout 600 9 || fail "another rgw.sh has been at work for ten minutes"
}

download() {
    apt-get install --download-only --reinstall --yes --no-install-recommends \
        -o "Dir::Cache::archives=$home/packages/" "${packages[@]}"
}

fetch() {
    local log=$home/fetch.log package
    [[ ! -e $home/fetched || ! -x $tree/usr/bin/radosgw ]] || return 0
    require_debian_and_root
    mkdir -p "$tree"
    one_at_a_time
    [[ ! -e $home/fetched || ! -x $tree/usr/bin/radosgw ]] || return 0
    mkdir -p "$home/packages/partial"
    if ! download >"$log" 2>&1; then
        # A fresh image has no package lists. One broken source must not decide: the next try does.
        apt-get update >>"$log" 2>&1 || true
        download >>"$log" 2>&1 ||
            { tail -n 5 "$log" >&2; fail "Debian's packages could not be downloaded; is there a network?"; }
    fi
    for package in "$home"/packages/*.deb; do
        dpkg-deb --extract "$package" "$tree" || fail "cannot unpack ${package##*/}"
    done
    [[ -x $tree/usr/bin/radosgw ]] || fail "the packages came without radosgw, see $log"
    rm -rf "$home/packages"
    touch "$home/fetched"
}

write_configuration() {
    cat >"$run/ceph.conf" <<CONF
[global]
fsid = $1
run dir = $run
admin socket = $run/\$name.asok
log file = $run/\$name.log
mon cluster log file = $run/cluster.log
keyring = $run/keyring
auth cluster required = none
auth service required = none
auth client required = none
mon host = v1:127.0.0.1:$mon_port
mon data = $run/mon
ms bind msgr2 = false
mon allow pool size one = true
mon max pg per osd = 1000
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
osd data = $run/osd
osd objectstore = memstore
memstore device bytes = 1073741824
plugin dir = $lib
erasure code dir = $lib/ceph/erasure-code
osd class dir = $lib/rados-classes
osd class load list = *
osd class default list = *
[client.rgw]
rgw thread pool size = 32
rgw frontends = beast endpoint=127.0.0.1:$http_port ssl_endpoint=127.0.0.1:$https_port ssl_certificate=$run/ca.pem ssl_private_key=$run/key.pem
CONF
}

# daemon NAME PROGRAM ARGUMENT...: started in its own session, so that a test's Ctrl-C spares it.
daemon() {
    local name=$1
    LD_LIBRARY_PATH=$lib:$tree/lib/$triplet:$lib/ceph CEPH_CONF=$run/ceph.conf \
        setsid "$tree/usr/bin/$2" "${@:3}" </dev/null >"$run/$name.out" 2>&1 3>&- 4>&- 9>&- &
    echo $! >"$run/$name.pid"
    # A process that has not become the program yet would be taken for a dead one.
    within 10 began "$name" || true
}

# Whether the daemon lives. A number that now belongs to somebody else's process does not count.
alive() {
    local pid
    pid=$(cat "$run/$1.pid" 2>/dev/null) &&
        grep -q "^$tree/" "/proc/$pid/cmdline" 2>/dev/null &&
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx "CEPH_CONF=$run/ceph.conf"
}

dead() { ! alive "$1"; }
began() { alive "$1" || ! kill -0 "$(cat "$run/$1.pid")"; }
osd_is_up() { alive osd && ceph osd tree | grep -q ' up '; }
osd_decided() { osd_is_up || dead osd; }
gateway_answers() { curl --silent --fail --max-time 2 --output "$run/probe" "http://127.0.0.1:$http_port/"; }
free_port() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_monitor() {
    from_tree ceph-authtool --create-keyring "$run/keyring" --gen-key -n mon. --cap mon 'allow *'
    from_tree ceph-authtool "$run/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
    from_tree monmaptool --create --addv a "[v1:127.0.0.1:$mon_port]" --fsid "$1" "$run/monmap"
    from_tree ceph-mon -i a --mkfs --monmap "$run/monmap" --keyring "$run/keyring"
    daemon mon ceph-mon -i a -f
    within 30 ceph -s || give_up "the monitor"
}

# The OSD now and then gives up while its first map arrives; a second start finds it.
start_osd() {
    local uuid attempt
    uuid=$(cat /proc/sys/kernel/random/uuid)
    # A monitor that has only just elected itself may still refuse; the same uuid may come twice.
    within 20 ceph osd new "$uuid" || give_up "the monitor"
    from_tree ceph-osd -i 0 --mkfs --osd-uuid "$uuid"
    for attempt in 1 2 3; do
        daemon osd ceph-osd -i 0 -f
        within 20 osd_decided || true
        osd_is_up && return
        end osd
    done
    give_up "the OSD"
}

start_gateway() {
    daemon rgw radosgw -n client.rgw -f
    within 90 gateway_answers || give_up "the gateway"
    from_tree radosgw-admin user create --uid=test --display-name=test \
        --access-key="$access_key" --secret-key="$secret_key"
}

give_up() { echo "$1 did not start in time"; exit 1; }

start_failed() {
    stop
    tail -n 8 "$run/start.out" >&4
    echo "rgw.sh: could not start; all output is in $run" >&4
    exit 1
}

start() {
    local program port fsid
    [[ -e $home/fetched && -x $tree/usr/bin/radosgw ]] || fail "run 'tests/rgw.sh fetch' first"
    one_at_a_time
    if alive mon && alive osd && alive rgw; then describe; return; fi
    [[ $EUID -eq 0 ]] || fail "needs root, for Ceph's daemons"
    for program in curl openssl setsid; do
        command -v "$program" >/dev/null || fail "needs the program '$program'"
    done
    stop
    for port in "$http_port" "$https_port" "$mon_port"; do
        free_port "$port" ||
            fail "port $port is taken: set RGW_HTTP_PORT, RGW_HTTPS_PORT and RGW_MON_PORT to free ones"
    done
    rm -rf "$run"
    mkdir -p "$run/mon" "$run/osd"
    exec 3>&1 4>&2 >"$run/start.out" 2>&1
    trap start_failed EXIT
    fsid=$(cat /proc/sys/kernel/random/uuid)
    write_configuration "$fsid"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=localhost \
        -addext "subjectAltName=IP:127.0.0.1,DNS:localhost" -keyout "$run/key.pem" -out "$run/ca.pem"
    start_monitor "$fsid"
    start_osd
    start_gateway
    trap - EXIT
    describe >&3
}

describe() {
    cat <<INFO
RGW_ENDPOINT=http://127.0.0.1:$http_port
RGW_ENDPOINT_TLS=https://127.0.0.1:$https_port
RGW_CA_FILE=$run/ca.pem
RGW_PID_FILE=$run/rgw.pid
AWS_ACCESS_KEY_ID=$access_key
AWS_SECRET_ACCESS_KEY=$secret_key
INFO
}

end() {
    alive "$1" || return 0
    local pid
    pid=$(cat "$run/$1.pid")
    kill -CONT "$pid" 2>/dev/null || true
    kill "$pid" 2>/dev/null || true
    within 5 dead "$1" || kill -KILL "$pid" 2>/dev/null || true
}

stop() {
    local name
    for name in rgw osd mon; do end "$name"; done
}

case ${1:-} in
    fetch | start | stop) "$1" ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
