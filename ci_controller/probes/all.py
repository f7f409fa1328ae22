"""The list of all probes, in the order in which they are tried: what might disturb the others comes last."""

from __future__ import annotations

from ci_controller.probes import attempt, files, kernel, limits, namespaces, network, process_one, sockets

MODULES = (kernel, namespaces, sockets, files, process_one, network, limits)

PROBES = {
    name: tried
    for module in MODULES
    for name, tried in attempt.PROBES.items()
    if tried.__module__ == module.__name__
}
