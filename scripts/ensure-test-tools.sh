#!/usr/bin/env bash
# When this returns 0, the programs are there by which tests make networks and databases of their own; when not, it has said what to do.
set -euo pipefail

readonly FAILED=69

missing=()
command -v ip >/dev/null || missing+=(iproute2)
command -v iptables >/dev/null || missing+=(iptables)
command -v nsenter >/dev/null || missing+=(util-linux)
# Debian has the server beside those of other versions, not on PATH.
compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null || command -v postgres >/dev/null || missing+=(postgresql)
if ((${#missing[@]} == 0)); then exit 0; fi

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]} for the tests"
    apt-get update -qq
    exec apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
echo "The tests need ${missing[*]}: install them (Debian, Ubuntu: sudo apt-get install ${missing[*]})" >&2
exit "$FAILED"
