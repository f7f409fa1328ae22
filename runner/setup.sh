#!/bin/sh
# What is done inside the runner image, whichever base it has; runs as root in it, beside ca-bundle.crt.
#   setup.sh packages    what a registry base lacks of the Debian packages that build.sh names
#   setup.sh image       certificates, uv, the user `ci` and its virtual environment
set -eu
here=$(dirname "$0")
bundle=/etc/ssl/certs/ca-certificates.crt

packages() {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends ca-certificates git less tzdata iptables >/dev/null
    rm -rf /var/lib/apt/lists/*
}

image() {
    if [ -s "$here/ca-bundle.crt" ]; then
        mkdir -p /etc/ssl/certs
        cp "$here/ca-bundle.crt" "$bundle"
    fi
    unset PIP_FIND_LINKS PIP_USER PIP_TARGET  # the host's; they name places that are not in here
    export PIP_CERT="$bundle" SSL_CERT_FILE="$bundle" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 HOME=/root

    python3 -m venv /opt/venv
    /opt/venv/bin/python -m pip install --quiet --upgrade pip uv
    mv /opt/venv/bin/uv /usr/local/bin/uv
    /opt/venv/bin/python -m pip uninstall --quiet --yes uv

    id ci >/dev/null 2>&1 || useradd --create-home --uid 1000 --shell /bin/sh ci
    mkdir -p /workspace
    chown -R ci:ci /opt/venv /workspace
}

"$1"
