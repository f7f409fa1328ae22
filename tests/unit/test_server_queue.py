"""`/api/queue`: priorities, at a real server."""

from collections.abc import AsyncIterator

import httpx
import pytest

from ci_common.clock import utcnow
from ci_common.job_terms import JobOptions, Priority
from ci_common.models import LimitChange, Scope
from ci_server.waiting import waiting_for
from tests.support.server import Account, Site, client, serving, upload


async def allow(site: Site, account: Account, priority: Priority) -> None:
    assert await site.repository.set_user_limits(account.user.id, LimitChange(priority), utcnow())


@pytest.mark.parametrize(
    ("form", "priority"), [({}, "normal"), ({"priority": "low"}, "low"), ({"priority": ""}, "normal")]
)
async def test_a_submission_names_its_priority(
    site: Site, http: httpx.AsyncClient, form: dict[str, str], priority: str
) -> None:
    answer = await http.post("/submit-async", data=form, files=upload())
    shown = (await http.get(f"/jobs/{answer.json()['job_id']}")).json()
    assert shown["priority"] == priority
    assert (await http.get("/jobs")).json() == [shown]


async def test_what_is_no_priority_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/submit-async", data={"priority": "HIGH"}, files=upload())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "critical, high, normal, low" in answer.json()["detail"]


