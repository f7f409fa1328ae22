"""Agents at a real server: what each may do with what it holds, and that nothing else is there for it."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_common.clock import utcnow
from ci_common.job_terms import JobOptions, JobStatus, Reason
from ci_common.missing_uploads import NOT_THERE
from ci_common.models import AgentState, Job, LogSeal, Scope
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_validator import open_archive
from ci_persistence.log_store import FileLogWriter
from ci_server.waiting import waiting_for
from tests.support.controlled import eventually
from tests.support.server import PROJECT, Account, Site, client, open_site, serving, upload, zipped

GPU = JobOptions(pool="gpu")
PROFILE = {"name": "rack-1", "pool": "gpu", "slots": 2, "labels": ["cuda"], "version": "1"}


@dataclass
class Agent:
    """An agent as a client of the API."""

    http: httpx.AsyncClient
    id: str
    epoch: int

    async def ask(self, method: str, what: str, **options: Any) -> httpx.Response:
        return await self.ask_with({}, method, what, **options)

    async def ask_with(
        self, headers: dict[str, str], method: str, what: str, **options: Any
    ) -> httpx.Response:
        known = {"Agent-Epoch": str(self.epoch), **headers}
        return await self.http.request(method, f"/api/agents/{self.id}/{what}", headers=known, **options)

    async def claim(self, **asked: Any) -> httpx.Response:
        headers = {"Agent-Epoch": str(self.epoch)}
        return await self.http.post("/api/queue/claim", json=asked, headers=headers)

    async def claimed(self) -> dict[str, Any]:
        return (await self.claim()).json()["job"]

    async def say(
        self,
        method: str,
        job: dict[str, Any],
        what: str,
        *,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """Say something of a job that was claimed."""
        known = {"Agent-Epoch": str(self.epoch), "Claim-Token": job["claim_token"], **(headers or {})}
        return await self.http.request(
            method, f"/api/queue/jobs/{job['id']}/{what}", headers=known, **options
        )

    async def write(self, job: dict[str, Any], offset: int, data: bytes) -> httpx.Response:
        place = {"Content-Range": f"bytes {offset}-{offset + len(data) - 1}/*"}
        return await self.say("PUT", job, "log", headers=place, content=data)

    async def started(self) -> dict[str, Any]:
        """A job was claimed and runs."""
        job = await self.claimed()
        body = {"container_id": f"c-{job['id']}", "image_id": "image", "image_cached": None}
        assert (await self.say("PATCH", job, "start", json=body)).status_code == 204
        assert (await self.say("PATCH", job, "begin")).status_code == 204
        return job


@asynccontextmanager
async def registered(url: str, account: Account, **changes: Any) -> AsyncGenerator[Agent, None]:
    async with client(url, account) as http:
        answer = await http.post("/api/agents/register", json={**PROFILE, **changes})
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document["lease_seconds"] == 30.0
        yield Agent(http, document["agent_id"], document["epoch"])


@pytest.fixture
async def url(site: Site) -> AsyncGenerator[str, None]:
    with serving(site.settings) as url:
        await site.hands.arrive()
        yield url


@pytest.fixture
async def rack(site: Site, url: str) -> AsyncGenerator[Agent, None]:
    account = await site.account("rack", frozenset({Scope.AGENT}))
    async with registered(url, account) as agent:
        yield agent


@pytest.fixture
async def operator(site: Site, url: str) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with client(url, await site.account("root", frozenset({Scope.ADMIN}))) as http:
        yield http


@pytest.fixture
async def adas(url: str, ada: Account) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Her client."""
    async with client(url, ada) as http:
        yield http


async def job_of(site: Site, job: dict[str, Any]) -> Job:
    found = await site.repository.get_job(job["id"])
    assert found is not None
    return found


def sealed(data: bytes) -> dict[str, Any]:
    return {"log_size": len(data), "log_sha256": hashlib.sha256(data).hexdigest(), "log_truncated": False}


