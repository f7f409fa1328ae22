"""The submission form: its file goes from the socket to the archive store, its fields become job options."""

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field, replace

from fastapi import Request

from ci_common.arguments import require_short
from ci_common.crash_points import crash_point
from ci_common.errors import ArchiveTooLarge, InvalidRequest, Unavailable, UploadTooSlow
from ci_common.job_terms import DEFAULT_POOL, MOST_ATTEMPTS, POOL_NAME, JobOptions, Priority
from ci_common.stores import ArchiveStore, StoredArchive
from ci_server.multipart import PartBegins, PartEnds, Piece, boundary_of, read_pieces
from ci_server.settings import ServerSettings

_FIELDS_LIMIT = 128 * 1024  # bytes of all fields but the file, and of what frames them
_FRAME_BYTES = 64  # what a field costs at least beside its name and value, so that empty ones are not free
_MAX_ARGUMENTS = 1_000
_FIELDS = frozenset({"timeout", "fresh", "priority", "max_attempts", "queue_timeout", "pool"})
_LONGEST_WAIT = 30 * 86_400.0  # seconds; whatever is asked for, the controller's limit holds as well
_DIGITS = 5
_SMALL = 64 * 1024  # bytes of a body that is received before anything is done with it
_RATE_GRACE = 30.0  # seconds before the average says something about the line


@dataclass(frozen=True, slots=True)
class Submission:
    """An upload that is on disk, and what was asked for beside it."""

    archive: StoredArchive
    options: JobOptions


@dataclass(slots=True)
class _Form:
    archive: StoredArchive | None = None
    pytest_args: list[str] = field(default_factory=list[str])
    said: dict[str, str] = field(default_factory=dict[str, str])  # the other fields, as they came


async def receive_submission(
    request: Request, archives: ArchiveStore, settings: ServerSettings, owner: str
) -> Submission:
    """The request's archive is in the store; whatever is wrong with the request, nothing is left there.

    Reads the body, so it must come after authentication. Raises ArchiveTooLarge, InvalidArchive,
    InvalidRequest, StorageFull, Unavailable for an upload that stands still, UploadTooSlow.
    """
    check_declared_length(request, settings)
    boundary = boundary_of(request.headers.get("content-type"))
    body = guarded_body(request, settings)
    form = _Form()
    try:
        async with contextlib.aclosing(body), contextlib.aclosing(read_pieces(body, boundary)) as pieces:
            await _fill(form, pieces, archives, settings, owner, at_once=is_small(request))
        if form.archive is None:
            raise InvalidRequest("The form has no field 'file', which is to hold the project's archive.")
        return Submission(form.archive, _options(form, settings))
    except BaseException:
        # Also when cancelled: no row can know of the archive yet.
        if form.archive is not None:
            archives.delete(form.archive.ref)
        raise


async def _fill(
    form: _Form,
    pieces: AsyncGenerator[Piece, None],
    archives: ArchiveStore,
    settings: ServerSettings,
    owner: str,
    *,
    at_once: bool,
) -> None:
    budget = _FIELDS_LIMIT
    async for piece in pieces:
        assert isinstance(piece, PartBegins), "parts follow one another"
        if piece.name == "file":
            if form.archive is not None:
                raise InvalidRequest("The form has more than one field 'file'.")
            async with contextlib.aclosing(_content(pieces)) as content:
                save = archives.save(content, settings.max_upload_bytes, owner, at_once=at_once)
                form.archive = await save
        else:
            budget -= len(piece.name.encode()) + _FRAME_BYTES
            value = await _short_content(pieces, budget)
            budget -= len(value)
            _set_field(form, piece.name, value)


def _set_field(form: _Form, name: str, value: bytes) -> None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"The form field {name!r} is not UTF-8.") from None
    if name == "pytest_args":
        if len(form.pytest_args) >= _MAX_ARGUMENTS:
            raise InvalidRequest(f"The form has more than {_MAX_ARGUMENTS} fields 'pytest_args'.")
        form.pytest_args.append(text)
    elif name in _FIELDS:
        form.said[name] = text
    # Fields of later releases are skipped, as readers of our answers skip what they do not know.


def checked_options(asked: JobOptions, settings: ServerSettings) -> JobOptions:
    """Return what was asked for beside the tree, however it was said; raises InvalidRequest."""
    if len(asked.pytest_args) > _MAX_ARGUMENTS:
        raise InvalidRequest(f"There are more than {_MAX_ARGUMENTS} arguments for pytest.")
    if any("\0" in argument for argument in asked.pytest_args):
        raise InvalidRequest("An argument for pytest holds a NUL character.")
    if not all(_is_text(argument) for argument in asked.pytest_args):
        raise InvalidRequest("An argument for pytest is no Unicode text.")
    require_short(asked.pytest_args)
    if asked.max_attempts is not None and not 0 < asked.max_attempts <= MOST_ATTEMPTS:
        raise InvalidRequest(f"The field 'max_attempts' must be a whole number from 1 to {MOST_ATTEMPTS}.")
    return replace(
        asked,
        timeout_seconds=_within("timeout", asked.timeout_seconds, settings.max_job_timeout),
        queue_timeout_seconds=_within("queue_timeout", asked.queue_timeout_seconds, _LONGEST_WAIT),
    )


