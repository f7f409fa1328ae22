"""From a job and a position to the response that follows it; shared by the submit routes and `/jobs/{id}/stream`."""

import contextlib
from collections.abc import AsyncGenerator

from ci_common.events import Position, StreamEvent
from ci_common.models import Job
from ci_server.auth import Caller
from ci_server.dependencies import Resources
from ci_server.event_stream import JobStream
from ci_server.log_stream import LOOK_AGAIN_SECONDS, Following, follow_job
from ci_server.stream_end import StreamEnd


def open_stream(
    server: Resources,
    caller: Caller,
    job: Job,
    start: Position,
    held: contextlib.ExitStack,
    first: tuple[StreamEvent, ...] = (),
) -> JobStream:
    """Return the response that sends `first` and then follows the job; it lets go of `held` at its end."""
    end = StreamEnd()
    # Twice per ping: so a withdrawn key loses its streams within one ping interval, whenever it is withdrawn.
    interval = server.settings.stream_ping_interval / 2
    around = Following(
        repository=server.repository,
        logs=server.logs,
        hub=server.hub,
        looks=server.looks,
        end=end,
        check_access=server.authenticator.guard(caller, every=interval),
        look_again_after=min(LOOK_AGAIN_SECONDS, interval),
    )
    events = _after(first, follow_job(around, job.id, job.user_id, start))
    location = {"Content-Location": f"/jobs/{job.id}/stream"}
    return JobStream(
        events,
        end=end,
        shutdown=server.shutdown,
        held=held,
        ping_interval=server.settings.stream_ping_interval,
        headers=location,
        job_id=job.id,
        attempt=job.attempt,
        user_id=job.user_id,
    )


async def _after(
    first: tuple[StreamEvent, ...], events: AsyncGenerator[StreamEvent, None]
) -> AsyncGenerator[StreamEvent, None]:
    async with contextlib.aclosing(events):
        for event in first:
            yield event
        async for event in events:
            yield event
