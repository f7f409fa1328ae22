"""The `ci` command in a process of its own: what is on which stream, and with which code it ends.

`ci` starts it as a person does; `forked` spares the start where only what it answers is judged.
"""

import json
import signal
import subprocess
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ci_common.events import CompleteEvent, ErrorEvent, StatusEvent
from ci_common.job_terms import JobStatus, Reason
from tests.support.ci_command import COMMAND, ci_environment, run_ci
from tests.support.ci_forks import forked_ci_on_screen, run_forked_ci
from tests.support.http_peer import JOB_ID, KEY, Answer, Cut, HttpPeer
from tests.support.screen import ci_on_screen

Ci = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    with HttpPeer() as peer:
        yield peer


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "test_a.py").write_text("def test_a(): pass\n")
    return tmp_path


@pytest.fixture
def ci(peer: HttpPeer, project: Path) -> Ci:
    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        return run_ci(*arguments, environment=ci_environment(peer.url, KEY, **more), cwd=project)

    return run


@pytest.fixture
def forked(peer: HttpPeer, project: Path) -> Ci:
    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        return run_forked_ci(*arguments, environment=ci_environment(peer.url, KEY, **more), cwd=project)

    return run


def lines(stream: bytes) -> list[str]:
    return stream.decode().splitlines()


def test_a_submission_streams_the_output_and_says_the_verdict(peer: HttpPeer, ci: Ci) -> None:
    peer.script.log = b"\x1b[32mok\x1b[0m \xff\x00 \x1b]0;title\x07\r\nend without newline"
    peer.script.before = (
        StatusEvent(JobStatus.QUEUED, 0, "waiting in the queue behind 2 other jobs"),
        StatusEvent(JobStatus.RUNNING, 1),
    )
    done = ci("submit", "test", "--timeout", "10m", "--", "-k", "a b")
    assert done.stdout == peer.script.log  # a pipe gets every byte
    first, *states, last = lines(done.stderr)
    assert JOB_ID in first
    assert f"ci wait {JOB_ID}" in first
    assert states == ["queued: waiting in the queue behind 2 other jobs", "running"]
    assert last.startswith("✓ passed in ")
    assert done.returncode == 0
    (request,) = peer.requests("POST", "/submit-tree")
    asked = request.submission.asked
    assert asked == {"root": asked["root"], "pytest_args": ["-k", "a b"], "timeout": 600}
    assert peer.shelf.files(asked["root"]) == {"test_a.py": (b"def test_a(): pass\n", False)}


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        (("--priority", "high", "--pool", "gpu"), {"priority": "high", "pool": "gpu"}),
        (("--max-attempts", "1", "--queue-timeout", "10m"), {"max_attempts": 1, "queue_timeout": 600}),
        ((), {}),
    ],
)
def test_what_a_job_may_take_of_the_queue_is_asked_for_by_options(
    peer: HttpPeer, forked: Ci, flags: tuple[str, ...], sent: dict[str, Any]
) -> None:
    forked("submit", "test", "--async", *flags)
    (request,) = peer.requests("POST", "/submit-tree")
    asked = request.submission.asked
    assert {name: asked[name] for name in asked.keys() - {"root", "pytest_args"}} == sent


def test_arguments_that_no_job_may_have_are_refused_before_anything_is_sent(
    peer: HttpPeer, forked: Ci
) -> None:
    done = forked("submit", "test", "--", "é" * 6_000)
    assert done.returncode == 64
    assert b"32768" in done.stderr
    assert b"addopts" in done.stderr
    assert peer.received == []


def test_the_queue_says_why_each_job_waits(peer: HttpPeer, forked: Ci) -> None:
    assert lines(forked("queue").stdout) == ["None of your jobs is waiting."]
    peer.script.queued = [
        {
            "job_id": JOB_ID,
            "status": "queued",
            "priority": "normal",
            "created_at": "2026-01-02T03:04:05Z",
            "position": 3,
            "waiting_for": "3 jobs are before it",
            "estimated_wait_seconds": 75.2,
        },
        {"job_id": JOB_ID, "position": 4, "waiting_for": "the queue is paused: \x1b[2J"},
    ]
    head, first, second = lines(forked("queue").stdout)
    assert head.split() == ["JOB", "ID", "PRIORITY", "PLACE", "WAIT", "WHY"]
    assert first.endswith("     3 about 1 min 15 s     3 jobs are before it")
    assert "paused" in second
    assert "\x1b" not in second
    assert json.loads(forked("queue", "--json").stdout) == peer.script.queued


