"""Jobs that name an earlier one instead of an upload: one, or many in one request, all of them or none."""

import hashlib
import json
import re
from typing import Any, Final, cast

import structlog
from fastapi import Request

from ci_common.clock import Clock
from ci_common.errors import InvalidRequest
from ci_common.job_terms import new_id
from ci_common.models import Idempotency, Job, QueueLimits, Repeat
from ci_common.repository import JobRepository
from ci_server.auth import Authenticator, Caller
from ci_server.bodies import JsonBodies, as_list
from ci_server.rate_limits import RateLimits
from ci_server.settings import ServerSettings
from ci_server.submissions import check_idempotency_key
from ci_server.trees import options_named

MOST_AT_ONCE: Final = 100
_BODY_BYTES: Final = 1024 * 1024
_MOST_VALUES: Final = 20_000
_JOB_ID: Final = re.compile(r"[\x21-\x7e]{1,100}")
_Wish = tuple[str, dict[str, Any]]

_log = structlog.stdlib.get_logger("ci_server.repeats")


class Repeats:
    """Queues trees that are here already."""

    def __init__(
        self,
        repository: JobRepository,
        authenticator: Authenticator,
        bodies: JsonBodies,
        rates: RateLimits,
        settings: ServerSettings,
        clock: Clock,
    ) -> None:
        self._repository = repository
        self._authenticator = authenticator
        self._bodies = bodies
        self._rates = rates
        self._settings = settings
        self._limits = QueueLimits(settings.max_queued_per_user, settings.max_queued)
        self._clock = clock

    async def submit(self, request: Request, caller: Caller, idempotency_key: str | None) -> list[Job]:
        """All that the body asks for is queued, and returned in its order; raises, and nothing of it is, otherwise."""
        check_idempotency_key(idempotency_key)
        async with self._bodies.read(request, caller.user.id, _BODY_BYTES, _MOST_VALUES) as document:
            wishes = [_wish(one, self._settings) for one in _listed(document)]
        self._rates.submission_by(caller.key.id, len(wishes) - 1)  # the request was counted for one
        await self._authenticator.recheck(caller)  # the body may have taken long
        repeats = _repeats(wishes, idempotency_key)
        now = self._clock.now()
        jobs = await self._repository.repeat_jobs(caller.user.id, repeats, now, self._limits)
        for job in jobs:
            _log.info("job_submitted", job_id=job.id, user_id=job.user_id, repeat_of=job.repeat_of)
        return jobs


def _listed(document: dict[str, Any]) -> list[Any]:
    if "jobs" not in document:
        return [document]
    jobs = as_list(document["jobs"])
    if not jobs or len(jobs) > MOST_AT_ONCE:
        raise InvalidRequest(f"'jobs' must be a list of 1 to {MOST_AT_ONCE} jobs.")
    return jobs


def _wish(one: Any, settings: ServerSettings) -> _Wish:
    document = cast(dict[str, Any], one) if isinstance(one, dict) else {}
    source: Any = document.get("from_job")
    if not isinstance(source, str) or not _JOB_ID.fullmatch(source):
        raise InvalidRequest(
            "Each job must be an object whose 'from_job' is the id of an earlier job of yours."
        )
    return source, options_named(document, settings)


def _repeats(wishes: list[_Wish], key: str | None) -> list[Repeat]:
    """Return what to queue. A key stands for all of it: each job but the first has one that was made from it."""
    if key is None:
        return [Repeat(source, new_id(), changes) for source, changes in wishes]
    said = hashlib.sha256(json.dumps(["repeat", wishes]).encode()).hexdigest()
    root = hashlib.sha256(key.encode()).hexdigest()
    keys = [key, *(f"{root}:{place}" for place in range(1, len(wishes)))]
    return [
        Repeat(source, new_id(), changes, Idempotency(one, said))
        for one, (source, changes) in zip(keys, wishes, strict=True)
    ]
