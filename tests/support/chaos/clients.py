"""Users of the system under chaos: they submit, cancel, wait and read, over HTTP and with `ci`, and do not give up."""

import base64
import json
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import httpx_sse

from tests.support.chaos.plant import Crew, Plant, Submitted
from tests.support.chaos.workload import KINDS, PASSED, Kind
from tests.support.installation import make_project
from tests.support.plain_http import NO_TLS

PATIENCE_SECONDS: Final = 180.0  # with a system that is being broken
OPEN_PER_USER: Final = 4
# What `ci` may end with instead of a verdict: nobody there, too busy, a key that was taken away.
OUTAGES: Final = frozenset({69, 75, 77})
EXIT_CODES: Final = {
    PASSED: 0,
    "tests_failed": 1,
    "crashed": 1,
    "timeout": 124,
    "oom": 125,
    "install_failed": 125,
    "infra": 125,
    "cancelled": 143,
}


@dataclass
class Client:
    """One user's way to both replicas."""

    plant: Plant
    user: str
    chance: Random
    http: httpx.Client

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the answer of whichever replica has one; raises AssertionError for a 500 or after three minutes."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        said = ""
        while time.monotonic() < deadline:
            try:
                response = self._once(method, path, **options)
            except httpx.TransportError as error:
                said = repr(error)
            else:
                said = f"{response.status_code} {response.text[:300]}"
                assert response.status_code not in (500, 502), f"{method} {path}: {said}"
                if response.status_code < 500 and response.status_code not in (401, 403, 408, 429):
                    return response
            time.sleep(0.3)
        raise AssertionError(
            f"{method} {path} by {self.user} had no answer for three minutes; at last: {said}"
        )

    def _once(self, method: str, path: str, **options: Any) -> httpx.Response:
        url = self.chance.choice(self.plant.urls)
        headers = {**options.pop("headers", {}), **self.authorization}
        return self.http.request(method, url + path, headers=headers, **options)

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.plant.system.keys[self.user]}"}

    def submit(self, kind: Kind) -> Submitted:
        """Return the job once a replica has acknowledged it."""
        number = self.plant.ledger.number()
        form: dict[str, Any] = {"pytest_args": list(kind.pytest_args)}
        if kind.timeout is not None:
            form["timeout"] = str(kind.timeout)
        response = self.call(
            "POST",
            "/submit-async",
            files={"file": ("project.zip", kind.archive(number))},
            data=form,
            headers={"Idempotency-Key": uuid.uuid4().hex},
        )
        assert response.status_code == 200, f"{kind.name} {number}: {response.status_code} {response.text}"
        return self.noted(response.json()["job_id"], kind, number)

    def noted(self, job_id: str, kind: Kind, number: int) -> Submitted:
        job = Submitted(job_id, kind, number, self.user)
        self.plant.ledger.note(job)
        self.plant.book.write(f"job {number} {kind.name} of {self.user}: {job_id}")
        return job

    def cancel(self, job: Submitted) -> None:
        response = self.call("DELETE", f"/jobs/{job.job_id}")
        assert response.status_code in (200, 202, 409), f"cancel of {job.job_id}: {response.text}"
        self.plant.book.write(f"job {job.number} cancel: {response.status_code}")


def _client(plant: Plant, user: str, chance: Random) -> Client:
    return Client(plant, user, chance, httpx.Client(timeout=8, verify=NO_TLS))


def submit_and_cancel(plant: Plant, crew: Crew, user: str, chance: Random) -> None:
    """That user always has a few jobs open until the crew is called off."""
    client = _client(plant, user, chance)
    with client.http:
        while not crew.off.is_set():
            if len(plant.ledger.open(user)) >= OPEN_PER_USER:
                crew.off.wait(0.3)
                continue
            [kind] = chance.choices(KINDS, [kind.weight for kind in KINDS])
            job = client.submit(kind)
            if kind.cancelled:
                crew.off.wait(chance.uniform(0, 5))
                client.cancel(job)


