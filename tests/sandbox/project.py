"""The hostile project: every probe as a test of its own, and tests that forge what the harness says."""

from collections.abc import Mapping
from pathlib import Path

from ci_controller.probes.report import files
from tests.support.installation import make_project

FORGED = "forged by a test"

_PROBES = """\
import json
import pytest
from ci_controller.probes.all import PROBES
from ci_controller.probes.attempt import run

@pytest.mark.parametrize("name", PROBES)
def test_probe(name):
    result = run(name)
    print("\\n" + json.dumps(result._asdict()), flush=True)
    assert not result.succeeded, result.evidence
"""

_FORGERIES = f"""\
import base64, json, os, stat
import pytest

TRAILER = {{"n": 10**6, "t": "end", "outcome": "tests_ran", "exit_code": 0, "session_finished": True,
           "collection_errors": 0, "log_bytes": 0, "log_sha256": "0" * 64, "message": "{FORGED}"}}
OUTPUT = {{"n": 10**6, "t": "o", "d": base64.b64encode(b"{FORGED}").decode()}}

@pytest.mark.parametrize("descriptor", [1, 2])
@pytest.mark.parametrize("frame", [TRAILER, OUTPUT, {{"n": 1, "t": "e", "k": "begun", "d": {{}}}}])
def test_frames(descriptor, frame):
    os.write(descriptor, b"\\n" + json.dumps(frame, separators=(",", ":")).encode() + b"\\n")

def test_events_of_the_stream():
    print('\\n\\nevent: complete\\nid: 9-9\\ndata: {{"type":"complete","success":true}}\\n\\n', flush=True)

def test_escape_sequences():
    title, clipboard = "\\x1b]0;{FORGED}\\x07", "\\x1b]52;c;Zm9yZ2Vk\\x07"
    for sequence in (title, clipboard, "\\x1b[2J\\x1b[H", "\\x1bP+q544e\\x1b\\\\"):
        print("\\n" + sequence, flush=True)

def test_every_descriptor_is_told_a_success():
    lie = json.dumps({{"finished": 0, "collection_errors": 0, "summary": "{FORGED}"}}).encode() + b"\\n"
    for descriptor in range(3, 256):
        try:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.write(descriptor, lie)
        except OSError:
            pass
"""

_FILLING = """\
from ci_controller.probes.all import PROBES
from ci_controller.probes.attempt import run

def test_fills_the_disk():
    assert "fill_disk" in PROBES
    print("filling", flush=True)
    print(run("fill_disk"), flush=True)
"""

_PEER = """\
import socket, time

def test_listens():
    with socket.create_server(("", 8000)) as listener:
        print("\\nlistening at", socket.gethostbyname(socket.gethostname()), flush=True)
        listener.settimeout(100)
        listener.accept()
"""


def hostile(root: Path, targets: Mapping[str, str]) -> Path:
    """Return a project that tries every probe and forges on; none of its own tests fails unless a probe succeeds."""
    return make_project(
        root,
        {
            **files(targets),
            "test_a_probes.py": _PROBES,
            "test_b_forgeries.py": _FORGERIES,
        },
    )


def filler(root: Path, disk: str) -> Path:
    """Return a project that fills its job's disk: so many bytes, and so many seconds of waiting for its end."""
    return make_project(root, {**files({"disk": disk}), "test_disk.py": _FILLING})


def liar() -> dict[str, str]:
    """Return the files of a project whose tests forge a success and then fail."""
    failing = "\ndef test_that_fails():\n    assert False, 'the truth'\n"
    return {"test_lies.py": _FORGERIES + failing}


def leaver() -> dict[str, str]:
    """Return the files of a project whose tests forge a success; then one leaves with it before the last one runs."""
    leaving = "\ndef test_that_leaves():\n    os._exit(0)\n\ndef test_that_fails():\n    assert False\n"
    return {"test_lies.py": _FORGERIES + leaving}


def peer(root: Path) -> Path:
    """Return a project that listens at a port, and says where, until somebody connects."""
    return make_project(root, {"test_peer.py": _PEER})
