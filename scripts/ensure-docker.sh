#!/usr/bin/env bash
# When this returns 0 a Docker engine answers `docker info`; when not, it has said what to do (exit 69).
#
# It uses the engine that answers (DOCKER_HOST is honoured). Only where none does, and only as root on
# Debian or Ubuntu, it installs `docker.io` and starts the daemon, which then outlives this script.
set -euo pipefail

readonly UNAVAILABLE=69
readonly SOCKET=/var/run/docker.sock
readonly PID_FILE=/var/run/docker.pid
readonly CONTAINERD_PID_FILE=/var/run/docker/containerd/containerd.pid
readonly LOG=/var/log/ci-dockerd.log
readonly START_SECONDS=60

say() { printf 'docker: %s\n' "$*" >&2; }
fail() {
    printf 'docker: %s\n' "$@" >&2
    exit "$UNAVAILABLE"
}
have() { command -v "$1" >/dev/null 2>&1; }
answers() { timeout 15 docker info >/dev/null 2>&1; }
systemd_runs() { [ -d /run/systemd/system ]; }
runs_as() { [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ]; }
dockerd_runs() { grep -q -s -x dockerd /proc/[0-9]*/comm; } # minimal systems have no pgrep

is_debian() {
    [ -r /etc/os-release ] && have apt-get && (
        . /etc/os-release
        case " ${ID:-} ${ID_LIKE:-} " in *" debian "* | *" ubuntu "*) ;; *) exit 1 ;; esac
    )
}

# What cannot be cured by installing or starting something here gets one clear sentence.
refuse_what_we_cannot_cure() {
    if have docker && [ -n "${DOCKER_HOST:-}" ]; then
        fail "DOCKER_HOST=$DOCKER_HOST does not answer." \
            "Start the engine there, or unset DOCKER_HOST to use one on this machine."
    fi
    if [ "$(id -u)" -eq 0 ]; then return; fi
    if [ -S "$SOCKET" ] && [ ! -w "$SOCKET" ]; then
        fail "$SOCKET belongs to another group than yours." \
            "Run \`sudo usermod -aG docker $(id -un)\`, log in again and repeat the command."
    fi
    if ! have docker; then
        fail "Docker is not installed. Install it as an administrator and repeat the command:" \
            "  Debian, Ubuntu:  sudo apt-get install docker.io" \
            "  Fedora:          sudo dnf install moby-engine" \
            "  others, macOS:   https://docs.docker.com/engine/install/"
    fi
    fail "the engine does not answer. Start it and repeat the command:" \
        "  with systemd:    sudo systemctl start docker" \
        "  otherwise:       sudo $0"
}

install_engine() {
    if have docker && have dockerd; then return; fi
    # A command line without a daemon is a choice (a remote engine, a mounted socket) only with DOCKER_HOST.
    is_debian || fail "Docker is not installed, and this is not Debian or Ubuntu." \
        "Install it as https://docs.docker.com/engine/install/ says and repeat the command."
    say "no engine here; installing docker.io (about a minute)"
    local output
    output=$(mktemp)
    if ! apt_install docker.io >"$output" 2>&1; then
        tail -n 20 "$output" >&2
        rm -f "$output"
        fail "apt-get could not install docker.io; its last lines are above."
    fi
    # From Debian 13 on the command line is a package of its own.
    have docker || apt_install docker-cli >>"$output" 2>&1 || true
    rm -f "$output"
    have docker || fail "docker.io is installed, but there is no \`docker\` command: install docker-cli."
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o Acquire::Retries=3 update </dev/null &&
        apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$1" ca-certificates </dev/null
}

# A daemon that was killed leaves files behind that keep the next one from starting.
remove_leftovers() {
    local pid
    pid=$(cat "$PID_FILE" 2>/dev/null || true)
    if [ -n "$pid" ] && ! runs_as "$pid" dockerd; then
        say "removing the stale $PID_FILE of process $pid"
        rm -f "$PID_FILE"
    fi
    pid=$(cat "$CONTAINERD_PID_FILE" 2>/dev/null || true)
    if [ -n "$pid" ] && ! runs_as "$pid" containerd; then rm -f "$CONTAINERD_PID_FILE"; fi
}