@pytest.mark.parametrize(("flags", "sent"), [(("--fresh",), True), ((), None)])
def test_a_fresh_job_is_asked_for_by_a_flag(
    peer: HttpPeer, forked: Ci, flags: tuple[str, ...], sent: bool | None
) -> None:
    forked("submit", "test", "--async", *flags)
    (request,) = peer.requests("POST", "/submit-tree")
    assert request.submission.asked.get("fresh") is sent


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (
            CompleteEvent(False, JobStatus.COMPLETED, 1, Reason.TESTS_FAILED, "1 failed"),
            1,
            "tests failed (exit 1)",
        ),
        (CompleteEvent(False, JobStatus.COMPLETED, 5, Reason.NO_TESTS), 5, "no tests (exit 5)"),
        (
            CompleteEvent(False, JobStatus.FAILED, None, Reason.INSTALL_FAILED, "no such\x1b[2J package"),
            125,
            "no verdict: install_failed - no such package",
        ),
        (
            CompleteEvent(False, JobStatus.FAILED, None, Reason.TIMEOUT, "after 60 s"),
            124,
            "timeout - after 60 s",
        ),
        (CompleteEvent(False, JobStatus.CANCELLED, None, Reason.CANCELLED), 143, "cancelled"),
        (CompleteEvent(False, JobStatus.DEAD_LETTERED, None, Reason.INFRA), 125, "no verdict: infra"),
    ],
    ids=lambda value: getattr(value, "reason", ""),
)
def test_each_verdict_has_its_code_and_its_words(
    peer: HttpPeer, forked: Ci, end: CompleteEvent, code: int, words: str
) -> None:
    peer.script.end = end
    done = forked("wait", JOB_ID, "--all")
    assert done.returncode == code
    assert words in lines(done.stderr)[-1]
    assert "✗" in lines(done.stderr)[-1]


def test_a_job_in_the_background_prints_its_id_to_the_letter(peer: HttpPeer, ci: Ci) -> None:
    done = ci("submit", "test", "--async")
    assert done.stdout == f"Job submitted: {JOB_ID}\n".encode()
    assert done.returncode == 0
    assert len(peer.requests("POST", "/submit-tree")) == 1


def test_waiting_shows_new_output_unless_all_is_asked_for(peer: HttpPeer, forked: Ci) -> None:
    assert forked("wait", JOB_ID).stdout == b""
    assert forked("wait", JOB_ID, "--all").stdout == peer.script.log


def test_json_events_come_one_a_line(peer: HttpPeer, ci: Ci) -> None:
    peer.script.piece = 1000
    done = ci("submit", "test", "--json")
    events = [json.loads(line) for line in lines(done.stdout)]
    assert [event["type"] for event in events] == ["job_id", "status", "log", "complete"]
    assert events[2]["position"] == f"1:{len(peer.script.log)}"
    assert events[3] == {**events[3], "success": True, "exit_code": 0, "reason": None}