async def test_a_job_goes_from_its_claim_to_its_verdict(
    site: Site, ada: Account, url: str, rack: Agent
) -> None:
    async with client(url, ada) as http:
        submitted = await http.post("/submit-async", data={"pool": "gpu"}, files=upload())
        job = await rack.started()
        assert job["id"] == submitted.json()["job_id"]
        assert (await rack.write(job, 0, b"hello ")).json() == {"size": 6}
        assert (await rack.write(job, 6, b"world")).json() == {"size": 11}
        assert (await rack.say("PUT", job, "events", content=b"{}\n")).status_code == 204
        body = {"reason": None, "exit_code": 0, "message": "1 passed", **sealed(b"hello world")}
        assert (await rack.say("PATCH", job, "complete", json=body)).status_code == 204
        shown = (await http.get(f"/jobs/{job['id']}")).json()
        assert (shown["status"], shown["success"], shown["message"]) == ("completed", True, "1 passed")
        assert (await http.get(f"/jobs/{job['id']}/log")).content == b"hello world"
        for second in (
            body,
            {**body, "reason": "crashed", "exit_code": None},
        ):  # its answer may have been lost
            again = await rack.say("PATCH", job, "complete", json=second)
            assert (again.status_code, again.json()["code"]) == (409, "stale_claim")
        assert (await http.get(f"/jobs/{job['id']}")).json() == shown
    assert site.stores.logs.read_events(job["id"], 1, 99) == b"{}\n"


async def test_the_tree_comes_as_a_zip_that_is_judged_good(
    site: Site, ada: Account, url: str, rack: Agent, tmp_path: Path
) -> None:
    async with client(url, ada) as http:
        await http.post("/submit-async", data={"pool": "gpu"}, files=upload())
    job = await rack.claimed()
    answer = await rack.say("GET", job, "archive")
    assert answer.headers["content-type"] == "application/zip"
    path = tmp_path / "archive.zip"
    path.write_bytes(answer.content)
    with open_archive(path, ArchiveLimits(100, 200, 10**6)) as archive:
        archive.verify()
        assert {one.path: archive.read(one.path, 999) for one in archive.entries} == {
            name: text.encode() for name, text in PROJECT.items()
        }


async def test_a_piece_that_is_sent_twice_stands_once_and_one_too_far_is_told_where_to_go_on(
    site: Site, ada: Account, rack: Agent
) -> None:
    await site.queue_job(ada, options=GPU)
    job = await rack.started()
    for _ in range(2):
        assert (await rack.write(job, 0, b"hello")).json() == {"size": 5}
    refused = await rack.write(job, 6, b"world")
    assert (refused.status_code, refused.json()["size"]) == (416, 5)
    unplaced = await rack.say("PUT", job, "log", content=b"world")
    assert (unplaced.status_code, unplaced.json()["code"]) == (422, "invalid_request")


async def test_a_line_is_seen_at_a_replica_that_the_agent_does_not_talk_to(
    site: Site, ada: Account, rack: Agent
) -> None:
    waiting = await site.queue_job(ada, options=GPU)
    job = await rack.started()
    with serving(site.settings) as replica:
        async with (
            client(replica, ada) as http,
            http.stream("GET", f"/jobs/{waiting.id}/stream", params={"from_beginning": True}) as seen,
            asyncio.timeout(60),
        ):
            lines = seen.aiter_lines()
            assert "running" in await next_with(lines, "status")
            for number in range(3):  # each was seen before the next one is written
                text = f"line {number}"
                assert (await rack.write(job, number * len(text), text.encode())).status_code == 200
                await next_with(lines, text)


async def next_with(lines: AsyncIterator[str], text: str) -> str:
    """Return the next line that has the text in it, once it comes."""
    while text not in (line := await anext(lines)):
        pass
    return line


