"""Whether the container still has a network."""

# ruff: noqa: PTH110, PTH118, PTH123, PTH208 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import os

INTERFACES = "/sys/class/net"
_IS_UP = (
    1  # IFF_UP; what is down (a tunnel that a kernel puts into every namespace) we have no right to bring up
)


def is_isolated() -> bool:
    """Tell whether no interface but the loopback is up; where that cannot be seen, it is not known to be so."""
    try:
        return not any(_is_up(name) for name in os.listdir(INTERFACES) if name != "lo")
    except OSError:
        return False


def _is_up(name: str) -> bool:
    try:
        with open(os.path.join(INTERFACES, name, "flags")) as file:
            return bool(int(file.read(), 16) & _IS_UP)
    except OSError:  # it went meanwhile, or is asked again
        return os.path.exists(os.path.join(INTERFACES, name))