def submit_with_ci(plant: Plant, crew: Crew, user: str, chance: Random, folder: Path) -> None:
    """That user works with `ci submit` and `ci wait`, whose exit code is the verdict."""
    client = _client(plant, user, chance)
    kinds = [kind for kind in KINDS if not kind.cancelled]
    with client.http:
        while not crew.off.is_set():
            [kind] = chance.choices(kinds, [kind.weight for kind in kinds])
            number = plant.ledger.number()
            project = make_project(folder / f"{number}", dict(kind.files(number)))
            limit = () if kind.timeout is None else ("--timeout", f"{kind.timeout:g}s")
            done = _ci(client, "submit", "test", "--async", *limit, "--", *kind.pytest_args, folder=project)
            _forget(project)
            if done.returncode:
                assert done.returncode in OUTAGES, f"ci submit: {done.returncode} {done.stderr[-500:]}"
                plant.ledger.submission_of_ci_failed()
                crew.off.wait(1)
                continue
            job = client.noted(done.stdout.strip().rpartition(": ")[2], kind, number)
            _wait_with_ci(client, job, folder)


def _wait_with_ci(client: Client, job: Submitted, folder: Path) -> None:
    code = _ci(client, "wait", job.job_id, folder=folder).returncode
    client.plant.book.write(f"job {job.number} ci wait: {code}")
    if code in OUTAGES:
        return
    shown = client.call("GET", f"/jobs/{job.job_id}")
    if shown.status_code == 200:  # 404: pruned meanwhile
        reason = shown.json()["reason"] or PASSED
        assert code == EXIT_CODES[reason], f"ci wait {job.job_id} ended with {code} for {reason}"
        client.plant.ledger.count("exit codes of ci")


def _ci(client: Client, *args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    plant = client.plant
    server = client.chance.choice(plant.servers)
    program = Path(sys.executable).with_name("ci")
    environment = plant.system.client_environment(server, client.user)
    return subprocess.run(
        [str(program), *args],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )


def _forget(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


# -- readers ---------------------------------------------------------------------------------------------


def read_and_resume(plant: Plant, crew: Crew, chance: Random) -> None:
    """Follows one job after the other, drops the stream at random places, resumes it, compares with the log."""
    while not crew.off.is_set():
        jobs = plant.ledger.open()
        if not jobs:
            crew.off.wait(0.3)
            continue
        job = chance.choice(jobs)
        client = _client(plant, job.user, chance)
        with client.http:
            _Reader(client, job, crew).read()


class _Reader:
    """One reader of one job; holds what it has read of the latest attempt."""

    def __init__(self, client: Client, job: Submitted, crew: Crew) -> None:
        self._client = client
        self._job = job
        self._crew = crew
        self._position = ""
        self._attempt = ""
        self._read = bytearray()
        self.drops = 0

    def read(self) -> None:
        while not self._crew.off.is_set():
            try:
                if self._until_dropped():
                    self._compare()
                    return
            except httpx.TransportError:
                pass
            self.drops += 1
            self._crew.off.wait(self._client.chance.uniform(0, 0.5))

    def _until_dropped(self) -> bool:
        """Return True when the job is complete; False when the stream ended, was dropped or refused."""
        client, chance = self._client, self._client.chance
        left = chance.choice([1, 3, 10, 100, 1000])
        headers = {**client.authorization, **({"Last-Event-ID": self._position} if self._position else {})}
        url = f"{chance.choice(client.plant.urls)}/jobs/{self._job.job_id}/stream?from_beginning=true"
        with httpx_sse.connect_sse(client.http, "GET", url, headers=headers) as source:
            if source.response.status_code != 200:
                code = source.response.status_code
                assert code in (401, 404, 429, 503), f"a stream was refused: {code}"
                return code == 404  # pruned
            for event in source.iter_sse():
                if event.data and self._take(event.id, json.loads(event.data)):
                    return True
                left -= 1
                if not left or self._crew.off.is_set():
                    return False
        return False

    def _take(self, position: str, event: dict[str, Any]) -> bool:
        if position:
            attempt = position.partition(":")[0]
            if attempt != self._attempt:
                self._attempt = attempt
                self._read.clear()
            self._position = position
        if event["type"] == "log":
            encoded = event.get("data_base64")
            self._read += base64.b64decode(encoded) if encoded else event["data"].encode()
        return event["type"] == "complete"

    def _compare(self) -> None:
        """What was read in pieces is the log."""
        log = self._client.call("GET", f"/jobs/{self._job.job_id}/log")
        if log.status_code in (404, 410):
            return
        plant = self._client.plant
        if log.content == bytes(self._read):
            plant.ledger.count("streams equal to their log")
            plant.book.write(
                f"job {self._job.number} read in {self.drops + 1} pieces: {len(log.content)} bytes"
            )
        else:
            plant.book.problem(
                f"job {self._job.job_id}: {len(self._read)} bytes in {self.drops + 1} pieces of a stream are not"
                f" the log of {len(log.content)} bytes"
            )