def test_the_list_is_as_scripts_know_it(peer: HttpPeer, ci: Ci, forked: Ci) -> None:
    done_job = {
        "job_id": JOB_ID,
        "status": "completed",
        "success": True,
        "start_time": "2025-10-12T19:30:00Z",
        "end_time": "2025-10-12T19:30:05.250000Z",
    }
    running = {"job_id": "7ad3f8c9-2b41-4e89-9c12-5a8e7b3d1f4e", "status": "running", "success": None}
    running |= {"start_time": "2025-10-12T19:31:10Z", "end_time": None, "attempt": 1}
    failed = {**done_job, "success": False}
    peer.script.pages = [[done_job, running], [failed]]
    assert lines(ci("list").stdout) == [
        "JOB ID                                 STATUS       START TIME             END TIME               SUCCESS",
        "-" * 110,
        f"{JOB_ID}   completed    2025-10-12 19:30:00    2025-10-12 19:30:05    ✓",
        "7ad3f8c9-2b41-4e89-9c12-5a8e7b3d1f4e   running      2025-10-12 19:31:10    N/A                    -",
        f"{JOB_ID}   completed    2025-10-12 19:30:00    2025-10-12 19:30:05    ✗",
    ]
    as_json = forked("list", "--json", "--status", "running", "--limit", "2")
    assert json.loads(as_json.stdout) == [done_job, running]
    assert peer.received[-1].query == {"status": ["running"], "limit": ["2"]}


def test_status_logs_and_cancel(peer: HttpPeer, ci: Ci) -> None:
    assert json.loads(ci("status", JOB_ID, "--json").stdout)["status"] == "running"
    assert "running" in ci("status", JOB_ID).stdout.decode()
    assert ci("logs", JOB_ID).stdout == peer.script.log
    cancelled = ci("cancel", JOB_ID)
    assert (cancelled.returncode, cancelled.stdout) == (0, b"")
    assert JOB_ID in cancelled.stderr.decode()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer.problem(401, "unauthorized", "Who are you?"), 77),
        (Answer.problem(404, "job_not_found", "There is none."), 66),
        (Answer.problem(409, "job_finished", "It is over."), 65),
        (Answer.problem(429, "too_many_requests", "Too many."), 75),
        (Answer.problem(503, "unavailable", "Not now.", **{"Retry-After": "60"}), 75),
        (Answer(200, b"hello"), 69),
        (Answer(200, b"{}"), 70),
    ],
)
def test_each_error_is_one_line_and_a_code(peer: HttpPeer, forked: Ci, answer: Answer, code: int) -> None:
    peer.script.faults.append(answer)
    done = forked("status", JOB_ID)
    assert done.returncode == code
    assert len(lines(done.stderr)) == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stdout == b""


def test_errors_for_scripts(peer: HttpPeer, forked: Ci) -> None:
    peer.script.faults.append(Answer.problem(404, "job_not_found", "There is none."))
    done = forked("status", JOB_ID, "--json")
    error = {"code": "job_not_found", "message": "There is none.", "request_id": "req-1"}
    assert json.loads(done.stderr) == {"error": error}
    usage = forked("status", "--json")
    assert (usage.returncode, json.loads(usage.stderr)["error"]["code"]) == (64, "usage")


def test_without_a_key_one_line_says_the_way_out(peer: HttpPeer, project: Path) -> None:
    done = run_forked_ci("submit", "test", environment=ci_environment(peer.url, None), cwd=project)
    assert done.returncode == 77
    assert len(lines(done.stderr)) == 1
    assert "CI_API_KEY" in done.stderr.decode()
    assert not peer.received


def test_a_key_that_cannot_be_one_is_told(peer: HttpPeer, project: Path) -> None:
    done = run_forked_ci("list", environment=ci_environment(peer.url, "ci_typo"), cwd=project)
    assert done.returncode == 77
    assert "well formed" in done.stderr.decode()


