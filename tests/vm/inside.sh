#!/bin/bash
# The checks of `make test-vm`, inside of the virtual machine: started by systemd, prints each check with its time and, at
# the end, the result for run.sh.
set -u
cd /skep
export HOME=/root RUST_BACKTRACE=1 LC_ALL=C.UTF-8
only=$(cat only)
failed=0
log=/tmp/check.log

# check NAME COMMAND…: says whether it worked, and what it printed if not. An emulated machine on a host that others load
# is slow at times, so a check that fails is tried a second time, and that is said.
check() {
    local name=$1 started=$SECONDS word try output
    shift
    if [ -n "$only" ]; then
        for word in $only; do
            case $name in *"$word"*) word=; break ;; esac
        done
        [ -z "$word" ] || return 0
    fi
    for try in first second; do
        if "$@" >$log 2>&1; then
            echo "ok      $name ($((SECONDS - started)) s$([ $try = first ] || echo ", at the $try try"))"
            return
        fi
        [ $try = second ] || cp $log /tmp/first-try.log
    done
    failed=$((failed + 1))
    echo "FAILED  $name ($((SECONDS - started)) s)"
    for output in /tmp/first-try.log $log; do
        sed 's/^/        /' $output | tail -n 25
    done
}

# until_ok SECONDS COMMAND…: again and again until it works.
until_ok() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || { echo "in vain: $*"; return 1; }
        sleep 0.2
    done
}

echo "kernel $(uname -r), $(systemctl --version | head -n 1), cgroups: $(stat -fc %T /sys/fs/cgroup)"

# --- The system that this is for.
cgroup_v2_alone() {
    [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] && [ "$(cut -d: -f1 /proc/self/cgroup)" = 0 ]
}
wireguard_loads_by_itself() {
    # Nobody has loaded it: skep's question for it does. What there was before is kept for a second try.
    local before
    [ -e /tmp/modules ] || cp /proc/modules /tmp/modules
    before=$(cat /tmp/modules)
    SKEP_TEST_MESH=kernel tests encrypted::forged && ! grep -q '^wireguard ' <<<"$before" && grep -q '^wireguard ' /proc/modules
}
# tests FILTER…: netd's own tests, one after the other, of which at least one has to run.
tests() {
    local output code=0
    output=$(./netd-tests --test-threads=1 "$@" 2>&1) || code=1
    echo "$output"
    [ $code = 0 ] && grep -Eq '^test result: ok\. [1-9]' <<<"$output"
}
mesh() {
    local devices=$1
    shift
    SKEP_TEST_MESH=$devices tests "$@"
}
check "cgroup v2 alone" cgroup_v2_alone
check "kernel: the module comes when it is asked for" wireguard_loads_by_itself

# --- WireGuard: netd on hosts that are namespaces, with tables as managers send them (overlay/tests/netd).
for devices in kernel kernel,userspace userspace,kernel userspace; do
    check "mesh $devices: tasks talk by name and VIP, the underlay sees nothing" mesh $devices encrypted::tasks_talk
    check "mesh $devices: TCP, UDP and ping of all sizes, both ways" mesh $devices encrypted::all_sizes
    check "mesh $devices: forged VXLAN stays outside" mesh $devices encrypted::forged
    check "mesh $devices: new key, new address" mesh $devices encrypted::a_new_key
    check "mesh $devices: netd is killed and comes back" mesh $devices encrypted::a_netd_that_was_killed
done
check "netd on this kernel: all else" mesh auto --skip encrypted:: --skip figures::
sessions_are_renewed() {
    # Beside each other, as each takes the two minutes after which WireGuard makes new keys.
    mesh kernel,userspace --ignored renewed >/tmp/first.log 2>&1 &
    local first=$! code=0
    mesh userspace,kernel --ignored renewed || code=1
    wait $first || code=1
    cat /tmp/first.log
    return $code
}
check "mesh kernel,userspace and userspace,kernel: sessions are renewed" sessions_are_renewed

# --- Containers on cgroup v2 under systemd. skep brings no unit of its own yet: this is one as it would be.
daemon() {
    systemd-run --quiet --unit=skep --property=Delegate=yes --property=KillMode=process --property=Type=exec \
        /skep/skep daemon "$@"
}
skep() { /skep/skep "$@"; }
starts_a_swarm() {
    ip link set lo up && daemon && until_ok 60 skep swarm init --advertise-addr 127.0.0.1
}
runs_a_service() {
    skep image import --change 'ENTRYPOINT ["/whoami"]' --change 'EXPOSE 8000' whoami.tar whoami:1 &&
        timeout 120 /skep/skep service create --name web --network host --limit-memory 64m --limit-cpu 0.5 --env TASK=vm whoami:1 &&
        until_ok 30 curl -sSf --max-time 5 http://127.0.0.1:8000/ && skep service ps web
}
limits_hold() {
    local pid group
    pid=$(pgrep -x whoami) && group=/sys/fs/cgroup$(cut -d: -f3 /proc/"$pid"/cgroup) && echo "$group" &&
        [ "$(cat "$group/memory.max")" = 67108864 ] && [ "$(cat "$group/cpu.max")" = "50000 100000" ]
}
outlives_the_daemon() {
    local before after
    before=$(pgrep -x whoami) && systemctl kill --kill-whom=main --signal=KILL skep && until_ok 20 systemctl is-failed -q skep &&
        curl -sSf --max-time 5 http://127.0.0.1:8000/ && systemctl reset-failed skep && until_ok 20 daemon &&
        until_ok 60 skep service ps web && after=$(pgrep -x whoami) && [ "$before" = "$after" ]
}
ends() {
    skep service rm web && until_ok 60 sh -c '! pgrep -x whoami'
}
# The runtime's own tests, each file in one process: what containers may, what they see, what they leave.
containers() {
    local output code=0
    install /skep/busybox /bin/busybox
    output=$(./containers/"$1" --test-threads=1 2>&1) || code=1
    echo "$output"
    [ $code = 0 ] && grep -Eq '^test result: ok\. [1-9]' <<<"$output"
}
for file in /skep/containers/*; do
    check "container: the runtime's tests, ${file##*/}" containers "${file##*/}"
done
check "container: a swarm as a service of systemd" starts_a_swarm
check "container: a service with limits" runs_a_service
check "container: the limits are in cgroup v2" limits_hold
check "container: it outlives the daemon" outlives_the_daemon
check "container: it ends" ends
echo "not checked: the systemd unit that skep is to be packaged with, as there is none yet"
[ $failed = 0 ] || { echo "$failed checks failed"; journalctl -u skep --no-pager -n 30; }
echo "SKEP-VM-RESULT $([ $failed = 0 ] && echo 0 || echo 1)"
