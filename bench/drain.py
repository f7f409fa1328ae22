"""Many tiny jobs at once, beside `xargs -P` of `docker run`."""

import os
import subprocess
import time
from datetime import datetime
from pathlib import Path

from bench.floors import PYTEST, SECONDS, packed
from bench.place import Place
from bench.report import Row
from tests.support.archives import zip_of
from tests.support.eventually import eventually

PARALLEL = (1, 2, 3, 4, 6)


def drain(place: Place) -> list[Row]:
    """The rate of jobs that are queued at once: ours, and the floor with the parallelism that is best for it."""
    jobs, rounds = (20, 1) if place.quick else (100, max(3, place.rounds // 2))
    project = place.project("tiny", "ours")
    tree, archive = tiny_tree(place, project), tiny_archive(project)
    place.submit(project)
    drained_ours(place, archive, 10)
    best = max(PARALLEL, key=lambda parallel: drained_floor(place, tree, min(jobs, 20), parallel))
    ours: list[float] = []
    floor: list[float] = []
    for _ in range(rounds):
        floor.append(drained_floor(place, tree, jobs, best))
        ours.append(drained_ours(place, archive, jobs))
    return [
        Row(
            f"{jobs} tiny jobs queued at once",
            "1/s",
            tuple(ours),
            f"`xargs -P{best}` of `docker run`, prepared image",
            tuple(floor),
            "drain",
            more_is_better=True,
        )
    ]


def tiny_tree(place: Place, project: Path) -> Path:
    """Return the project as a tar, for the floor."""
    tree = place.root / "tiny.tar"
    tree.write_bytes(packed(project))
    return tree


def tiny_archive(project: Path) -> bytes:
    """Return the project as what is uploaded."""
    return zip_of({path.name: path.read_bytes() for path in project.iterdir() if path.is_file()})


def drained_floor(place: Place, tree: Path, jobs: int, parallel: int) -> float:
    """Return jobs per second of so many `docker run` side by side."""
    containers = place.containers
    # The script comes from the environment: what is quoted twice is quoted wrongly.
    command = [*containers.command(containers.prepared, PYTEST)[:-1], "$BENCH_SCRIPT"]
    line = " ".join(f'"{word}"' for word in command) + f' < "{tree}" > /dev/null 2>&1'
    script = containers.command(containers.prepared, PYTEST)[-1]
    began = time.monotonic()
    subprocess.run(
        ["xargs", f"-P{parallel}", "-I{}", "sh", "-c", line],
        input="\n".join(map(str, range(jobs))).encode(),
        env={**os.environ, "BENCH_SCRIPT": script},
        check=True,
        timeout=SECONDS,
    )
    return jobs / (time.monotonic() - began)


def drained_ours(place: Place, archive: bytes, jobs: int) -> float:
    """Return jobs per second from the first submission to the last verdict."""
    with place.system.http(place.server) as http:
        files = {"file": ("project.zip", archive, "application/zip")}
        ids = [
            http.post("/submit-async", files=files).raise_for_status().json()["job_id"] for _ in range(jobs)
        ]
        wanted, found = set(ids), list[dict[str, str]]()

        def are_done() -> bool:
            listed = http.get("/jobs", params={"limit": jobs}).raise_for_status().json()
            found[:] = [job for job in listed if job["job_id"] in wanted and job["success"] is not None]
            return len(found) == jobs

        # Followed, not asked for again and again: that would be a part of what is measured.
        with http.stream("GET", f"/jobs/{ids[-1]}/stream") as stream:
            stream.read()
        eventually(are_done, seconds=SECONDS, what="the end of all jobs")
    assert all(job["success"] for job in found), found
    times = [[datetime.fromisoformat(job[name]) for job in found] for name in ("created_at", "end_time")]
    return jobs / (max(times[1]) - min(times[0])).total_seconds()
