"""When the host's own packet filter may be used: it must be the engine's."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ci_controller.firewall import host_firewall_works

LISTEN = """
import socket, sys, threading
engine = socket.socket(socket.AF_UNIX)
engine.bind(sys.argv[1])
engine.listen()
print("listening", flush=True)
threading.Event().wait()
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the packet filter")


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:2375", "ssh://box"])
def test_an_engine_on_another_machine_has_another_one(address: str) -> None:
    assert not host_firewall_works(address)


@needs_root
def test_an_engine_that_listens_here_has_ours(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(f"{tmp_path}/engine.sock")
        engine.listen()
        assert host_firewall_works(f"unix://{tmp_path}/engine.sock")


@needs_root
def test_an_engine_in_a_network_of_its_own_has_another_one(tmp_path: Path) -> None:
    path = f"{tmp_path}/engine.sock"
    with subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", LISTEN, path], stdout=subprocess.PIPE
    ) as engine:
        assert engine.stdout is not None
        try:
            assert engine.stdout.readline() == b"listening\n"
            assert not host_firewall_works(f"unix://{path}")
        finally:
            engine.kill()
