#!/bin/sh
# What is done inside the runner image, whichever base it has; runs as root in it, beside ca-bundle.crt.
#   setup.sh packages    what a registry base lacks of the Debian packages that build.sh names
#   setup.sh image       certificates, uv, the users that jobs run as, their group and its virtual environment
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

    users
    mkdir -p /workspace
    # No setgid: all of these users have the group anyway, and tests may look at the mode of a directory they make.
    chown -R ci:ci /opt/venv /workspace /home/ci
    chmod -R g+rwX /opt/venv /workspace /home/ci
    # What is in a job's workspace belongs to whichever user the job has, and the workspace itself to `ci`.
    git config --system --replace-all safe.directory '*'
}

# Every container has a user of its own of this range (`ci_controller/container_users.py`), all of one group.
users() {
    getent group ci >/dev/null || groupadd --gid 1000 ci
    id ci >/dev/null 2>&1 || useradd --create-home --uid 1000 --gid ci --shell /bin/sh ci
    for uid in $(seq 60706 61183); do
        echo "ci$uid:x:$uid:1000::/home/ci:/bin/sh"
    done >>/etc/passwd
}

"$1"
