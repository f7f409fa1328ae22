"""What a job's output and words do to the terminal of who reads them: a real server, the real `ci`, a real PTY."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ci_common.clock import utcnow
from ci_common.job_terms import Reason
from ci_common.models import Job
from ci_common.verdict import verdict
from tests.support.ci_command import ci_environment
from tests.support.ci_forks import forked_ci_on_screen, run_forked_ci
from tests.support.http_peer import JOB_ID, KEY, Cut, HttpPeer
from tests.support.server import Account, Site, serving

# Everything that could set a title, reach the clipboard, ask for an answer, move, hide or print.
HOSTILE = b"".join(
    [
        b"\x1b]0;title\x07\x1b]52;c;aGk=\x1b\\\x1b]8;;http://x\x07link\x1b]8;;\x07\x1b]10;?\x07",
        b"\xc2\x9d0;title\xc2\x9c\xc2\x9b2J\x1bP$qm\x1b\\\x1b_apc\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\",
        b"\x1b[2J\x1b[1;1H\x1b[6n\x1b[?1049h\x1b[?25l\x1b[5i\x1bc\x1b(0\x1b#8\x08\x07\x0b\x0c\x0e\x00\x7f",
        b"\x1b[1\x1b[32mgreen\x1b[0m \x1b[?1mno colour\n",
    ]
)
OURS = "\r\x1b[K"  # takes away the transient line
COLOUR = re.compile(r"\x1b\[[0-9;:]*m")

Shown = Callable[..., Awaitable[str]]


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    with serving(site.settings) as url:
        yield url


@pytest.fixture
def screen(url: str, ada: Account, tmp_path: Path) -> Shown:
    """What `ci` shows with those arguments on a terminal."""
    environment = ci_environment(url, ada.secret, TERM="xterm")

    async def show(*arguments: str) -> str:
        shown = await asyncio.to_thread(
            forked_ci_on_screen, *arguments, environment=environment, cwd=tmp_path
        )
        return shown.replace("\r\n", "\n")  # as the terminal's line discipline made of it

    return show


@pytest.fixture
def piped(url: str, ada: Account, tmp_path: Path) -> Callable[..., Awaitable[bytes]]:
    """What `ci` writes into a pipe with those arguments."""

    async def run(*arguments: str) -> bytes:
        environment = ci_environment(url, ada.secret)
        return (
            await asyncio.to_thread(run_forked_ci, *arguments, environment=environment, cwd=tmp_path)
        ).stdout

    return run


def controls(shown: str) -> set[str]:
    """Return the control characters beside colours and what is our own."""
    rest = COLOUR.sub("", shown.replace(OURS, ""))
    return {char for char in rest if char != "\n" and (ord(char) < 32 or 127 <= ord(char) < 160)}


@pytest.mark.parametrize("command", ["wait", "logs"])
async def test_output_has_no_power_over_a_terminal_and_is_whole_in_a_file(
    site: Site, ada: Account, screen: Shown, piped: Callable[..., Awaitable[bytes]], command: str
) -> None:
    job = await site.finished_job(ada, HOSTILE * 50)
    arguments = (command, job.id, *(["--all"] if command == "wait" else []))
    shown = await screen(*arguments)
    assert controls(shown) == set()
    assert "title" not in shown
    assert shown.count("\x1b[32mgreen\x1b[0m no colour\n") == 50
    assert await piped(*arguments) == HOSTILE * 50
    raw = await screen(*arguments, "--raw")
    assert "\x1b]0;title\x07" in raw
    assert "\x1b[?1049h" in raw


@pytest.mark.parametrize(
    "text", ["é" * 9_000, "a" + "é" * 9_000, "\N{PARTY POPPER}" * 20_000, "x" + "中" * 30_000]
)
async def test_characters_cut_by_chunks_arrive_whole(
    site: Site, ada: Account, screen: Shown, piped: Callable[..., Awaitable[bytes]], text: str
) -> None:
    job = await site.finished_job(ada, text.encode())
    assert f"{text}\n" in await screen("wait", job.id, "--all")
    assert await piped("wait", job.id, "--all") == text.encode()
    events = [json.loads(line) for line in (await piped("wait", job.id, "--all", "--json")).splitlines()]
    assert "".join(event["data"] for event in events if event["type"] == "log") == text


async def test_output_that_looks_like_events_is_output(
    site: Site, ada: Account, piped: Callable[..., Awaitable[bytes]], url: str, tmp_path: Path
) -> None:
    forged = (
        b'\n\ndata: {"type": "complete", "success": true, "exit_code": 0}\n\n'
        b'id: 9:9\nevent: complete\nretry: 1\ndata: {"type": "job_id", "job_id": "x"}\r\n\r\n: ping\n\n'
    )
    job = await site.queue_job(ada)
    attempt = await site.hands.start()
    site.hands.write(attempt, forged)
    await site.hands.finish(attempt, Reason.TESTS_FAILED)
    environment = ci_environment(url, ada.secret)
    arguments = ("wait", job.id, "--all")
    done = await asyncio.to_thread(run_forked_ci, *arguments, environment=environment, cwd=tmp_path)
    assert (done.stdout, done.returncode) == (forged, 1)
    events = [json.loads(line) for line in (await piped(*arguments, "--json")).splitlines()]
    assert [event["type"] for event in events].count("complete") == 1


@pytest.mark.parametrize(
    ("output", "on_terminal"),
    [
        (
            b"\xff\xfe\x80 \xc3\x28 \xed\xa0\x80\na\x00b\x00\n10%\r20%\r\r\r30%\r\n",
            "\ufffd\ufffd\ufffd \ufffd( \ufffd\ufffd\ufffd\nab\n10%\r20%\r30%\r\n",
        ),
        (b"no end", "no end\n"),
        (b"half \xe2\x82", "half \ufffd\n"),
    ],
    ids=["no text, NUL, carriage returns", "partial last line", "half a character"],
)
async def test_bytes_of_every_kind_are_kept_and_shown(
    site: Site,
    ada: Account,
    screen: Shown,
    piped: Callable[..., Awaitable[bytes]],
    output: bytes,
    on_terminal: str,
) -> None:
    job = await site.finished_job(ada, output)
    assert await piped("logs", job.id) == output, "nothing is added in a pipe, not even a line end"
    assert (await screen("wait", job.id, "--all")).startswith(on_terminal)
    for line in (await piped("wait", job.id, "--all", "--json")).splitlines():
        json.loads(line)


async def failed_with(site: Site, ada: Account, message: str) -> Job:
    """A job whose verdict quotes the job."""
    job = await site.queue_job(ada)
    attempt = await site.hands.start()
    seal = site.hands.seal(attempt)
    said = verdict(Reason.INSTALL_FAILED, message)
    assert await site.repository.finish_attempt(attempt.fence, said, seal, utcnow())
    return job


@pytest.mark.parametrize(
    "command", [("wait",), ("status",), ("wait", "--json"), ("status", "--json"), ("list",)]
)
async def test_a_verdict_that_quotes_the_job_is_one_harmless_line(
    site: Site, ada: Account, screen: Shown, command: tuple[str, ...]
) -> None:
    hostile = f"{HOSTILE.decode()}\r\nFORGED \u202e\u200b"
    job = await failed_with(site, ada, hostile)
    shown = await screen(*command[:1], *([] if command == ("list",) else [job.id]), *command[1:])
    assert controls(shown) == set()
    assert [line for line in shown.splitlines() if line.strip().startswith("FORGED")] == []
    assert not {"\u202e", "\u200b"} & set(shown)


def test_a_remark_is_not_hidden_by_the_colours_of_the_job(tmp_path: Path) -> None:
    with HttpPeer() as peer:
        peer.script.log = b"\x1b[8;30;40mhidden " * 20
        peer.script.faults.extend([Cut(1000), Cut(0), Cut(0), Cut(0)])
        environment = ci_environment(peer.url, KEY, TERM="xterm")
        shown = forked_ci_on_screen("wait", JOB_ID, "--all", environment=environment, cwd=tmp_path)
    before, told, _ = shown.partition("The connection to")
    assert told
    assert "\x1b[8;30;40m" in before
    assert COLOUR.findall(before)[-1] == "\x1b[0m"
