"""The log of the process: structlog over the standard library's, JSON unless a person watches a terminal."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

# An API key wherever it turns up; what is kept is enough to find it in `ci-admin key list`.
_KEY = re.compile(r"(ci_[0-9A-Za-z]{8})_[0-9A-Za-z]{16,}(?:_[0-9A-Za-z]+)?")


def configure_logging(level: str) -> None:
    """Everything that is logged goes to stderr in one form, without API keys; calling it again is harmless."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name("ci_server")
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_final_processors())
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if handler.name == "ci_server"]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    _adopt_uvicorn()


def _final_processors() -> list[Any]:
    if sys.stderr.isatty():
        return [
            redact_keys,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.dev.ConsoleRenderer(),
        ]
    return [
        structlog.processors.format_exc_info,
        redact_keys,
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]


def redact_keys(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """No value of the event holds an API key any more: what is left of one only names it."""
    for name, value in event.items():
        if isinstance(value, str) and "ci_" in value:
            event[name] = _KEY.sub(r"\1_…", value)
    return event


def _adopt_uvicorn() -> None:
    """uvicorn's messages come out in our form; its access log is replaced by ours, which knows the user."""
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
    # They tell every event and every part of a form; nobody asked for that, at any level.
    for name in ("sse_starlette.sse", "python_multipart.multipart"):
        logging.getLogger(name).setLevel(logging.INFO)