# Docker's own containerd without its dockerd: usually taken over, but a half-dead one blocks every start.
end_orphaned_containerd() {
    local pid
    pid=$(cat "$CONTAINERD_PID_FILE" 2>/dev/null || true)
    if [ -z "$pid" ] || ! runs_as "$pid" containerd; then return; fi
    say "ending the containerd (process $pid) that an earlier engine left behind"
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do
        runs_as "$pid" containerd || break
        sleep 0.1
    done
    if runs_as "$pid" containerd; then kill -KILL "$pid" 2>/dev/null || true; fi
    rm -f "$CONTAINERD_PID_FILE"
}

# Minimal systems without an init mount no cgroups at all, and the engine needs them.
mount_cgroups() {
    if mountpoint -q /sys/fs/cgroup; then return; fi
    have cgroupfs-mount || { is_debian && apt_install cgroupfs-mount >/dev/null 2>&1; } || true
    if have cgroupfs-mount && cgroupfs-mount; then return; fi
    mount -t cgroup2 none /sys/fs/cgroup || say "cgroups cannot be mounted at /sys/fs/cgroup"
}

daemon_pid=
launch_daemon() {
    remove_leftovers
    mount_cgroups
    : >"$LOG"
    setsid nohup dockerd </dev/null >>"$LOG" 2>&1 &
    daemon_pid=$!
}

# Returns 0 once the engine answers, 1 when the daemon has ended or the time is up.
wait_until_it_answers() {
    local started=$SECONDS
    while [ $((SECONDS - started)) -lt "$START_SECONDS" ]; do
        if answers; then return 0; fi
        if [ -n "$daemon_pid" ] && ! kill -0 "$daemon_pid" 2>/dev/null; then return 1; fi
        if [ -t 2 ]; then printf '\rdocker: waiting for the engine, %s s ' "$((SECONDS - started))" >&2; fi
        sleep 0.3
    done
    return 1
}

give_up() {
    say "the engine did not start; the last lines of $LOG:"
    tail -n 20 "$LOG" 2>/dev/null | sed 's/^/  /' >&2 || true
    exit "$UNAVAILABLE"
}

start_with_systemd() {
    say "starting the engine (systemctl start docker)"
    if ! systemctl start docker || ! wait_until_it_answers; then
        journalctl --no-pager -n 20 -u docker >&2 || true
        fail "the engine did not start; the last lines of its journal are above."
    fi
}

start_by_hand() {
    if dockerd_runs; then
        say "a dockerd is there already; waiting for it"
        wait_until_it_answers && return
        fail "dockerd runs but does not answer. It is not ours to kill: end it and repeat the command."
    fi
    say "starting dockerd (its log: $LOG)"
    launch_daemon
    wait_until_it_answers && return
    stop_what_we_launched
    end_orphaned_containerd
    # Kernels without nftables support refuse iptables' default backend.
    if grep -q -i 'iptables' "$LOG" && [ -x /usr/sbin/iptables-legacy ]; then
        say "trying again with iptables-legacy"
        update-alternatives --set iptables /usr/sbin/iptables-legacy >/dev/null 2>&1 || true
    fi
    say "starting dockerd a second time"
    launch_daemon
    wait_until_it_answers || { stop_what_we_launched; give_up; }
}

stop_what_we_launched() {
    if [ -z "$daemon_pid" ]; then return; fi
    kill "$daemon_pid" 2>/dev/null || true
    wait "$daemon_pid" 2>/dev/null || true
    daemon_pid=
}

main() {
    if have docker && answers; then return; fi
    refuse_what_we_cannot_cure
    install_engine
    if ! answers; then
        if systemd_runs; then start_with_systemd; else start_by_hand; fi
    fi
    say "engine $(docker version --format '{{.Server.Version}}' 2>/dev/null) answers"
}

main "$@"