async def submitted(site: Site, url: str, ada: Account, files: Mapping[str, str]) -> Path:
    """A job for the agent is queued; returns the file that its tree is in."""
    async with client(url, ada) as http:
        answer = await http.post("/submit-async", data={"pool": "gpu"}, files=upload(zipped(files)))
    job = await site.repository.get_job(answer.json()["job_id"])
    assert job is not None
    [path] = (site.settings.data_path / "archives").rglob(f"{job.archive_ref}*")
    return path


async def test_a_tree_that_cannot_be_read_keeps_no_attempt(
    site: Site, url: str, ada: Account, rack: Agent
) -> None:
    path = await submitted(site, url, ada, PROJECT)
    job = await rack.claimed()
    path.unlink()
    path.mkdir()
    assert (await rack.say("GET", job, "archive")).json()["code"] == "stale_claim"
    back = await site.repository.get_job(job["id"])
    assert back is not None
    assert (back.status, back.message) == (
        JobStatus.QUEUED,
        "Its upload could not be read: Is a directory.",
    )
    assert back.not_before is not None


async def test_a_server_that_does_not_see_the_uploads_ends_no_job(
    site: Site, url: str, ada: Account, rack: Agent
) -> None:
    path = await submitted(site, url, ada, PROJECT)
    job = await rack.claimed()
    path.unlink()  # as in the empty directory that a mount should hide
    assert (await rack.say("GET", job, "archive")).json()["code"] == "stale_claim"
    back = await site.repository.get_job(job["id"])
    assert back is not None
    assert back.status is JobStatus.QUEUED
    assert back.not_before is not None
    assert back.message == f"Its upload could not be read: {NOT_THERE}."


async def test_a_tree_that_was_damaged_ends_its_job_and_is_sent_as_no_other(
    site: Site, url: str, ada: Account, rack: Agent
) -> None:
    path = await submitted(site, url, ada, {**PROJECT, "data.txt": "needle" * 100_000})
    path.write_bytes(path.read_bytes().replace(b"needle", b"poodle", 1))
    job = await rack.claimed()
    with pytest.raises(httpx.RemoteProtocolError):
        await rack.say("GET", job, "archive")
    ended = await site.repository.get_job(job["id"])
    assert ended is not None
    assert (ended.status, ended.reason) == (JobStatus.FAILED, Reason.BAD_ARCHIVE)
    assert ended.message is not None
    assert "data.txt" in ended.message


async def test_bytes_that_come_behind_the_verdict_are_not_written(
    site: Site, ada: Account, rack: Agent
) -> None:
    await site.queue_job(ada, options=GPU)
    job = await rack.started()
    await rack.write(job, 0, b"good")

    async def slow_body() -> AsyncGenerator[bytes, None]:
        yield b"ev"
        verdict = {"reason": None, "exit_code": 0, "message": None, **sealed(b"good")}
        assert (await rack.say("PATCH", job, "complete", json=verdict)).status_code == 204
        yield b"il"

    place = {"Content-Range": "bytes 0-3/*"}
    late = await rack.say("PUT", job, "log", headers=place, content=slow_body())
    assert (late.status_code, late.json()["code"]) == (409, "stale_claim")
    assert site.stores.logs.read(job["id"], 1, 0, 99) == b"good"