async def test_a_priority_beyond_what_is_allowed_is_refused_and_leaves_nothing(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    answer = await http.post("/submit-async", data={"priority": "high"}, files=upload())
    assert (answer.status_code, answer.json()["code"]) == (403, "priority_not_allowed")
    assert answer.json()["max_priority"] == "normal"
    assert not [path for path in (site.settings.data_path / "archives").rglob("*") if path.is_file()]
    await allow(site, ada, Priority.HIGH)
    assert (await http.post("/submit-async", data={"priority": "high"}, files=upload())).status_code == 200


async def test_another_priority_is_another_submission(http: httpx.AsyncClient) -> None:
    headers, file = {"Idempotency-Key": "mine"}, upload()
    assert (await http.post("/submit-async", files=file, headers=headers)).status_code == 200
    again = await http.post("/submit-async", data={"priority": "low"}, files=file, headers=headers)
    assert again.json()["code"] == "idempotency_conflict"


async def test_a_submission_names_its_pool(http: httpx.AsyncClient) -> None:
    headers, file = {"Idempotency-Key": "mine"}, upload()
    answer = await http.post("/submit-async", data={"pool": "gpu-2"}, files=file, headers=headers)
    job_id = answer.json()["job_id"]
    assert (await http.get(f"/jobs/{job_id}")).json()["pool"] == "gpu-2"
    [queued] = (await http.get("/api/queue/jobs")).json()
    assert (queued["pool"], queued["waiting_for"]) == ("gpu-2", "no healthy agent in pool gpu-2")
    again = await http.post("/submit-async", files=file, headers=headers)
    assert again.json()["code"] == "idempotency_conflict"
    refused = await http.post("/submit-async", data={"pool": "GPU 2"}, files=file)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


async def test_where_agents_alone_run_jobs_the_default_pool_may_have_nobody(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)
    await site.repository.take_over("controller", utcnow(), runs_jobs=False)
    [queued] = (await http.get("/api/queue/jobs")).json()
    assert queued["waiting_for"] == "no healthy agent in pool default"
    assert "no healthy agent in pool default" in str(await waiting_for(site.repository, job, utcnow()))
    await site.repository.take_over("controller", utcnow())
    [queued] = (await http.get("/api/queue/jobs")).json()
    assert queued["waiting_for"] == "next in the queue, waiting for a free slot"


async def test_an_owner_changes_the_priority_within_what_is_allowed(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)
    path = f"/api/queue/jobs/{job.id}/priority"
    changed = await http.patch(path, json={"priority": "low"})
    assert (changed.status_code, changed.json()["priority"]) == (200, "low")
    assert changed.json() == (await http.get(f"/jobs/{job.id}")).json()
    refused = await http.patch(path, json={"priority": "critical"})
    assert (refused.status_code, refused.json()["code"]) == (403, "priority_not_allowed")
    for body in ({}, {"priority": "urgent"}, {"priority": 1}):
        assert (await http.patch(path, json=body)).status_code == 422
    await http.delete(f"/jobs/{job.id}")
    ended = await http.patch(path, json={"priority": "low"})
    assert (ended.status_code, ended.json()["code"]) == (409, "job_finished")


async def test_an_operator_changes_any_job_and_others_see_none(site: Site, ada: Account) -> None:
    job = await site.queue_job(ada, options=JobOptions(priority=Priority.LOW))
    path, body = f"/api/queue/jobs/{job.id}/priority", {"priority": "critical"}
    bob = await site.account("bob")
    eve = await site.account("eve", frozenset({Scope.ADMIN}))
    with serving(site.settings) as url:
        async with client(url, bob) as http:
            assert (await http.patch(path, json=body)).json()["code"] == "job_not_found"
        async with client(url, eve) as http:
            changed = await http.patch(path, json=body)
    assert changed.json()["priority"] == "critical"
    event = (await site.repository.list_audit())[-1]
    assert (event.actor, event.subject) == ("eve@example.org", job.id)
    assert event.request_id == changed.headers["x-request-id"]


async def test_a_pause_is_told_by_ready_and_to_who_waits(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    await site.hands.arrive()
    job = await site.queue_job(ada)
    assert (await http.get("/ready")).json()["checks"]["queue"] == {"status": "ok", "message": None}
    await site.repository.pause_queue("new disks", utcnow(), "operator (eve)")
    ready = await http.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert "queue: the queue is paused: new disks" in ready.json()["reasons"]
    assert "eve" not in ready.text, "whoever may ask this need not know who works here"
    said = await waiting_for(site.repository, job, utcnow())
    assert said is not None
    assert said.endswith("; the queue is paused: new disks")


async def test_the_queue_shows_ones_own_jobs_and_why_they_wait(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    bob = await site.account("bob")
    await site.finished_job(ada, b"ran")
    assert (await http.get("/api/queue/jobs")).json() == []
    theirs = await site.queue_job(bob)
    low, mine = [
        await site.queue_job(ada, options=JobOptions(priority=Priority(word))) for word in ("low", "normal")
    ]
    shown = (await http.get("/api/queue/jobs")).json()
    assert [(job["job_id"], job["priority"], job["position"]) for job in shown] == [
        (mine.id, "normal", 1),
        (low.id, "low", 2),
    ]
    assert [job["waiting_for"] for job in shown] == ["1 job is before it", "2 jobs are before it"]
    assert all(job["estimated_wait_seconds"] >= 0 for job in shown)
    assert theirs.id not in str(shown)


async def test_a_key_revoked_while_the_body_comes_changes_nothing(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)

    async def revoking() -> AsyncIterator[bytes]:
        yield b'{"priority": '
        await site.repository.revoke_api_key(ada.key.id, utcnow())
        yield b'"low"}'

    path = f"/api/queue/jobs/{job.id}/priority"
    refused = await http.patch(path, content=revoking(), headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert (await site.repository.get_job(job.id)) == job


async def test_who_may_run_no_more_is_told_so(site: Site, ada: Account) -> None:
    await site.hands.arrive()
    await site.repository.set_user_limits(ada.user.id, LimitChange(max_running=1), utcnow())
    await site.queue_job(ada)
    await site.hands.start()
    second = await site.queue_job(ada)
    assert await waiting_for(site.repository, second, utcnow()) == "1 of your 1 jobs are running"


async def test_the_statistics_tell_of_everybodys_jobs(site: Site, ada: Account) -> None:
    eve = await site.account("eve", frozenset({Scope.ADMIN}))
    await site.finished_job(ada, b"ran")
    await site.queue_job(ada)
    with serving(site.settings) as url:
        async with client(url, eve) as http:
            shown = (await http.get("/api/queue/stats?window=60")).json()
            wrong = [(await http.get(f"/api/queue/stats?window={n}")).status_code for n in (0, 604801, "x")]
    assert (shown["window_seconds"], shown["queued"], shown["completed"]) == (60, 1, 1)
    assert (shown["failure_rate"], shown["tests_failed_rate"]) == (0.0, 0.0)
    assert shown["p95_wait_seconds"] >= 0
    assert wrong == [422, 422, 422]


async def test_a_tree_that_is_here_is_queued_again(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    source = await site.queue_job(ada, options=JobOptions(("-x",), 60.0))
    answer = await http.post("/api/queue/jobs", json={"from_job": source.id, "fresh": True})
    assert answer.status_code == 200
    job_id = answer.json()["job_id"]
    assert answer.json() == {"job_id": job_id, "job_ids": [job_id]}
    assert answer.headers["location"] == f"/jobs/{job_id}"
    shown = (await http.get(f"/jobs/{job_id}")).json()
    assert (shown["pytest_args"], shown["timeout"], shown["fresh"]) == (["-x"], 60.0, True)
    queued = (await http.get(f"/api/queue/jobs/{job_id}")).json()
    why = queued["waiting_for"]
    assert queued == {**shown, "position": 1, "waiting_for": why, "estimated_wait_seconds": None}
    assert "no controller" in why


async def test_a_batch_is_queued_whole_or_not_at_all(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    bob = await site.account("bob")
    source, theirs = await site.queue_job(ada), await site.queue_job(bob)
    good = [{"from_job": source.id, "pytest_args": ["-k", str(n)]} for n in range(3)]
    refused: list[tuple[object, int, str]] = [
        ([*good, {"from_job": theirs.id}], 404, "job_not_found"),
        ([*good, {"from_job": source.id, "priority": "high"}], 403, "priority_not_allowed"),
        ([*good, {"from_job": source.id, "timeout": -1}], 422, "invalid_request"),
        ([*good, {}], 422, "invalid_request"),
        ([*good, "text"], 422, "invalid_request"),
        ([*good, {"from_job": "\0"}], 422, "invalid_request"),
        ([], 422, "invalid_request"),
        (good * 34, 422, "invalid_request"),
        ("text", 422, "invalid_request"),
    ]
    for jobs, status, code in refused:
        answer = await http.post("/api/queue/jobs", json={"jobs": jobs})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert len((await http.get("/jobs")).json()) == 1
    ids = (await http.post("/api/queue/jobs", json={"jobs": good})).json()["job_ids"]
    shown = [(await http.get(f"/jobs/{job_id}")).json()["pytest_args"] for job_id in ids]
    assert shown == [["-k", "0"], ["-k", "1"], ["-k", "2"]]


async def test_a_batch_under_one_key_is_one_batch(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    source, headers = await site.queue_job(ada), {"Idempotency-Key": "mine"}
    batch = {"jobs": [{"from_job": source.id}, {"from_job": source.id, "fresh": True}]}
    first, again = [await http.post("/api/queue/jobs", json=batch, headers=headers) for _ in range(2)]
    assert first.json() == again.json()
    other = await http.post("/api/queue/jobs", json={"from_job": source.id}, headers=headers)
    assert other.json()["code"] == "idempotency_conflict"
    assert len((await http.get("/jobs")).json()) == 3


async def test_arguments_as_large_as_earlier_releases_took_are_shown_and_not_repeated(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    large = ("\x01" * 126_000,)
    source = await site.queue_job(ada, options=JobOptions(large))
    refused = [
        await http.post("/api/queue/jobs", json={"from_job": source.id, **said})
        for said in ({}, {"pytest_args": list(large)})
    ]
    assert [(one.status_code, one.json()["code"]) for one in refused] == [(422, "invalid_request")] * 2
    assert all("32768" in one.json()["detail"] for one in refused)
    assert (await http.get(f"/jobs/{source.id}")).json()["pytest_args"] == list(large)
    again = await http.post("/api/queue/jobs", json={"from_job": source.id, "pytest_args": ["-x"]})
    assert again.status_code < 300, again.text


async def test_an_operator_cancels_any_job_and_others_their_own(site: Site, ada: Account) -> None:
    jobs = [await site.queue_job(ada) for _ in range(2)]
    bob, eve = await site.account("bob"), await site.account("eve", frozenset({Scope.ADMIN}))
    with serving(site.settings) as url:
        async with client(url, bob) as http:
            assert (await http.delete(f"/api/queue/jobs/{jobs[0].id}")).status_code == 404
        async with client(url, ada) as http:
            own = await http.delete(f"/api/queue/jobs/{jobs[0].id}")
            place = (await http.get(f"/api/queue/jobs/{jobs[0].id}")).json()
        async with client(url, eve) as http:
            theirs = await http.delete(f"/api/queue/jobs/{jobs[1].id}")
    assert [(one.status_code, one.json()["status"]) for one in (own, theirs)] == [(200, "cancelled")] * 2
    assert theirs.json()["cancel_requested_by"] == "eve@example.org"
    assert (place["position"], place["waiting_for"]) == (None, None)


async def test_a_submission_says_how_often_it_may_be_lost_and_how_long_it_may_wait(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    form = {"max_attempts": "1", "queue_timeout": "90.5"}
    answer = await http.post("/submit-async", data=form, files=upload())
    shown = (await http.get(f"/jobs/{answer.json()['job_id']}")).json()
    assert (shown["max_attempts"], shown["queue_timeout"]) == (1, 90.5)
    assert (await http.get("/jobs")).json() == [shown]
    again = {"from_job": shown["job_id"], "max_attempts": 2, "queue_timeout": None}
    answer = await http.post("/api/queue/jobs", json=again)
    shown = (await http.get(f"/jobs/{answer.json()['job_id']}")).json()
    assert (shown["max_attempts"], shown["queue_timeout"]) == (2, None)


@pytest.mark.parametrize(
    "form",
    [{"max_attempts": word} for word in ("0", "11", "-1", "2.0", "many", "9" * 5000)]
    + [{"queue_timeout": word} for word in ("0", "-1", "nan", "inf", "soon", "2592001")],
)
async def test_such_limits_are_bounded(http: httpx.AsyncClient, form: dict[str, str]) -> None:
    answer = await http.post("/submit-async", data=form, files=upload())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert next(iter(form)) in answer.json()["detail"]


async def test_such_limits_are_bounded_in_json_too(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    source = await site.queue_job(ada)
    wrong = [{"max_attempts": value} for value in (0, 11, 1.5, True, "1")]
    wrong += [{"queue_timeout": value} for value in (0, 1e9, True, "1")]
    for limit in wrong:
        answer = await http.post("/api/queue/jobs", json={"from_job": source.id, **limit})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), limit


async def test_other_limits_are_another_submission(http: httpx.AsyncClient) -> None:
    headers, file = {"Idempotency-Key": "mine"}, upload()
    assert (await http.post("/submit-async", files=file, headers=headers)).status_code == 200
    for form in ({"max_attempts": "1"}, {"queue_timeout": "60"}):
        again = await http.post("/submit-async", data=form, files=file, headers=headers)
        assert again.json()["code"] == "idempotency_conflict"
