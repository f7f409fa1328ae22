"""The feed: the harness behind its length, then records that carry the tree unchanged."""

import hashlib
import json
from dataclasses import replace
from importlib import resources

import pytest

from ci_common.errors import InvalidArchive
from ci_controller.archive_tar import tar_stream
from ci_controller.feed import BOOTSTRAP_COMMAND, HARNESS_MODULES, feed
from ci_controller.install_plan import InstallPlan, InstallStep
from tests.support.harness import DEFAULTS, MemoryArchive

ARCHIVE = MemoryArchive({f"pkg/m{index}.py": b"x = 1\n" * index for index in range(300)})
LARGE = MemoryArchive({"data.bin": bytes(1_000_000), "a.py": ""})


def records(stream: bytes) -> list[tuple[str, bytes]]:
    """Split what follows the harness's source."""
    at = 4 + int.from_bytes(stream[:4], "big")
    found: list[tuple[str, bytes]] = []
    while at < len(stream):
        size = int.from_bytes(stream[at + 1 : at + 5], "big")
        found.append((chr(stream[at]), stream[at + 5 : at + 5 + size]))
        at += 5 + size
    return found


def test_it_begins_with_the_harness_itself() -> None:
    stream = b"".join(feed(DEFAULTS, ARCHIVE))
    source = json.loads(stream[4 : 4 + int.from_bytes(stream[:4], "big")])
    assert [name.rpartition(".")[2] for name, _ in source] == list(HARNESS_MODULES)
    assert source[-1][1].startswith('"""The first process of a job')


def test_no_module_of_the_harness_is_forgotten() -> None:
    there = {file.name for file in resources.files("ci_controller.harness").iterdir() if file.is_file()}
    assert there == {f"{name}.py" for name in (*HARNESS_MODULES, "__init__", "reporter")}


def test_the_order_is_header_tree_end_go() -> None:
    kinds = "".join(kind for kind, _ in records(b"".join(feed(DEFAULTS, LARGE))))
    assert (kinds[0], set(kinds[1:-2]), kinds[-2:]) == ("H", {"T"}, "EG")


@pytest.mark.parametrize("archive", [ARCHIVE, LARGE])
def test_the_tree_is_the_tar_with_its_size_and_hash(archive: MemoryArchive) -> None:
    found = records(b"".join(feed(DEFAULTS, archive)))
    tree = b"".join(payload for kind, payload in found if kind == "T")
    assert tree == b"".join(tar_stream(archive))
    assert json.loads(found[-2][1]) == {"bytes": len(tree), "sha256": hashlib.sha256(tree).hexdigest()}


def test_many_small_files_are_sent_in_few_pieces() -> None:
    assert len(list(feed(DEFAULTS, ARCHIVE))) < 10


def test_the_header_says_what_to_run() -> None:
    plan = InstallPlan((InstallStep("x", ("pip", "install", "x"), ("install", "x")),), {"A": "b"}, ("src",))
    spec = replace(DEFAULTS, install=plan, pytest_args=("-k", "ü"), timeout_seconds=7)
    header = json.loads(records(b"".join(feed(spec, ARCHIVE)))[0][1])
    assert header["steps"] == [{"title": "x", "uv": ["pip", "install", "x"], "pip": ["install", "x"]}]
    assert (header["environment"], header["paths"]) == ({"A": "b"}, ["src"])
    assert (header["pytest_args"], header["timeout"]) == (["-k", "ü"], 7)


def test_a_damaged_entry_breaks_the_feed_off_before_go() -> None:
    chunks = feed(DEFAULTS, MemoryArchive({"a.py": b"123"}, sizes={"a.py": 4}))
    sent: list[bytes] = []
    with pytest.raises(InvalidArchive):
        sent.extend(chunks)
    assert "G" not in [kind for kind, _ in records(b"".join(sent))]


def test_the_command_holds_nothing_of_any_job() -> None:
    assert BOOTSTRAP_COMMAND[:4] == ("python3", "-I", "-u", "-c")
    compile(BOOTSTRAP_COMMAND[4], "bootstrap", "exec")
