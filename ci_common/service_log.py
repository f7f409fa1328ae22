"""The log of a process that runs for long: structlog over the standard library's, without API keys.

Imported by the daemons only: the client does not have structlog.
"""

import io
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from ci_common.settings import LogFormat, LogLevel
from ci_common.terminal import one_line

# An API key wherever it turns up; what is kept is enough to find it in `ci-admin key list`.
_KEY = re.compile(r"(ci_[0-9A-Za-z]{8})_[0-9A-Za-z]{16,}(?:_[0-9A-Za-z]+)?")
_NAME = "ci"  # of our handler
# They tell every request, event and part of a form; nobody asked for that, at any level.
_CHATTY = ("aiosqlite", "asyncio", "docker", "python_multipart", "urllib3")


def configure_logging(level: LogLevel, log_format: LogFormat) -> None:
    """Our messages and those of libraries go to stderr in one form; calling it again replaces the last call."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_NAME)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_rendering(log_format))
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if handler.name == _NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _rendering(log_format: LogFormat) -> list[Any]:
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    terminal = sys.stderr.isatty()
    if log_format == "console" or (log_format == "auto" and terminal):
        renderer = structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=_plain_traceback)
        return [meta, _on_one_line, renderer, _redacted]
    return [meta, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(), _redacted]


def _on_one_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the event with a text that cannot pass for another line; the renderer sees to the other values."""
    event["event"] = one_line(str(event.get("event", "")))
    return event


def _plain_traceback(out: TextIO, exc_info: Any) -> None:
    """The traceback is written, plain: the prettier ones show what variables hold, and that is not for logs.

    Indented, for an exception may quote what somebody sent.
    """
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    out.write("\n".join(f"  {_escaped(line)}" for line in plain.getvalue().split("\n")))


def _escaped(line: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _redacted(_logger: Any, _method: str, line: str) -> str:
    """Return the rendered line, so whatever was in it: of an API key only what names it is left."""
    return _KEY.sub(r"\1_…", line)