def _within(name: str, seconds: float | None, longest: float) -> float | None:
    if seconds is None:
        return None
    if not 0 < seconds <= longest:  # also true for NaN
        raise InvalidRequest(f"The field '{name}' must be seconds, more than 0 and at most {longest:g}.")
    return float(seconds)


def priority_named(word: object) -> Priority:
    """Return the priority of that name; raises InvalidRequest."""
    if word not in list(Priority):
        raise InvalidRequest(f"The field 'priority' must be one of {', '.join(Priority)}.")
    return Priority(word)


def pool_named(word: object) -> str:
    """Return the pool of that name, whether or not there is one; raises InvalidRequest."""
    if not isinstance(word, str) or not re.fullmatch(POOL_NAME, word):
        raise InvalidRequest("The field 'pool' must be a name of at most 50 characters: a-z, 0-9, - and _.")
    return word


def _is_text(argument: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in argument)  # JSON can say half a pair


def _options(form: _Form, settings: ServerSettings) -> JobOptions:
    asked = JobOptions(
        pytest_args=tuple(form.pytest_args),
        timeout_seconds=_seconds(form.said.get("timeout")),
        fresh=_fresh(form.said.get("fresh")),
        priority=priority_named(form.said.get("priority") or Priority.NORMAL),
        max_attempts=_count(form.said.get("max_attempts")),
        queue_timeout_seconds=_seconds(form.said.get("queue_timeout")),
        pool=pool_named(form.said.get("pool") or DEFAULT_POOL),
    )
    return checked_options(asked, settings)


def _count(text: str | None) -> int | None:
    if not text:
        return None
    return (
        int(text) if text.isdecimal() and len(text) < _DIGITS else 0
    )  # which is refused like any wrong number


def _fresh(text: str | None) -> bool:
    if text and text not in {"true", "false"}:
        raise InvalidRequest("The form field 'fresh' must be true or false.")
    return text == "true"


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return math.nan


async def _content(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of the part that has begun, and leave the stream behind its end."""
    async for piece in pieces:
        if isinstance(piece, PartEnds):
            return
        assert isinstance(piece, bytes), "a part ends before the next begins"
        yield piece
        crash_point("during_upload")  # whoever asks for more has that piece


async def _short_content(pieces: AsyncGenerator[Piece, None], budget: int) -> bytes:
    value = bytearray()
    async with contextlib.aclosing(_content(pieces)) as content:
        async for data in content:
            value += data
            if len(value) > budget:
                break
    if len(value) > budget:  # also of an empty value, when the budget is overdrawn
        raise InvalidRequest(f"The form's fields beside 'file' exceed {_FIELDS_LIMIT} bytes.")
    return bytes(value)


def is_small(request: Request) -> bool:
    """Tell whether the body says that it is little enough to come before anything is done with it."""
    declared = request.headers.get("content-length", "")
    return declared.isdecimal() and int(declared) <= _SMALL


def check_declared_length(request: Request, settings: ServerSettings) -> None:
    """A body that says it is too large is refused before a byte of it is read."""
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) > _body_limit(settings):
        raise _too_large(settings)


async def guarded_body(request: Request, settings: ServerSettings) -> AsyncGenerator[bytes, None]:
    """Yield the body, as long as it is neither too large nor too slow nor standing still."""
    received, pace = 0, _Pace(settings)
    stream: AsyncIterable[bytes] = request.stream()
    chunks = aiter(stream)
    while True:
        patience = min(settings.upload_read_timeout, pace.seconds_left())
        try:
            async with asyncio.timeout(patience):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if patience < settings.upload_read_timeout:
                raise _too_late(settings) from None
            message = f"The upload stood still for {settings.upload_read_timeout:g} s and was given up."
            raise Unavailable(message, retry_after=1) from None
        received += len(chunk)
        if received > _body_limit(settings):
            raise _too_large(settings)
        pace.check(received)
        yield chunk


class _Pace:
    """Whether one upload gets on as it must."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._began = time.monotonic()

    def seconds_left(self) -> float:
        """Return how long the upload may still take."""
        return self._began + self._settings.upload_timeout - time.monotonic()

    def check(self, received: int) -> None:
        """The upload may go on; raises UploadTooSlow."""
        settings, took = self._settings, time.monotonic() - self._began
        if took >= settings.upload_timeout:
            raise _too_late(settings)
        if took > _RATE_GRACE and received < settings.upload_min_rate * took:
            raise UploadTooSlow(f"The upload came at less than {settings.upload_min_rate} bytes per second.")


def _too_late(settings: ServerSettings) -> UploadTooSlow:
    return UploadTooSlow(f"The upload was not complete within {settings.upload_timeout:g} s.")


def _body_limit(settings: ServerSettings) -> int:
    return settings.max_upload_bytes + _FIELDS_LIMIT


def _too_large(settings: ServerSettings) -> ArchiveTooLarge:
    limit = settings.max_upload_bytes
    return ArchiveTooLarge(f"The archive is larger than the {limit} bytes this server takes.", limit=limit)
