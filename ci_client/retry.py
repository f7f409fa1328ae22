"""How long and how often to try again: exponential back-off with jitter, reset by progress, ended by patience."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from ci_client._http import Disconnected, ProtocolError
from ci_common.errors import CIError, QueueFull, ServerUnreachable, TooManyRequests

NO_ROOM = (TooManyRequests, QueueFull)  # there will be room: asking again is for whoever wants to wait
_ASK_AGAIN_SECONDS = 10  # where the server does not say when
_WORTH_TELLING = 3  # failures in a row: about a second


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Times in seconds. A server never reached is given up soon (a wrong address), one that was there is waited for."""

    first_delay: float = 0.25
    max_delay: float = 5.0
    first_contact: float = 2.0
    patience: float = 300.0


def wait_for_room(error: CIError, tell: Callable[[str], None]) -> None:
    """Return when it is time to ask for room again: as the server said, and a bit spread over those who wait."""
    seconds = error.retry_after or _ASK_AGAIN_SECONDS
    tell(f"{error.detail} Waiting for room; asking again in {seconds} s.")
    time.sleep(seconds * random.uniform(1.0, 1.25))  # noqa: S311 - spreads clients, hides nothing


class Retries:
    """The failures of one operation in a row."""

    def __init__(
        self, policy: RetryPolicy, server_url: str, on_outage: Callable[[str], None] | None = None
    ) -> None:
        self._policy = policy
        self._server_url = server_url
        self._on_outage = on_outage
        self._reached = False
        self._failures = 0
        self._failing_since = 0.0

    def progress(self) -> None:
        """The server answered: the next failure is the first one again."""
        self._reached = True
        self._failures = 0

    def wait(self, error: Disconnected | CIError) -> None:
        """Return when it is time to try again; raises what is to be told when it is not worth trying again."""
        if not self._is_transient(error):
            raise error
        self._reached |= isinstance(error, Disconnected) and error.after_contact
        now = time.monotonic()
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        delay = self._delay(error)
        patience = self._policy.patience if self._reached else self._policy.first_contact
        if now + delay - self._failing_since > patience:
            raise self._final(error) from error
        if self._failures == _WORTH_TELLING and self._on_outage:
            self._on_outage(str(error))
        time.sleep(delay)

    def _is_transient(self, error: Disconnected | CIError) -> bool:
        if isinstance(error, Disconnected):
            return True
        if isinstance(error, ServerUnreachable | ProtocolError):
            return False  # something answers there, but not a server of ours
        if isinstance(error, NO_ROOM):
            return self._reached  # the stream that just broke may still be counted
        return error.http_status >= 500

    def _delay(self, error: Disconnected | CIError) -> float:
        policy = self._policy
        backoff = min(policy.max_delay, policy.first_delay * 2 ** min(self._failures - 1, 10))
        jittered = backoff * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients, hides nothing
        asked = error.retry_after or 0 if isinstance(error, CIError) else 0
        return max(jittered, float(asked))

    def _final(self, error: Disconnected | CIError) -> CIError:
        if isinstance(error, CIError):
            return error
        return ServerUnreachable(f"The server at {self._server_url} cannot be reached: {error}")
