"""The log of both daemons: one form at a time, and never an API key in it."""

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest
import structlog

from ci_common.api_keys import generate_api_key, key_prefix
from ci_common.service_log import configure_logging
from ci_common.settings import LogFormat
from ci_controller.container_runtime import ContainerError
from tests.support.controlled import ControlledSystem, Faulty, a_run, controlled_system, eventually

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class Terminal(io.StringIO):
    """What stderr is when a person watches."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def other_logging() -> Iterator[None]:
    """Logging is afterwards as it was for the other tests."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


def logged(monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, stderr: io.StringIO, secret: str) -> str:
    """Return what a failed request with that key leaves on stderr."""
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging("info", log_format)
    log = structlog.stdlib.get_logger("ours")
    log.info("request", path=f"/?key={secret}", headers={"authorization": [f"Bearer {secret}"]})
    try:
        _fail_with(secret)
    except ValueError:
        log.exception("unexpected_error")
        logging.getLogger("theirs").exception("failed: %s", secret)
    return stderr.getvalue()


def _fail_with(bearer: str) -> None:
    raise ValueError(f"no use for {bearer}")


@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
@pytest.mark.parametrize("log_format", ["auto", "console", "json"])
def test_no_line_and_no_traceback_holds_a_key(
    monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, stderr: type[io.StringIO]
) -> None:
    secret = generate_api_key()
    written = logged(monkeypatch, log_format, stderr(), secret)
    assert secret not in written
    assert secret.split("_")[2] not in written, "the part that is secret"
    assert written.count(f"{key_prefix(secret)}_…") == 5 or json_escaped(written, secret)
    assert written.count("Traceback (most recent call last)") == 2
    assert "│" not in written, "tracebacks are plain: boxes are those that show what variables hold"


def json_escaped(written: str, secret: str) -> bool:
    """Tell whether the same five are there in lines of JSON."""
    lines = [json.loads(line) for line in written.splitlines()]
    return str(lines).count(f"{key_prefix(secret)}_…") == 5


@pytest.mark.parametrize(
    ("log_format", "stderr", "as_json", "coloured"),
    [
        ("auto", io.StringIO, True, False),
        ("auto", Terminal, False, True),
        ("console", io.StringIO, False, False),
        ("console", Terminal, False, True),
        ("json", Terminal, True, False),
    ],
)
def test_the_form_is_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    log_format: LogFormat,
    stderr: type[io.StringIO],
    as_json: bool,
    coloured: bool,
) -> None:
    written = logged(monkeypatch, log_format, stderr(), generate_api_key())
    assert ("\x1b[" in written) is coloured
    assert written.startswith("{") is as_json
    if as_json:
        first, ours, theirs = (json.loads(line) for line in written.splitlines())
        assert (first["event"], first["logger"], first["level"]) == ("request", "ours", "info")
        assert first["timestamp"].endswith("Z")
        assert ours["exception"].startswith("Traceback")
        assert (theirs["logger"], theirs["level"]) == ("theirs", "error")


def test_what_is_less_severe_than_asked_for_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging("info", "json")
    configure_logging("warning", "json")  # a second time, as tests and reloads do
    structlog.stdlib.get_logger("ours").info("not this")
    structlog.stdlib.get_logger("ours").warning("but this")
    assert [json.loads(line)["event"] for line in stderr.getvalue().splitlines()] == ["but this"]


@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_nothing_that_is_quoted_passes_for_a_line_or_reaches_the_terminal(
    monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, stderr: type[io.StringIO]
) -> None:
    hostile = "a\r\nFORGED\x1b]52;c;aGk=\x07\x9b2J\u202e"
    screen = stderr()
    monkeypatch.setattr(sys, "stderr", screen)
    configure_logging("info", log_format)
    structlog.stdlib.get_logger("ours").info(hostile, path=hostile)
    logging.getLogger("theirs").info("got %s", hostile)
    try:
        _fail_with(hostile)
    except ValueError:
        structlog.stdlib.get_logger("ours").exception("unexpected_error")
    written = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())  # the colours are ours
    assert [char for char in written if not char.isprintable() and char != "\n"] == []
    assert [line for line in written.splitlines() if line.startswith("FORGED")] == []


async def test_every_log_line_about_a_job_tells_job_attempt_and_user_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines as the daemon writes them; a number is a number, and no field holds two things."""
    configure_logging("debug", "json")
    async with controlled_system(tmp_path, a_run()) as system:
        engine = Faulty(system.runtime, create=ContainerError("no such option"))
        async with system.running(interval=0.05, runtime=engine):
            job_id = await system.submit()
            await eventually(lambda: was_released(system, job_id))
            engine.faults.clear()
            job = await system.finished(job_id)
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    about = [line for line in lines if job_id in json.dumps(line)]
    told = {line["event"] for line in about}
    assert told >= {"operation", "operation done", "claimed", "released", "finished"}
    for line in about:
        assert line["job"] == job_id, line
        assert type(line["attempt"]) is int, line
        if not line.get("operation", "").startswith(
            "remove "
        ):  # what is left over is known by its labels only
            assert line["user"] == system.user.id, line
    assert [line["attempt"] for line in about if line["event"] == "finished"] == [job.attempt]
    assert {line["attempt"] for line in about} == set(range(1, job.attempt + 1))


async def was_released(system: ControlledSystem, job_id: str) -> bool:
    return any(event.type == "released" for event in await system.repository.get_events(job_id))