async def test_what_an_agents_bodies_take_in_memory_is_bounded(
    site: Site, ada: Account, rack: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.queue_job(ada, options=GPU)
    job = await rack.started()
    monkeypatch.setattr("ci_server.bodies._HELD_PER_USER", 1000)
    for answer in (
        await rack.write(job, 0, b"x" * 2000),
        await rack.say("PUT", job, "events", content=b"x" * 2000),
    ):
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
    assert (await rack.write(job, 0, b"x" * 900)).json() == {"size": 900}


async def test_what_one_agent_sends_slowly_keeps_no_other_of_its_user_from_a_heartbeat(
    site: Site, url: str, rack: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ci_server.bodies._HELD_PER_USER", 1000)
    user = (await site.account("rack")).user
    async with registered(url, await site.issue_key(user, frozenset({Scope.AGENT})), pool="cpu") as other:
        beats = list[int]()

        async def slow_body() -> AsyncGenerator[bytes, None]:
            yield b" " * 990
            beats.append((await other.ask("POST", "heartbeat", json={"note": "x" * 100})).status_code)
            yield b"{}"

        headers = {"Content-Type": "application/json"}
        own = await rack.ask_with(headers, "POST", "heartbeat", content=slow_body())
    assert (beats, own.status_code) == ([200], 200)


@pytest.mark.parametrize("what", ["heartbeat", "complete"])
async def test_a_key_that_is_revoked_while_it_speaks_says_nothing_any_more(
    site: Site, ada: Account, rack: Agent, what: str
) -> None:
    await site.queue_job(ada, options=GPU)
    job = await rack.started()
    said = {"note": "late"} if what == "heartbeat" else {"reason": None, "exit_code": 0, "message": None}
    text = json.dumps(said).encode()

    async def slow_body() -> AsyncGenerator[bytes, None]:
        yield text[:-1]
        await site.repository.revoke_api_key(rack.id, utcnow())
        yield text[-1:]

    headers = {"Content-Type": "application/json"}
    if what == "heartbeat":
        answer = await rack.ask_with(headers, "POST", "heartbeat", content=slow_body())
    else:
        answer = await rack.say("PATCH", job, "complete", headers=headers, content=slow_body())
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert (await job_of(site, job)).status is JobStatus.RUNNING
    [agent] = await site.repository.list_agents()
    assert agent.note is None


async def test_a_verdict_waits_for_the_log_that_it_names(site: Site, ada: Account, rack: Agent) -> None:
    await site.queue_job(ada, options=GPU)
    job = await rack.started()
    await rack.write(job, 0, b"hello")
    verdict = {"reason": "tests_failed", "exit_code": 1, "message": None}
    early = await rack.say("PATCH", job, "complete", json={**verdict, **sealed(b"hello world")})
    assert (early.status_code, early.json()["size"]) == (416, 5)
    other = await rack.say("PATCH", job, "complete", json={**verdict, **sealed(b"hullo")})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert (await job_of(site, job)).status is JobStatus.RUNNING
    assert (await rack.say("PATCH", job, "complete", json={**verdict, **sealed(b"hello")})).status_code == 204
    assert (await job_of(site, job)).reason is Reason.TESTS_FAILED


async def test_an_attempt_is_given_back_and_a_stop_stands(site: Site, ada: Account, rack: Agent) -> None:
    await site.queue_job(ada, options=GPU)
    job = await rack.started()
    stop = await rack.say("PATCH", job, "stop", json={"reason": "timeout", "message": "late"})
    again = await rack.say("PATCH", job, "stop", json={"reason": "oom", "message": "no"})
    assert stop.json() == again.json()
    assert (stop.json()["reason"], stop.json()["message"]) == ("timeout", "late")
    judged = await rack.say("PATCH", job, "release", json={"reason": "tests_failed", "message": ""})
    assert (judged.status_code, judged.json()["code"]) == (422, "invalid_request")
    released = await rack.say(
        "PATCH", job, "release", json={"reason": "infra", "message": "The engine went."}
    )
    assert released.json() == {"status": "queued"}
    gone = await rack.say("PATCH", job, "begin")
    assert (gone.status_code, gone.json()["code"]) == (409, "stale_claim")


EVERYTHING: list[tuple[str, str, dict[str, Any]]] = [
    ("PATCH", "start", {"json": {"container_id": "c", "image_id": "i"}}),
    ("PATCH", "begin", {}),
    ("PATCH", "stop", {"json": {"reason": "timeout"}}),
    ("PATCH", "complete", {"json": {"reason": None}}),
    ("PATCH", "release", {"json": {"reason": "infra", "message": ""}}),
    ("GET", "archive", {}),
    ("PUT", "log", {"headers": {"Content-Range": "bytes 0-0/*"}, "content": b"x"}),
    ("PUT", "events", {"content": b"{}\n"}),
]


async def test_what_another_holds_looks_as_what_is_not_there(
    site: Site, ada: Account, url: str, rack: Agent, subtests: pytest.Subtests
) -> None:
    """Another agent's attempt, even with its token; a user's queued job; no job; a token of no more worth."""
    await site.queue_job(ada, options=GPU)
    theirs = await rack.started()
    queued = await site.queue_job(ada, options=GPU)
    account = await site.account("spy", frozenset({Scope.AGENT}))
    before = await job_of(site, theirs)
    async with registered(url, account) as spy:
        seen = {
            "another agent's": theirs,
            "guessed": {**theirs, "claim_token": "0" * 32},
            "queued": {"id": queued.id, "claim_token": "0" * 32},
            "absent": {"id": "nobody", "claim_token": "0" * 32},
        }
        for method, what, options in EVERYTHING:
            with subtests.test(what):
                answers = [await spy.say(method, job, what, **dict(options)) for job in seen.values()]
                assert {(one.status_code, one.json()["code"]) for one in answers} == {(409, "stale_claim")}
                said = {
                    one.json()["detail"].replace(job["id"], "…")
                    for one, job in zip(answers, seen.values(), strict=True)
                }
                assert len(said) == 1
        assert (await spy.ask("GET", "attempts")).json()["attempts"] == []
        assert (await spy.ask("POST", "ended", json={"containers": [f"c-{theirs['id']}"]})).json() == {
            "ended": {}
        }
        assert (await spy.ask("GET", "images")).json() == {"images": {}}
        impostor = Agent(spy.http, rack.id, rack.epoch)
        assert (await impostor.ask("POST", "heartbeat", json={})).status_code == 404
    assert await job_of(site, theirs) == before
    assert site.stores.logs.size(theirs["id"], 1) == 0


async def test_an_agents_key_opens_no_users_route(site: Site, ada: Account, url: str, rack: Agent) -> None:
    job = await site.queue_job(ada)
    for path in ("/jobs", f"/jobs/{job.id}", f"/jobs/{job.id}/log", "/api/queue/jobs", "/api/agents"):
        assert (await rack.http.get(path)).status_code == 403


async def test_what_an_agent_is_told_of_a_job_holds_nobodys_key_or_address(
    site: Site, ada: Account, rack: Agent
) -> None:
    job = await site.queue_job(ada, options=GPU)
    claimed = await rack.claimed()
    assert claimed["owner"] == job.user_id
    text = str(claimed)
    for secret in (ada.secret, ada.key.prefix, "ada@example.org", job.archive_ref):
        assert secret not in text


async def test_who_registers_anew_takes_over_what_the_key_holds(
    site: Site, ada: Account, url: str, rack: Agent
) -> None:
    await site.queue_job(ada, options=GPU)
    job = await rack.started()
    successor = Agent(rack.http, rack.id, rack.epoch + 1)
    await rack.http.post("/api/agents/register", json=PROFILE)
    for answer in (
        await rack.say("PATCH", job, "begin"),
        await rack.ask("GET", "attempts"),
        await rack.claim(),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "stale_claim")
    assert (await successor.say("PATCH", job, "begin")).json()["code"] == "stale_claim"
    [inherited] = (await successor.ask("GET", "attempts")).json()["attempts"]
    assert (inherited["id"], inherited["attempt"]) == (job["id"], 1)
    assert inherited["container_id"] == f"c-{job['id']}"
    assert (await successor.say("PATCH", inherited, "begin")).status_code == 204


async def test_logs_that_are_sealed_for_long_hold_up_none_that_grows(
    site: Site, url: str, ada: Account, adas: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few are read whole at the same time, and threads are left for those who write and follow others."""
    sealing, go_on, real = list[FileLogWriter](), threading.Event(), FileLogWriter.seal

    def slow(writer: FileLogWriter, *, truncated: bool = False) -> LogSeal:
        sealing.append(writer)
        assert go_on.wait(120)
        return real(writer, truncated=truncated)

    monkeypatch.setattr(FileLogWriter, "seal", slow)
    for _ in range(5):
        await site.queue_job(ada, options=GPU)
    async with registered(url, await site.account("rack", frozenset({Scope.AGENT})), slots=5) as rack:
        *ending, live = [await rack.started() for _ in range(5)]
        for job in ending:
            assert (await rack.write(job, 0, b"hello")).status_code == 200
        said = {"reason": None, "exit_code": 0, "message": "", **sealed(b"hello")}
        ends = [asyncio.create_task(rack.say("PATCH", job, "complete", json=said)) for job in ending]
        await eventually(lambda: _are(sealing, 2))
        for offset in range(0, 50, 5):
            assert (await rack.write(live, offset, b"hello")).status_code == 200
        assert (await adas.get(f"/jobs/{live['id']}/log")).content == b"hello" * 10
        assert len(sealing) == 2
        assert not any(one.done() for one in ends)
        go_on.set()
        assert {(await one).status_code for one in ends} == {204}
    assert [(await job_of(site, job)).log_size for job in ending] == [5] * 4


async def _are(found: Sequence[object], count: int) -> bool:
    return len(found) == count


async def test_a_claim_waits_for_a_job_and_gives_up(site: Site, ada: Account, rack: Agent) -> None:
    assert (await rack.claim()).status_code == 204
    await site.queue_job(ada)  # of another pool
    assert (await rack.claim(wait=0.05)).status_code == 204
    await site.queue_job(ada, options=GPU)
    claimed = (await rack.claim(slots=9, wait=9)).json()
    assert claimed["job"] == claimed["jobs"][0]
    assert claimed["job"]["claimed_lease_expires_at"] > claimed["job"]["claimed_at"]


async def test_a_claim_that_waits_ends_with_its_key(site: Site, ada: Account, rack: Agent) -> None:
    async def revoked() -> None:
        await site.repository.revoke_api_key(rack.id, utcnow())
        await site.queue_job(ada, options=GPU)

    answer, _ = await asyncio.gather(rack.claim(wait=9), revoked())
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert await site.repository.open_attempts(rack.id) == []


async def test_an_agent_whose_key_is_revoked_while_it_registers_is_not_there(site: Site, rack: Agent) -> None:
    async def slow_body() -> AsyncGenerator[bytes, None]:
        yield json.dumps(PROFILE).encode()[:-1]
        await site.repository.set_agent_state(rack.id, AgentState.REMOVED, utcnow())
        yield b"}"

    headers = {"Content-Type": "application/json"}
    answer = await rack.http.post("/api/agents/register", content=slow_body(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    [agent] = await site.repository.list_agents()
    assert agent.state is AgentState.REMOVED


async def test_nothing_is_claimed_while_the_servers_disk_is_full(tmp_path: Path) -> None:
    async with open_site(tmp_path, submit_min_free_bytes=2**60) as site:
        await site.queue_job(await site.account("ada"), options=GPU)
        account = await site.account("rack", frozenset({Scope.AGENT}))
        with serving(site.settings) as url:
            async with registered(url, account) as rack:
                answer = await rack.claim()
                assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
                assert await site.repository.open_attempts(rack.id) == []


@pytest.mark.parametrize("what", ["claims", "news"])
async def test_few_requests_of_one_key_wait_at_the_same_time(site: Site, rack: Agent, what: str) -> None:
    """And those that do are answered: nothing stays taken."""

    async def wait() -> httpx.Response:
        if what == "claims":
            return await rack.claim(wait=20)
        return await rack.ask("GET", "news", params={"wait": 20, "known": known})

    known = (await rack.ask("GET", "news")).json()["news"]
    waiting = [asyncio.create_task(wait()) for _ in range(9)]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    [refused] = [task.result() for task in done]
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert int(refused.headers["retry-after"]) > 0
    assert (await rack.ask("POST", "heartbeat", json={})).status_code == 200
    await site.repository.set_agent_state(rack.id, AgentState.DRAINING, utcnow())  # which nobody waits in
    answers = {(await task).status_code for task in waiting if task not in done}
    assert answers == {204 if what == "claims" else 200}
    assert (await rack.ask("GET", "news")).status_code == 200


async def test_who_waits_hears_that_the_key_registered_anew(rack: Agent) -> None:
    known = (await rack.ask("GET", "news")).json()["news"]
    waiting = [
        asyncio.create_task(rack.ask("GET", "news", params={"wait": 25, "known": known})),
        asyncio.create_task(rack.claim(wait=25)),
    ]
    await rack.http.post("/api/agents/register", json=PROFILE)
    assert {(await one).json()["code"] for one in waiting} == {"stale_claim"}


async def test_news_come_when_there_is_something_to_do(site: Site, ada: Account, rack: Agent) -> None:
    async def news(known: str | None = None, wait: float = 0) -> str:
        params = {"wait": wait, **({"known": known} if known else {})}
        return str((await rack.ask("GET", "news", params=params)).json()["news"])

    nothing = await news()
    assert await news(nothing, 0.05) == nothing
    await site.queue_job(ada)
    assert await news(nothing) == nothing  # another pool's
    await site.queue_job(ada, options=GPU)
    claimable = await news(nothing, 9)
    assert claimable != nothing
    job = await rack.started()
    running = await news(claimable, 9)
    await site.repository.request_cancel(job["id"], None, "ada", utcnow())
    assert await news(running, 9) != running


async def test_a_heartbeat_says_what_to_do(
    site: Site, ada: Account, rack: Agent, operator: httpx.AsyncClient
) -> None:
    await site.queue_job(ada, options=GPU)
    job = await rack.started()
    assert (await rack.ask("POST", "heartbeat", json={"disk_free": 5})).json() == {
        "state": "active",
        "cancel": [],
    }
    await site.repository.request_cancel(job["id"], None, "ada", utcnow())
    answer = await operator.patch(f"/api/agents/{rack.id}/status", json={"status": "draining"})
    assert (answer.json()["status"], answer.json()["disk_free"]) == ("DRAINING", 5)
    told = (await rack.ask("POST", "heartbeat", json={})).json()
    assert told == {"state": "draining", "cancel": [job["id"]]}
    assert (await rack.ask("POST", "deregister")).json()["code"] == "conflict"
    await operator.patch(f"/api/agents/{rack.id}/status", json={"status": "removed"})
    assert (await rack.ask("POST", "heartbeat", json={})).status_code == 401


async def test_operators_see_agents_and_pools(
    site: Site, ada: Account, rack: Agent, operator: httpx.AsyncClient
) -> None:
    [agent] = (await operator.get("/api/agents")).json()
    assert {agent[name] for name in ("name", "pool", "status")} == {"rack-1", "gpu", "HEALTHY"}
    assert (await operator.get("/api/agents/healthy")).json() == [agent]
    assert (await operator.get(f"/api/agents/{rack.id}")).json()["jobs_completed"] == 0
    [pool] = (await operator.get("/api/agents/pools")).json()
    assert pool == {
        "pool": "gpu",
        "agents": 1,
        "healthy": 1,
        "slots": 2,
        "jobs_running": 0,
        "labels": ["cuda"],
        "max_running": None,
    }
    assert (await operator.get("/api/agents/pools/gpu")).json() == pool
    assert (await operator.get("/api/agents/pools/none")).json()["code"] == "not_found"
    assert (await rack.ask("POST", "deregister")).status_code == 204
    assert (await operator.get("/api/agents")).json() == []


async def test_a_pool_runs_no_more_jobs_than_its_limit(
    site: Site, ada: Account, adas: httpx.AsyncClient, rack: Agent, operator: httpx.AsyncClient
) -> None:
    async def scale(limit: int | None, pool: str = "gpu") -> httpx.Response:
        return await operator.post(f"/api/agents/pools/{pool}/scale", json={"max_running": limit})

    assert (await scale(1)).json() == (await operator.get("/api/agents/pools/gpu")).json()
    jobs = [await site.queue_job(ada, options=GPU) for _ in range(2)]
    [claimed] = (await rack.claim(slots=2)).json()["jobs"]
    assert (await rack.claim(slots=2)).status_code == 204
    said = "1 of the 1 jobs are running that pool gpu may run"
    [waiting] = (await adas.get("/api/queue/jobs")).json()
    assert (waiting["job_id"], waiting["waiting_for"]) == (jobs[1].id, said)
    assert said in str(await waiting_for(site.repository, jobs[1], utcnow()))
    answer, _ = await asyncio.gather(rack.claim(wait=9), scale(None))
    assert (claimed["id"], answer.json()["job"]["id"]) == (jobs[0].id, jobs[1].id)


async def test_a_pool_may_be_limited_before_it_has_an_agent(
    operator: httpx.AsyncClient, adas: httpx.AsyncClient
) -> None:
    path = "/api/agents/pools/arm"
    assert (await operator.post(f"{path}/scale", json={"max_running": 2})).json()["agents"] == 0
    assert [pool["pool"] for pool in (await operator.get("/api/agents/pools")).json()] == ["arm"]
    assert (await operator.post(f"{path}/scale", json={"max_running": None})).json()["max_running"] is None
    assert (await operator.get(path)).json()["code"] == "not_found"
    for wrong in ({}, {"max_running": 0}, {"max_running": "2"}):
        assert (await operator.post(f"{path}/scale", json=wrong)).json()["code"] == "invalid_request"
    assert (await adas.post(f"{path}/scale", json={"max_running": 2})).status_code == 403


async def test_an_operator_requeues_what_a_lost_agent_holds(
    site: Site, ada: Account, rack: Agent, operator: httpx.AsyncClient
) -> None:
    await site.queue_job(ada, options=GPU)
    job = await rack.started()
    path = "/api/queue/maintenance/requeue-expired"
    assert (await operator.post(path)).json() == {"requeued": []}
    agent = await site.repository.find_agent(rack.id)
    assert agent is not None
    long_ago = agent.registered_at.replace(year=agent.registered_at.year - 1)
    await site.repository.heartbeat_agent(agent.lease, None, None, long_ago)
    assert (await operator.post(path)).json() == {"requeued": [job["id"]]}
    assert (await rack.say("PATCH", job, "begin")).json()["code"] == "stale_claim"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"name": ""},
        {"name": "a b"},
        {"name": "a", "slots": 0},
        {"name": "a", "pool": "A"},
        {"name": 1},
        {"name": "a", "version": "1\0"},
    ],
)
async def test_an_agent_that_says_nonsense_is_not_registered(
    site: Site, url: str, wrong: dict[str, Any]
) -> None:
    async with client(url, await site.account("rack", frozenset({Scope.AGENT}))) as http:
        answer = await http.post("/api/agents/register", json=wrong)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert await site.repository.list_agents() == []


async def test_no_text_with_a_nul_is_taken_of_an_agent(site: Site, ada: Account, rack: Agent) -> None:
    """SQLite would hold it, and PostgreSQL not."""
    await site.queue_job(ada, options=GPU)
    job, text = await rack.started(), "line\nbut\0"
    answers = [
        await rack.ask("POST", "heartbeat", json={"note": text}),
        await rack.say("PATCH", job, "stop", json={"reason": "timeout", "message": text}),
        await rack.say("PATCH", job, "complete", json={"reason": None, "exit_code": 0, "message": text}),
        await rack.say("PATCH", job, "release", json={"reason": "infra", "message": text}),
    ]
    assert [(one.status_code, one.json()["code"]) for one in answers] == [(422, "invalid_request")] * 4
    lines = {"reason": None, "exit_code": 0, "message": "two\nlines"}
    assert (await rack.say("PATCH", job, "complete", json=lines)).status_code == 204
