"""`ci submit test` and `ci wait`: a job's events as they come, until its verdict or Ctrl-C."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ci_client.config import Flags, is_loopback, resolve
from ci_client.console import Console
from ci_client.exit_codes import ClientExit, exit_code_of_verdict
from ci_client.interrupt import run_interruptible
from ci_client.render import JsonRenderer, Renderer, TextRenderer, upload_progress
from ci_common.errors import InternalError, QueueFull, TooManyRequests
from ci_common.events import CompleteEvent, JobIdEvent, StreamEvent
from ci_common.job_terms import DEFAULT_POOL, JobOptions, Priority
from ci_common.terminal import one_line

if TYPE_CHECKING:
    from ci_client.client import CIClient


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """What `ci submit test` was asked for."""

    project: Path
    pytest_args: tuple[str, ...]
    timeout: float | None
    include_ignored: bool
    background: bool
    json: bool
    raw: bool
    wait_for_capacity: bool = False
    fresh: bool = False
    verbose: bool = False
    priority: Priority = Priority.NORMAL
    max_attempts: int | None = None
    queue_timeout: float | None = None
    pool: str = DEFAULT_POOL


def submit(console: Console, flags: Flags, options: SubmitOptions) -> int:
    """The project is with the server; returns its verdict's exit code, or 0 at once for a job in the background."""
    connection = resolve(flags)
    from ci_client.commands.connecting import connected_to
    from ci_client.tree_upload import Told, TreeUpload

    compress = not is_loopback(connection.server_url)  # on one machine, packing costs more than it saves
    wanted = JobOptions(
        options.pytest_args,
        options.timeout,
        options.fresh,
        options.priority,
        options.max_attempts,
        options.queue_timeout,
        options.pool,
    )
    told = Told(console.warn, console.note if options.verbose else lambda _: None, upload_progress(console))
    on_full = _tell_waiting(console) if options.wait_for_capacity else None
    with (
        TreeUpload(
            options.project,
            wanted,
            compress=compress,
            include_ignored=options.include_ignored,
            told=told,
        ) as upload,
        connected_to(console, connection) as client,
        _way_out_of_a_full_queue(options),
    ):
        if options.background:
            return _announce(console, client.submit_upload(upload, on_full=on_full), options)
        events = client.submit_upload_stream(upload, on_full=on_full)
        return _follow(console, client, events, None, _renderer(console, options.json, options.raw))


def _tell_waiting(console: Console) -> Callable[[str], None]:
    """Return what says on stderr that we wait: a line at first, then one that is written over, on terminals."""
    seen = False

    def tell(text: str) -> None:
        nonlocal seen
        (console.transient if seen else console.note)(text)
        seen = True

    return tell


@contextlib.contextmanager
def _way_out_of_a_full_queue(options: SubmitOptions) -> Generator[None]:
    """Who is refused for lack of room hears of the flag that waits for it."""
    try:
        yield
    except (TooManyRequests, QueueFull) as error:
        if options.wait_for_capacity:
            raise
        way_out = "`ci submit test --wait-for-capacity` waits until there is room."
        kind = type(error)
        raise kind(f"{error.detail} {way_out}", retry_after=error.retry_after, **error.extra) from error


def wait(console: Console, flags: Flags, job_id: str, *, everything: bool, json: bool, raw: bool) -> int:
    """The job is over; returns its verdict's exit code."""
    from ci_client.commands.connecting import connected

    with connected(console, flags) as client:
        events = client.follow(job_id, from_beginning=everything)
        return _follow(console, client, events, job_id, _renderer(console, json, raw))


def dry_run(console: Console, options: SubmitOptions) -> int:
    """What would be sent is on stdout, and what not and why; nothing was sent."""
    from ci_client.render import selection_json, selection_lines
    from ci_client.selection import select_files

    selection = select_files(options.project, include_ignored=options.include_ignored)
    for warning in selection.warnings:
        console.warn(warning)
    for line in [selection_json(selection)] if options.json else selection_lines(selection):
        console.line(line)
    return ClientExit.OK


def _announce(console: Console, job_id: str, options: SubmitOptions) -> int:
    if options.json:
        JsonRenderer(console).show(JobIdEvent(job_id))
    else:
        console.line(f"Job submitted: {one_line(job_id)}")  # to the letter: scripts cut the id out of it
        console.note(f"Follow it: ci wait {job_id} --all")
    return ClientExit.OK


def _renderer(console: Console, json: bool, raw: bool) -> Renderer:
    return JsonRenderer(console) if json else TextRenderer(console, raw=raw)


class _Following:
    """One job being shown, as the one who interrupts it sees it."""

    def __init__(self, console: Console, client: "CIClient", job_id: str | None, renderer: Renderer) -> None:
        self.job_id = job_id
        self._console = console
        self._client = client
        self._renderer = renderer

    def show(self, events: Iterator[StreamEvent]) -> int:
        """Every event was shown; returns the verdict's exit code."""
        try:
            for event in events:
                if isinstance(event, JobIdEvent):
                    self.job_id = event.job_id
                self._renderer.show(event)
                if isinstance(event, CompleteEvent):
                    return exit_code_of_verdict(event)
        finally:
            self._renderer.finish()
        raise InternalError("The stream ended without a verdict.")

    def say(self, text: str) -> None:
        self._console.note(text)

    def cancel(self) -> None:
        assert self.job_id is not None, "only a job with an id is cancelled"
        self._client.cancel(self.job_id)


def _follow(
    console: Console,
    client: "CIClient",
    events: Iterator[StreamEvent],
    job_id: str | None,
    renderer: Renderer,
) -> int:
    following = _Following(console, client, job_id, renderer)
    return run_interruptible(lambda: following.show(events), following)
