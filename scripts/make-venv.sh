#!/usr/bin/env bash
# When this returns 0, .venv holds this project (editable) and all its tools; when not, it has said what to do.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VENV=.venv
readonly USAGE=64
readonly FAILED=70

suitable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 && suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    {
        echo "Python 3.11 or newer is needed, and none was found on PATH. Install it and repeat the command:"
        echo "  Debian 12, Ubuntu 24.04 or newer:  apt-get install python3 python3-venv"
        echo "  others:                            https://www.python.org/downloads/ or \`uv python install 3.12\`"
        echo "Another interpreter can be named: make PYTHON=/path/to/python …"
    } >&2
    exit "$USAGE"
}

# Debian splits the standard library: venv without ensurepip makes an environment without pip.
require_venv() {
    if "$1" -c 'import venv, ensurepip' >/dev/null 2>&1; then return; fi
    local version
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "Python $version is here, but its venv module is not. Install it and repeat the command:" >&2
    echo "  Debian, Ubuntu:  apt-get install python3-venv    (or python$version-venv)" >&2
    exit "$USAGE"
}

# Quiet unless it fails: then everything it said is shown.
quietly() {
    local output
    output=$(mktemp)
    if "$@" >"$output" 2>&1 </dev/null; then
        rm -f "$output"
        return
    fi
    cat "$output" >&2
    rm -f "$output"
    echo "failed: $*" >&2
    exit "$FAILED"
}

python=$(find_python)
require_venv "$python"
if ! { [ -x "$VENV/bin/python" ] && suitable "$VENV/bin/python"; }; then
    echo "making $VENV with $("$python" --version)"
    quietly "$python" -m venv --clear "$VENV"
fi
echo "installing this project and its tools into $VENV (under a minute)"
quietly "$VENV/bin/python" -m pip install --disable-pip-version-check -e '.[dev]'
