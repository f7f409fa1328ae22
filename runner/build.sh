#!/bin/sh
# Makes the runner image `ci-runner:latest`, unless it is there: from a registry base where a registry answers, else
# from Debian packages. Does nothing when the image of these files and this CA bundle exists.
#
#   CI_CA_BUNDLE      certificates the jobs trust; by default those this host trusts
#   CI_RUNNER_BASE    base image to try first; "debian" goes straight to Debian packages
#   CI_PULL_SECONDS   how long a registry may take to give the base (60)
set -eu
cd "$(dirname "$0")"
name=ci-runner
suite=bookworm
packages=python3,python3-venv,ca-certificates,git,less,tzdata,iptables
base=${CI_RUNNER_BASE:-$(sed -n 's/^ARG BASE=//p' Dockerfile)}
started=$(date +%s)

say() { echo "[runner image +$(($(date +%s) - started)) s] $*" >&2; }
fail() { say "$*"; exit 1; }

find_bundle() {
    for file in "${CI_CA_BUNDLE:-}" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt \
        /etc/pki/tls/certs/ca-bundle.crt /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem /etc/ssl/cert.pem; do
        if [ -n "$file" ] && [ -s "$file" ]; then
            echo "$file"
            return
        fi
    done
}

from_registry() {
    [ "$base" != debian ] || return 1
    docker image inspect "$base" >/dev/null 2>&1 || {
        say "pulling $base"
        timeout "${CI_PULL_SECONDS:-60}" docker pull --quiet "$base" >/dev/null 2>&1 || return 1
    }
    say "building on $base"
    docker build --quiet --build-arg "BASE=$base" --tag "$tag" "$context" >/dev/null
}

need_mmdebstrap() {
    command -v mmdebstrap >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing mmdebstrap"
        apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends mmdebstrap debian-archive-keyring >/dev/null && return
    fi
    fail "no registry gives $base, and mmdebstrap is missing: run 'apt-get install mmdebstrap debian-archive-keyring'" \
        "as root, or name an image of your own with CI_RUNNER_IMAGE"
}

# mmdebstrap runs its hooks with the new system's directory as $1.
from_debian() {
    need_mmdebstrap
    say "bootstrapping from Debian $suite packages (about 40 s)"
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook="mkdir -p \"\$1/tmp/runner\" && cp '$context/setup.sh' '$context/ca-bundle.crt' \"\$1/tmp/runner\"" \
        --customize-hook="chroot \"\$1\" sh /tmp/runner/setup.sh image && rm -r \"\$1/tmp/runner\"" \
        "$suite" "$context/root.tar" || fail "bootstrapping failed; the lines above say why"
    say "importing"
    set --
    while read -r line; do
        set -- "$@" --change "$line"
    done <<LINES
$(grep -E '^(ENV|WORKDIR|USER|CMD) ' Dockerfile)
LINES
    docker import "$@" "$context/root.tar" "$tag" >/dev/null
}

docker version >/dev/null 2>&1 || fail "no Docker engine answers"
bundle=$(find_bundle)
tag=$name:$(cat build.sh setup.sh Dockerfile ${bundle:+"$bundle"} | sha256sum | cut -c1-12)

# Two builders at once (a demo and the tests) do the work once.
exec 9>"${TMPDIR:-/tmp}/$name-$(id -u).lock"
flock 9
if ! docker image inspect "$tag" >/dev/null 2>&1; then
    context=$(mktemp -d)
    trap 'rm -rf "$context"' EXIT
    cp Dockerfile setup.sh "$context"
    cat ${bundle:+"$bundle"} </dev/null >"$context/ca-bundle.crt"
    from_registry || from_debian
    say "$tag is ready"
fi
docker tag "$tag" "$name:latest"
