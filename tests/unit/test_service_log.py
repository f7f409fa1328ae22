"""The log of both daemons: one form at a time, and never an API key in it."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from types import TracebackType

import pytest
import structlog

from ci_common.api_keys import generate_api_key, key_prefix
from ci_common.service_log import configure_logging
from ci_common.settings import LogFormat

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
