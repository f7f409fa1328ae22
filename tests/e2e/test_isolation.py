"""Two users, two replicas: nobody sees a trace of another's jobs, and any replica continues any stream."""

import json
from pathlib import Path

import pytest

from ci_common.events import Position
from tests.support.eventually import eventually
from tests.support.installation import FIXTURES, Daemon, Installation, make_project

pytestmark = pytest.mark.docker


def test_users_see_only_their_own_jobs(installation: Installation) -> None:
    system = installation
    first = system.start()
    second = system.start_server()
    job_id = system.submit(first, FIXTURES / "passing", user="ada")
    system.wait(first, job_id)
    for server in (first, second):
        with system.http(server, "bob") as bob, system.http(server, "ada") as ada:
            assert bob.get("/jobs").json() == []
            assert [job["job_id"] for job in ada.get("/jobs").json()] == [job_id]
            unknown = "00000000-0000-4000-8000-000000000000"
            for path in ("/jobs/{}", "/jobs/{}/stream", "/jobs/{}/log"):
                foreign, absent = bob.get(path.format(job_id)), bob.get(path.format(unknown))
                assert foreign.status_code == absent.status_code == 404
                assert _without_ids(foreign.json(), job_id) == _without_ids(absent.json(), unknown)
            assert bob.delete(f"/jobs/{job_id}").status_code == 404
    assert system.ci(second, "wait", job_id, user="bob").code == 66
    assert system.ci(second, "list", "--json", user="bob").text.strip() == "[]"


def _without_ids(problem: dict[str, str], job_id: str) -> str:
    kept = {key: value for key, value in problem.items() if key not in ("request_id", "instance")}
    return json.dumps(kept).replace(job_id, "ID")


def test_a_stream_continues_on_another_replica_at_the_same_offset(
    installation: Installation, tmp_path: Path
) -> None:
    system = installation
    code = (
        "import time\ndef test_x():\n"
        "    for n in range(100):\n        print(f'line {n} é', flush=True)\n        time.sleep(0.03)\n"
    )
    project = make_project(tmp_path / "project", {"test_x.py": code})
    first = system.start()
    second = system.start_server()
    job_id = system.submit(first, project, "--", "-s")
    eventually(lambda: b"line 5 " in system.log(first, job_id), what="some output")
    seen, position = _read(system, first, job_id, None, events=5)
    assert position is not None
    assert position.offset == len(seen)
    rest, _ = _read(system, second, job_id, position, events=None)
    assert seen + rest == system.log(second, job_id)


def _read(
    system: Installation, server: Daemon, job_id: str, after: Position | None, events: int | None
) -> tuple[bytes, Position | None]:
    """Read so many log events (None: all), from the beginning or after a position."""
    from httpx_sse import connect_sse

    from ci_common.events import CompleteEvent, LogEvent, parse_event

    headers = {"Last-Event-ID": str(after)} if after else {}
    data, position = b"", after
    with (
        system.http(server) as http,
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


def test_the_client_survives_the_death_of_its_server(installation: Installation, tmp_path: Path) -> None:
    """The server is killed in the middle of a stream and another takes its place at the same address."""
    system = installation
    code = (
        "import time\ndef test_x():\n"
        "    for n in range(150):\n        print(f'line {n}', flush=True)\n        time.sleep(0.03)\n"
    )
    project = make_project(tmp_path / "project", {"test_x.py": code})
    server = system.start()
    process = system.spawn_ci(server, "submit", "test", "--", "-s", project=project)
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        out = b""
        while b"line 10" not in out:
            out += process.stdout.readline()
            assert process.poll() is None
        server.kill()
        system.restart_server(server)
        out += process.stdout.read()
        assert process.wait(timeout=60) == 0, process.stderr.read().decode()
    [job] = json.loads(system.ci(server, "list", "--json").text)
    assert out == system.log(server, job["job_id"])


def test_four_workers_serve_one_database(installation: Installation) -> None:
    """Each request may meet another process: submitting, following and listing need no memory of the others."""
    system = installation
    system.start_controller()
    server = system.start_server(workers=4)
    system.wait_ready(server)
    job_ids = {system.submit(server, FIXTURES / "passing") for _ in range(3)}
    for job_id in job_ids:
        waited = system.ci(server, "wait", job_id, "--all")
        assert waited.code == 0, waited.err
        assert waited.out == system.log(server, job_id)
    assert {job["job_id"] for job in json.loads(system.ci(server, "list", "--json").text)} == job_ids