def test_a_server_that_is_down(peer: HttpPeer, forked: Ci) -> None:
    peer.stop()
    done = forked("submit", "test")
    assert done.returncode == 69
    assert peer.url in lines(done.stderr)[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", "test", "--nonsense"),
        ("submit", "tests"),
        ("nonsense",),
        ("wait",),
        ("list", "--status", "lost"),
        ("list", "--limit", "0"),
        ("submit", "test", "--timeout", "soon"),
        ("submit", "test", "-C", "absent"),
        (),
        ("--server", "x"),
    ],
)
def test_wrong_usage_has_its_own_code(forked: Ci, arguments: tuple[str, ...]) -> None:
    done = forked(*arguments)
    assert done.returncode == 64
    assert b"Usage: ci" in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("sumbit", "test"), "Did you mean 'submit'?"),
        (("submit", "tests"), "Did you mean 'test'?"),
        (("test",), "Did you mean 'submit test'?"),
        (("submit", "test", "-k", "parser"), "ci submit test -- -k"),
        (("submit", "test", "--asnyc"), "'--async'"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(forked: Ci, arguments: tuple[str, ...], hint: str) -> None:
    assert hint in forked(*arguments).stderr.decode()


def test_help_begins_with_what_a_newcomer_needs(forked: Ci) -> None:
    commands = forked("--help").stdout.decode().partition("Commands:\n")[2].split("Examples:")[0]
    assert [line.split()[0] for line in commands.splitlines() if line.strip()] == [
        "submit",
        "wait",
        "list",
        "queue",
        "status",
        "logs",
        "cancel",
    ]
    assert "..." not in commands + forked("submit", "--help").stdout.decode().partition("Commands:")[2]
    assert "[-- PYTEST_ARGS...]" in forked("submit", "test", "--help").stdout.decode()


def test_modules_of_a_project_are_not_taken_for_ours(peer: HttpPeer, project: Path) -> None:
    (project / "click.py").write_text("raise SystemExit('the code of the project ran')\n")
    done = run_ci("submit", "test", environment=ci_environment(peer.url, KEY), cwd=project)
    assert (done.returncode, done.stdout) == (0, peer.script.log)


def test_what_is_no_project_is_not_sent(peer: HttpPeer, forked: Ci, project: Path) -> None:
    (project / "empty").mkdir()
    done = forked("submit", "test", "-C", "empty")
    assert done.returncode == 64
    assert b"is empty" in done.stderr
    assert not peer.received


def test_a_dry_run_needs_neither_key_nor_server(project: Path) -> None:
    (project / "old.pyc").touch()
    environment = ci_environment("http://127.0.0.1:9", None)
    done = run_forked_ci("submit", "test", "--dry-run", environment=environment, cwd=project)
    assert done.returncode == 0
    assert "test_a.py" in done.stdout.decode()
    assert "old.pyc: not sent by default" in done.stdout.decode()
    as_json = run_forked_ci("submit", "test", "--dry-run", "--json", environment=environment, cwd=project)
    assert json.loads(as_json.stdout) == {
        "files": [{"path": "test_a.py", "size": 19, "executable": False}],
        "total_size": 19,
        "skipped": [{"path": "old.pyc", "reason": "not sent by default"}],
    }


def test_an_outage_is_survived_and_told(peer: HttpPeer, forked: Ci) -> None:
    peer.script.faults.extend([Cut(150), Cut(0), Cut(0), Cut(0)])
    done = forked("submit", "test")
    assert (done.returncode, done.stdout) == (0, peer.script.log)
    assert "trying again" in done.stderr.decode()


def test_a_reader_that_goes_away_ends_the_command_quietly(peer: HttpPeer, project: Path) -> None:
    peer.script.log = b"x" * 500_000
    peer.script.piece = 5_000
    command = [*COMMAND, "submit", "test"]
    with subprocess.Popen(
        command,
        env=ci_environment(peer.url, KEY),
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141
    assert "Traceback" not in said
    assert "Broken" not in said


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("submit", "test", "-h")])
def test_help_goes_to_stdout(forked: Ci, arguments: tuple[str, ...]) -> None:
    done = forked(*arguments)
    assert done.returncode == 0
    assert b"Usage: ci" in done.stdout


def test_help_has_examples_and_exit_codes(forked: Ci) -> None:
    text = forked("--help").stdout.decode()
    for words in ("ci submit test --async", "CI_API_KEY", "143  someone cancelled it", "_CI_COMPLETE"):
        assert words in text


SLOW = {
    "httpx",
    "httpx_sse",
    "httpcore",
    "rich",
    "pathspec",
    "pydantic",
    "asyncio",
    "ssl",
    "zipfile",
    "ci_common.models",
}


