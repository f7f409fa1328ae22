"""ServerLink: what the agent says to the server, over HTTP and in whatever thread calls. Who calls tries again.

Whatever breaks on the way is Unavailable, and what the server refuses the error that it names.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ci_client._http import Body, Disconnected, Http, json_body
from ci_client.blobs import Packed
from ci_common.errors import Unavailable
from ci_common.models import AgentProfile, Fence

_JSON = "application/json"
_BYTES = "application/octet-stream"
_PATIENCE = 90.0  # seconds: some answers wait for a disk


class ServerLink:
    """One server, one key, and (once registered) one epoch."""

    def __init__(self, server_url: str, key: str) -> None:
        self.server_url = server_url
        self.agent_id = ""
        self.epoch = 0  # 0: not registered yet
        self._http = Http(server_url, key)

    def close(self) -> None:
        """Every connection is closed."""
        self._http.close()

    def register(self, profile: AgentProfile) -> float:
        """The key's agent is us; returns the seconds of its lease."""
        said = {**asdict(profile), "labels": list(profile.labels)}
        with _breaking():
            answer = self._sent("POST", "/api/agents/register", said, {})
        self.agent_id, self.epoch = str(answer["agent_id"]), int(answer["epoch"])
        return float(answer["lease_seconds"])

    def ask(self, what: str, params: Mapping[str, str | int] | None = None) -> Any:
        """Return what the server says to the agent."""
        with _breaking():
            return self._http.json("GET", self._path(what), params, self._epoch())

    def tell(self, what: str, said: Mapping[str, Any], patience: float = _PATIENCE) -> Any:
        """Return the server's answer to what the agent says, which may take so many seconds to begin."""
        with _breaking():
            return self._sent("POST", self._path(what), said, self._epoch(), patience)

    def claim(self, slots: int) -> Any:
        """Return what was claimed, None where there was nothing."""
        with _breaking():
            return self._sent("POST", "/api/queue/claim", {"slots": slots}, self._epoch())

    def report(self, fence: Fence, what: str, said: Mapping[str, Any]) -> Any:
        """Return the server's answer to what is said of an attempt; raises StaleClaim."""
        with _breaking():
            return self._sent("PATCH", _of(fence, what), said, self._fenced(fence))

    def put(self, fence: Fence, what: str, data: bytes, headers: Mapping[str, str] | None = None) -> Any:
        """Return the server's answer to bytes of an attempt; raises StaleClaim."""
        body = Body(_BYTES, Packed(len(data), (data,)))
        known = {**self._fenced(fence), **(headers or {})}
        with _breaking(), self._http.upload("PUT", _of(fence, what), body, known) as answer:
            return answer

    @contextmanager
    def archive(self, fence: Fence) -> Generator[Iterator[bytes]]:
        """Yield the pieces of the zip of an attempt's tree; raises StaleClaim."""
        with _breaking(), self._http.download(_of(fence, "archive"), {}, 0, self._fenced(fence)) as pieces:
            yield pieces

    def _sent(
        self,
        method: str,
        path: str,
        said: Mapping[str, Any],
        headers: Mapping[str, str],
        patience: float = _PATIENCE,
    ) -> Any:
        data = json_body(said)
        body = Body(_JSON, Packed(len(data), (data,)))
        with self._http.upload(method, path, body, headers, patience) as answer:
            return answer

    def _path(self, what: str) -> str:
        return f"/api/agents/{self.agent_id}/{what}"

    def _epoch(self) -> dict[str, str]:
        return {"Agent-Epoch": str(self.epoch)}

    def _fenced(self, fence: Fence) -> dict[str, str]:
        return {**self._epoch(), "Claim-Token": fence.token}


def _of(fence: Fence, what: str) -> str:
    return f"/api/queue/jobs/{fence.job_id}/{what}"


@contextmanager
def _breaking() -> Generator[None]:
    try:
        yield
    except Disconnected as error:
        raise Unavailable(f"The server cannot be reached: {error}.") from error
