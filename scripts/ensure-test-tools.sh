#!/usr/bin/env bash
# When this returns 0, the programs are there by which the fault tests make networks of their own; when not, it has said what to do.
set -euo pipefail

readonly FAILED=69

missing=()
command -v ip >/dev/null || missing+=(iproute2)
command -v iptables >/dev/null || missing+=(iptables)
command -v nsenter >/dev/null || missing+=(util-linux)
if ((${#missing[@]} == 0)); then exit 0; fi

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]} for the fault tests"
    apt-get update -qq
    exec apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
echo "The fault tests need ${missing[*]}: install them (Debian, Ubuntu: sudo apt-get install ${missing[*]})" >&2
exit "$FAILED"