def imported(project: Path, environment: dict[str, str], *arguments: str) -> set[str]:
    """Return the modules that a command line needed in a work tree of git."""
    subprocess.run(["git", "init", "-q", project], check=True)
    code = (
        "import sys\n"
        "from ci_client.cli import run\n"
        f"assert run({list(arguments)!r}) == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [COMMAND[0], "-c", code]
    done = subprocess.run(command, env=environment, cwd=project, capture_output=True, check=True)
    return set(lines(done.stderr)[-1].split())


@pytest.mark.parametrize("arguments", [("--help",), ("submit", "test", "--dry-run")], ids=" ".join)
def test_what_talks_to_nobody_imports_nothing_that_is_slow(project: Path, arguments: tuple[str, ...]) -> None:
    assert imported(project, ci_environment(None, None), *arguments) & SLOW == set()


def test_a_submission_imports_only_what_it_needs(peer: HttpPeer, project: Path) -> None:
    needed = {"ssl"}  # by http.client, whatever is spoken
    unneeded = {
        "tempfile",
        "concurrent",
        "logging",
        "urllib.request",
        "certifi",
        "ci_client.archive",
        "ci_client.bulk",
    }
    modules = imported(project, ci_environment(peer.url, KEY), "submit", "test")
    assert modules & (SLOW - needed | unneeded) == set()
    assert len(modules) < 280


class Interrupted:
    """A running `ci submit test` whose job holds, and what it says."""

    def __init__(self, peer: HttpPeer, project: Path) -> None:
        peer.script.hold_after = 16
        self.process = subprocess.Popen(
            [*COMMAND, "submit", "test"],
            env=ci_environment(peer.url, KEY),
            cwd=project,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdout, self.stderr = self.process.stdout, self.process.stderr
        assert self.stdout.read(16) == peer.script.log[:16]

    def press(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def read_until(self, words: str) -> str:
        line = ""
        while words not in line:
            line = self.stderr.readline().decode()
            assert line, f"ended without saying {words!r}"
        return line

    def close(self) -> int:
        self.stdout.close()
        self.stderr.close()
        return self.process.wait(20)


def test_ctrl_c_leaves_and_the_job_goes_on(peer: HttpPeer, project: Path) -> None:
    running = Interrupted(peer, project)
    running.press()
    said = running.read_until("Leaving in 3 s")
    assert f"ci wait {JOB_ID}" in said
    assert f"ci cancel {JOB_ID}" in said
    assert running.process.wait(20) == 130
    assert not peer.requests("DELETE", f"/jobs/{JOB_ID}")
    running.close()


def test_output_goes_on_after_ctrl_c_and_a_verdict_counts(peer: HttpPeer, project: Path) -> None:
    running = Interrupted(peer, project)
    running.press()
    running.read_until("Leaving")
    peer.released.set()
    assert running.stdout.read() == peer.script.log[16:]
    running.read_until("passed")
    assert running.close() == 0


def test_a_second_ctrl_c_cancels_the_job(peer: HttpPeer, project: Path) -> None:
    running = Interrupted(peer, project)
    running.press()
    running.read_until("Leaving")
    running.press()
    running.read_until("cancelled")
    assert running.close() == 143
    assert len(peer.requests("DELETE", f"/jobs/{JOB_ID}")) == 1


def test_a_signal_that_comes_twice_is_one_press(peer: HttpPeer, project: Path) -> None:
    running = Interrupted(peer, project)
    running.press()
    running.press()  # as a wrapper does that passes on what the terminal sent to both
    assert running.process.wait(20) == 130
    assert not peer.requests("DELETE", f"/jobs/{JOB_ID}")
    running.close()


def test_presses_at_any_moment_never_look_like_failed_tests(peer: HttpPeer, project: Path) -> None:
    running = Interrupted(peer, project)
    while running.process.poll() is None:
        running.press()
    assert running.close() in (130, 143, -signal.SIGINT)


def test_ctrl_c_before_there_is_a_job(peer: HttpPeer, project: Path) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def arrive() -> None:
        arrived.set()
        go_on.wait(20)

    peer.script.on_submit = arrive
    command = [*COMMAND, "submit", "test"]
    with subprocess.Popen(
        command, env=ci_environment(peer.url, KEY), cwd=project, stderr=subprocess.PIPE
    ) as process:
        assert arrived.wait(20)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        go_on.set()
    assert process.returncode == 130
    assert b"ci list" in said


def on_screen(peer: HttpPeer, project: Path, *arguments: str, **more: str) -> str:
    environment = ci_environment(peer.url, KEY, TERM="xterm", **more)
    return forked_ci_on_screen(*arguments, environment=environment, cwd=project)


HOSTILE = b"\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[2J\rdone without newline"


def test_a_terminal_gets_colours_and_nothing_else(peer: HttpPeer, project: Path) -> None:
    peer.script.log = HOSTILE
    peer.script.piece = 3
    environment = ci_environment(peer.url, KEY, TERM="xterm")
    shown = ci_on_screen("submit", "test", environment=environment, cwd=project)
    assert "\x1b[31mred\x1b[0m\rdone without newline" in shown
    assert "title" not in shown
    assert "newline\x1b[0m\n" in shown.replace("\r\n", "\n")  # the verdict has a line of its own
    assert "\x1b[32m" in shown  # in green
    assert "\r\x1b[KUploading" in shown


def test_raw_passes_everything_on(peer: HttpPeer, project: Path) -> None:
    peer.script.log = HOSTILE
    assert "\x1b]0;title\x07" in on_screen(peer, project, "wait", JOB_ID, "--all", "--raw")


def test_no_color_means_no_colour(peer: HttpPeer, project: Path) -> None:
    peer.script.log = HOSTILE
    shown = on_screen(peer, project, "wait", JOB_ID, "--all", NO_COLOR="1")
    assert "red\rdone" in shown
    assert "\x1b[3" not in shown


def test_colour_can_be_forced_into_a_file(forked: Ci) -> None:
    assert b"\x1b[32m" in forked("wait", JOB_ID, FORCE_COLOR="1").stderr
    assert b"\x1b" not in forked("wait", JOB_ID).stderr


HOSTILE_WORD = "\x1b]0;owned\x07\x1b[2J\u202ehi\r\nerror: \x9b31mred\x08"


def assert_harmless(done: subprocess.CompletedProcess[bytes]) -> None:
    """Nothing that was written is obeyed by a terminal, or looks like a line of our own."""
    written = (done.stdout + done.stderr).decode()
    assert {char for char in written if unicodedata.category(char) in ("Cc", "Cf")} <= {"\n"}
    assert not [line for line in written.splitlines() if line.startswith("error: red")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", "test"),
        ("submit", "test", "--async"),
        ("submit", "test", "--json"),
        ("submit", "test", "--async", "--json"),
        ("wait", JOB_ID),
        ("list",),
        ("list", "--json"),
        ("status", JOB_ID),
        ("status", JOB_ID, "--json"),
        ("cancel", JOB_ID),
    ],
    ids=" ".join,
)
def test_a_server_has_no_power_over_a_terminal(
    peer: HttpPeer, forked: Ci, arguments: tuple[str, ...]
) -> None:
    peer.script.job_id = HOSTILE_WORD
    peer.script.before = (StatusEvent(JobStatus.QUEUED, 1, HOSTILE_WORD), ErrorEvent("busy", HOSTILE_WORD))
    peer.script.end = CompleteEvent(True, JobStatus.COMPLETED, 0, None, HOSTILE_WORD)
    peer.script.pages = [[{"job_id": HOSTILE_WORD, "status": HOSTILE_WORD, HOSTILE_WORD: HOSTILE_WORD}]]
    assert_harmless(forked(*arguments))


@pytest.mark.parametrize("json_flag", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    "answer",
    [
        Answer.problem(400, "invalid_request", HOSTILE_WORD),
        Answer.problem(400, HOSTILE_WORD, HOSTILE_WORD),
        Answer(302, headers={"Location": "/\x9b2J"}),
        Answer(200, json.dumps({"job_id": JOB_ID, "status": "x", "end_time": HOSTILE_WORD}).encode()),
    ],
    ids=["detail", "code", "redirect", "field"],
)
def test_the_errors_of_a_server_have_no_power_either(
    peer: HttpPeer, forked: Ci, answer: Answer, json_flag: tuple[str, ...]
) -> None:
    peer.script.faults.append(answer)
    done = forked("status", JOB_ID, *json_flag)
    assert done.returncode > 0
    assert len(lines(done.stderr)) == 1
    assert_harmless(done)


def test_the_names_of_a_tree_have_no_power_either(forked: Ci, project: Path) -> None:
    name = HOSTILE_WORD.replace("/", "")
    for path in (project, project / name):
        subprocess.run(["git", "init", "-q", path], check=True)
    (project / name / "code.py").touch()
    (project / "link").symlink_to(f"{name}/code.py")
    submodule = f"160000,{'1' * 40},sub{name}"
    subprocess.run(["git", "-C", project, "update-index", "--add", "--cacheinfo", submodule], check=True)
    (project / f"sub{name}").mkdir()
    for arguments in (("--dry-run",), ("--dry-run", "--json"), ()):
        done = forked("submit", "test", *arguments)
        assert done.returncode == 0
        assert b"not checked out" in done.stderr
        assert_harmless(done)


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "wait"])
def test_an_empty_job_id_is_wrong_usage(forked: Ci, command: str) -> None:
    """As an unset variable in a script gives it."""
    done = forked(command, "")
    assert done.returncode == 64
    assert "job id is empty" in done.stderr.decode()


