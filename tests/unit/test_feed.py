"""The feed: the harness behind its length, then records that carry the tree unchanged."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from importlib import resources

import pytest

from ci_common.errors import InvalidArchive
from ci_controller.archive_tar import tar_stream
from ci_controller.feed import BOOTSTRAP_COMMAND, HARNESS_MODULES, Build, build_feed, prelude, tree_feed
from ci_controller.install_plan import InstallPlan, InstallStep
from tests.support.harness import DEFAULTS, MemoryArchive, feed

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
    assert there == {f"{name}.py" for name in (*HARNESS_MODULES, "__init__", "reporter", "forerunner")}


def test_the_order_is_how_to_wait_header_tree_end_go() -> None:
    kinds = "".join(kind for kind, _ in records(b"".join(feed(DEFAULTS, LARGE))))
    assert (kinds[:2], set(kinds[2:-2]), kinds[-2:]) == ("WH", {"T"}, "EG")


def test_before_a_job_is_known_nothing_is_said_of_any() -> None:
    [(kind, payload)] = records(b"".join(prelude({"A": "b"}, ahead=True)))
    waiting = json.loads(payload)
    assert (kind, waiting["environment"], waiting["ahead"]) == ("W", {"A": "b"}, True)
    assert waiting.keys() == {"workspace", "environment", "reporter", "forerunner", "ahead"}


def test_the_barrier_is_between_what_is_kept_and_the_tree() -> None:
    build = Build((("requirements.txt", b"x"), ("more/r.txt", b"y")))
    before = "".join(kind for kind, _ in records(bytes(4) + b"".join(build_feed(DEFAULTS, build))))
    behind = "".join(kind for kind, _ in records(bytes(4) + b"".join(tree_feed(LARGE))))
    assert (before, behind.replace("TTTT", "T")) == ("HTE", "TEG")


def test_what_is_built_from_is_sent_like_a_tree() -> None:
    found = records(bytes(4) + b"".join(build_feed(DEFAULTS, Build((("a/r.txt", b"x"),)))))
    assert json.loads(found[0][1])["build"] is True
    with tarfile.open(fileobj=io.BytesIO(found[1][1])) as tar:
        assert tar.getnames() == ["a", "a/r.txt"]


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
    spec = replace(
        DEFAULTS, install=plan, project_steps=plan.steps, pytest_args=("-k", "ü"), timeout_seconds=7
    )
    header = json.loads(records(b"".join(feed(spec, ARCHIVE)))[1][1])
    assert (
        header["steps"]
        == header["project_steps"]
        == [{"title": "x", "uv": ["pip", "install", "x"], "pip": ["install", "x"]}]
    )
    assert (header["environment"], header["paths"]) == ({"A": "b"}, ["src"])
    assert (header["pytest_args"], header["timeout"]) == (["-k", "ü"], 7)


def test_a_damaged_entry_breaks_the_feed_off_before_go() -> None:
    chunks = feed(DEFAULTS, MemoryArchive({"a.py": b"123"}, sizes={"a.py": 4}))
    sent: list[bytes] = []
    with pytest.raises(InvalidArchive):
        sent.extend(chunks)
    assert "G" not in [kind for kind, _ in records(b"".join(sent))]


def test_the_command_holds_nothing_of_any_job() -> None:
    assert BOOTSTRAP_COMMAND[:2] == ("/bin/sh", "-c")
    assert BOOTSTRAP_COMMAND[4:8] == ("-I", "-S", "-u", "-c")
    compile(BOOTSTRAP_COMMAND[8], "bootstrap", "exec")
