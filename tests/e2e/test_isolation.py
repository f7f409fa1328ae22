"""Two users, two replicas: nobody sees a trace of another's jobs, and any replica continues any stream."""

import json
from pathlib import Path

import pytest

from ci_common.events import Position
from tests.support.eventually import eventually
from tests.support.handing_in import hand_in
from tests.support.installation import Daemon, Installation, make_project

pytestmark = pytest.mark.docker


Shared = tuple[Installation, Daemon]

TALKS = """
import time

def test_x():
    for n in range(100):
        print(f"line {n} é", flush=True)
        time.sleep(0.03)
"""


def test_users_see_only_their_own_jobs_whatever_replica_they_ask(shared: Shared, tmp_path: Path) -> None:
    """Each request may meet another process: submitting, following and listing need no memory of the others."""
    system, first = shared
    second = system.start_server(workers=2)
    project = make_project(tmp_path / "project", {"test_x.py": TALKS})
    job_ids = {hand_in(system, second, project, "-s", user="owner") for _ in range(2)}
    job_id = min(job_ids)
    continues_on_another_replica_at_the_same_offset(system, first, second, job_id)
    for server in (first, second):
        with system.http(server, "other") as other, system.http(server, "owner") as owner:
            assert other.get("/jobs").json() == []
            assert {job["job_id"] for job in owner.get("/jobs").json()} == job_ids
            unknown = "00000000-0000-4000-8000-000000000000"
            for path in ("/jobs/{}", "/jobs/{}/stream", "/jobs/{}/log"):
                foreign, absent = other.get(path.format(job_id)), other.get(path.format(unknown))
                assert foreign.status_code == absent.status_code == 404
                assert _without_ids(foreign.json(), job_id) == _without_ids(absent.json(), unknown)
            assert other.delete(f"/jobs/{job_id}").status_code == 404
    assert system.ci(second, "list", "--json", user="other").text.strip() == "[]"
    for one in job_ids:
        waited = system.ci(second, "wait", one, "--all", user="owner")
        assert waited.code == 0, waited.err
        assert waited.out == system.log(first, one, "owner")
    assert second.terminate() == 0, second.tail()


def _without_ids(problem: dict[str, str], job_id: str) -> str:
    kept = {key: value for key, value in problem.items() if key not in ("request_id", "instance")}
    return json.dumps(kept).replace(job_id, "ID")


def continues_on_another_replica_at_the_same_offset(
    system: Installation, first: Daemon, second: Daemon, job_id: str
) -> None:
    eventually(lambda: b"line 5 " in system.log(first, job_id, "owner"), what="some output")
    seen, position = _read(system, first, job_id, None, events=5)
    assert position is not None
    assert position.offset == len(seen)
    rest, _ = _read(system, second, job_id, position, events=None)
    assert seen + rest == system.log(second, job_id, "owner")


def _read(
    system: Installation, server: Daemon, job_id: str, after: Position | None, events: int | None
) -> tuple[bytes, Position | None]:
    """Read so many log events (None: all), from the beginning or after a position."""
    from httpx_sse import connect_sse

    from ci_common.events import CompleteEvent, LogEvent, parse_event

    headers = {"Last-Event-ID": str(after)} if after else {}
    data, position = b"", after
    with (
        system.http(server, "owner") as http,
        connect_sse(http, "GET", f"/jobs/{job_id}/stream?from_beginning=true", headers=headers) as source,
    ):
        for sse in source.iter_sse():
            event = parse_event(json.loads(sse.data), Position.parse(sse.id) if sse.id else None)
            if isinstance(event, LogEvent):
                data, position = data + event.data, event.position
                events = events - 1 if events is not None else None
            if isinstance(event, CompleteEvent) or events == 0:
                break
    return data, position


def test_the_client_survives_the_death_of_its_server(shared: Shared, tmp_path: Path) -> None:
    """The server is killed in the middle of a stream and another takes its place at the same address."""
    system, _ = shared
    project = make_project(tmp_path / "project", {"test_x.py": TALKS})
    server = system.start_server()
    process = system.spawn_ci(server, "submit", "test", "--", "-s", project=project, user="survivor")
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        out = b""
        while b"line 10" not in out:
            out += process.stdout.readline()
            assert process.poll() is None
        server.kill()
        successor = system.restart_server(server)
        out += process.stdout.read()
        assert process.wait(timeout=60) == 0, process.stderr.read().decode()
    with system.http(successor, "survivor") as http:
        [job] = http.get("/jobs").json()
    assert out == system.log(successor, job["job_id"], "survivor")
    assert successor.terminate() == 0, successor.tail()
