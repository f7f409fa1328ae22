"""The pieces of one job's time, each seen from outside, at the reading end of `ci`."""

import json
import subprocess
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.floors import packed
from bench.place import Place
from bench.report import Row
from tests.support.eventually import eventually
from tests.support.installation import make_project

FIRST_LINE = "test session starts"
PRINTS = 200
PRINTS_THE_TIME = f"""
import sys, time

def test_prints_the_time():
    for _ in range({PRINTS}):
        sys.stdout.write(f"@{{time.time():.6f}}\\n")
        sys.stdout.flush()
        time.sleep(0.01)
"""


@dataclass
class Seen:
    """When a client had what of one job, by the clock of the machine, in seconds."""

    job_id: str
    first_line: float
    complete: float


@dataclass
class Deaths:
    """When the engine said that containers had ended, by name."""

    at: dict[str, float] = field(default_factory=dict[str, float])

    def of_job(self, job_id: str) -> float | None:
        return next((at for name, at in self.at.items() if job_id in name), None)


@contextmanager
def watched_deaths() -> Generator[Deaths]:
    """The engine's events are listened to meanwhile."""
    what = ["--filter", "type=container", "--filter", "event=die", "--format", "{{json .}}"]
    process = subprocess.Popen(["docker", "events", *what], stdout=subprocess.PIPE)
    deaths = Deaths()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            deaths.at[event["Actor"]["Attributes"]["name"]] = event["timeNano"] / 1e9

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield deaths
    finally:
        process.terminate()
        process.wait(30)
        thread.join(30)


def followed(place: Place, project: Path) -> Seen:
    """Return when `ci submit test --json` printed what of a job that passed."""
    place.rest()
    process = place.system.spawn_ci(place.server, "submit", "test", "--json", project=project)
    place.jobs += 1
    assert process.stdout is not None
    job_id, first_line, complete, text = "", 0.0, 0.0, ""
    for line in process.stdout:
        now, event = time.time(), json.loads(line)
        job_id = event.get("job_id", job_id)
        text += event.get("data", "") if event["type"] == "log" else ""
        if not first_line and FIRST_LINE in text:
            first_line = now
        if event["type"] == "complete":
            assert event["success"], event
            complete = now
    process.communicate(timeout=60)
    return Seen(job_id, first_line, complete)


def moments(place: Place, job_id: str) -> dict[str, float]:
    """Return when a job first was what, by the database."""
    with place.system.http(place.server) as http:
        events: list[dict[str, Any]] = http.get(f"/jobs/{job_id}/events").raise_for_status().json()
    found: dict[str, float] = {}
    for event in events:
        found.setdefault(event["type"], datetime.fromisoformat(event["timestamp"]).timestamp())
    return found


def pieces(place: Place) -> list[Row]:
    """From accepted to claimed, to pytest's first line, and from the container's end to the verdict at the client."""
    project = place.project("tiny", "ours")
    place.submit(project)
    claimed: list[float] = []
    first: list[float] = []
    complete: list[float] = []
    with watched_deaths() as deaths:
        for _ in range(place.rounds * 2):
            seen = followed(place, project)
            at = moments(place, seen.job_id)
            end = eventually(lambda seen=seen: deaths.of_job(seen.job_id), what="the engine's event")
            claimed.append(1000 * (at["claimed"] - at["submitted"]))
            first.append(1000 * (seen.first_line - at["submitted"]))
            complete.append(1000 * (seen.complete - end))
    return [
        Row("submit → claimed", "ms", tuple(claimed), key="claimed"),
        Row("accepted → first line of pytest at the client", "ms", tuple(first), key="first-line"),
        Row(
            "container exit (as Docker says) → `complete` at the client",
            "ms",
            tuple(complete),
            key="complete",
        ),
    ]


def printed(place: Place) -> list[Row]:
    """A test prints the time; how much later does the client print that line; and `docker run`?"""
    project = make_project(
        place.root / "printing", {"test_time.py": PRINTS_THE_TIME, "requirements.txt": "pytest\n"}
    )
    place.submit(project)
    process = place.system.spawn_ci(place.server, "submit", "test", "--", "-s", project=project)
    ours = _lateness(process)
    script = place.containers.command(place.containers.prepared, "python -m pytest -q -s")
    floor = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert floor.stdin is not None
    floor.stdin.write(packed(project))
    floor.stdin.close()
    name = "a test prints → the client prints"
    return [Row(name, "ms", ours, "`docker run`", _lateness(floor), "printed")]


def _lateness(process: subprocess.Popen[bytes]) -> tuple[float, ...]:
    assert process.stdout is not None
    late = [(time.time() - float(line[1:])) * 1000 for line in process.stdout if line.startswith(b"@")]
    assert process.wait(60) == 0
    assert len(late) >= PRINTS - 1, "pytest's own dots may stand before the first"
    return tuple(late)