def test_a_list_that_cannot_be_had_does_not_look_like_an_empty_one(forked: Ci) -> None:
    done = forked("list", "--server", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (69, b"")


# -- a full queue --------------------------------------------------------------------------------------

FULL = (
    Answer.problem(429, "too_many_requests", "You have 5 jobs in the queue.", **{"Retry-After": "1"}),
    Answer.problem(503, "queue_full", "The queue is full.", **{"Retry-After": "1"}),
)


@pytest.mark.parametrize("full", FULL)
def test_a_full_queue_is_75_and_names_the_flag_that_waits(peer: HttpPeer, forked: Ci, full: Answer) -> None:
    peer.script.faults.append(full)
    done = forked("submit", "test", "--async")
    assert done.returncode == 75
    assert "ci submit test --wait-for-capacity" in done.stderr.decode()


@pytest.mark.parametrize(("full", "background"), [(FULL[0], ("--async",)), (FULL[1], ())])
def test_waiting_for_capacity_asks_cheaply_and_uploads_once(
    peer: HttpPeer, forked: Ci, full: Answer, background: tuple[str, ...]
) -> None:
    peer.script.faults.extend([full, full])
    done = forked("submit", "test", "--wait-for-capacity", *background)
    assert done.returncode == 0, done.stderr.decode()
    assert len(peer.requests("GET", "/capacity")) == 3
    assert len(peer.requests("POST", "/submit-tree")) == 1
    waiting = [line for line in lines(done.stderr) if "Waiting for room" in line]
    assert len(waiting) == 1, "one line where stderr is no terminal"


def test_who_loses_the_race_for_room_submits_again_under_the_same_key(peer: HttpPeer, forked: Ci) -> None:
    peer.script.faults.extend([Answer(200, b'{"room": true}'), FULL[0]])
    done = forked("submit", "test", "--wait-for-capacity", "--async")
    assert done.returncode == 0, done.stderr.decode()
    first, second = peer.requests("POST", "/submit-tree")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_ctrl_c_while_waiting_for_capacity_leaves_at_once(peer: HttpPeer, project: Path) -> None:
    long = Answer.problem(429, "too_many_requests", "Full.", **{"Retry-After": "3600"})
    peer.script.faults.append(long)
    process = subprocess.Popen(
        [*COMMAND, "submit", "test", "--wait-for-capacity"],
        cwd=project,
        env=ci_environment(peer.url, KEY),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stderr is not None
        assert b"Waiting for room" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said.decode()
    assert peer.requests("POST", "/submit-tree") == []
