"""One shape for every error, on every route; and OpenAPI says so for each of them."""

import ast
import asyncio
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

import ci_server
from ci_common.errors import InvalidRequest, Unavailable, errors_by_code
from ci_common.service_log import configure_logging
from ci_persistence.log_store import disk_full_as_storage_full
from ci_server.agent_schemas import (
    AgentModel,
    ClaimedModel,
    EndedModel,
    HeldModel,
    ImagesModel,
    InstructionsModel,
    LogSizeModel,
    NewsModel,
    PoolModel,
    RegisteredModel,
    ReleasedModel,
    RequeuedModel,
    StopModel,
)
from ci_server.app import create_app
from ci_server.problems import install_handlers, problem_response
from ci_server.request_context import RequestContext
from ci_server.schemas import (
    CapacityModel,
    EnqueuedModel,
    HealthModel,
    InfoModel,
    JobEventModel,
    JobInQueueModel,
    JobModel,
    MissingModel,
    MomentModel,
    QueuedJobModel,
    QueueStatsModel,
    ReadyModel,
    StoredModel,
    SubmittedModel,
)
from tests.support.server import Site, client, serving

MEMBERS = {"type", "title", "status", "detail", "code", "request_id"}
MODELS: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (
        AgentModel,
        ClaimedModel,
        EndedModel,
        HeldModel,
        ImagesModel,
        InstructionsModel,
        LogSizeModel,
        NewsModel,
        PoolModel,
        RegisteredModel,
        ReleasedModel,
        RequeuedModel,
        StopModel,
        CapacityModel,
        EnqueuedModel,
        HealthModel,
        InfoModel,
        JobEventModel,
        JobInQueueModel,
        JobModel,
        MissingModel,
        MomentModel,
        QueuedJobModel,
        QueueStatsModel,
        ReadyModel,
        StoredModel,
        SubmittedModel,
    )
}
KEYLESS = {"/health", "/ready"}


def routes() -> list[tuple[str, str]]:
    """Return every (method, path) of the API."""
    return [(method, path) for path, operations in openapi()["paths"].items() for method in operations]


def is_for_agents(method: str, path: str) -> bool:
    """Tell whether agents use it, or those who look after them."""
    return openapi()["paths"][path][method]["tags"] == ["agents"]


@cache
def openapi() -> dict[str, Any]:
    return create_app().openapi()


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document.keys() >= MEMBERS
    assert (document["status"], document["code"]) == (status, code)
    assert errors_by_code()[code].http_status == status
    assert document["type"] == f"urn:ci:error:{code}"
    assert document["request_id"] == response.headers["x-request-id"] != ""
    assert document["detail"]
    return document


def test_the_routes_are_those_of_the_documents() -> None:
    assert {f"{method.upper()} {path}" for method, path in routes()} == {
        "POST /submit",
        "POST /submit-stream",
        "POST /submit-async",
        "POST /submit-manifest",
        "POST /submit-tree",
        "POST /blobs/missing",
        "PUT /blobs",
        "GET /capacity",
        "GET /jobs",
        "GET /jobs/{job_id}",
        "DELETE /jobs/{job_id}",
        "GET /jobs/{job_id}/events",
        "GET /jobs/{job_id}/timeline",
        "GET /jobs/{job_id}/stream",
        "GET /jobs/{job_id}/log",
        "HEAD /jobs/{job_id}/log",
        "GET /api/queue/jobs",
        "POST /api/queue/jobs",
        "GET /api/queue/jobs/{job_id}",
        "DELETE /api/queue/jobs/{job_id}",
        "GET /api/queue/stats",
        "PATCH /api/queue/jobs/{job_id}/priority",
        "POST /api/agents/register",
        "GET /api/agents",
        "GET /api/agents/healthy",
        "GET /api/agents/pools",
        "GET /api/agents/pools/{pool}",
        "POST /api/agents/pools/{pool}/scale",
        "GET /api/agents/{agent_id}",
        "PATCH /api/agents/{agent_id}/status",
        "POST /api/agents/{agent_id}/heartbeat",
        "POST /api/agents/{agent_id}/deregister",
        "GET /api/agents/{agent_id}/attempts",
        "GET /api/agents/{agent_id}/news",
        "POST /api/agents/{agent_id}/ended",
        "GET /api/agents/{agent_id}/images",
        "POST /api/queue/claim",
        "PATCH /api/queue/jobs/{job_id}/start",
        "PATCH /api/queue/jobs/{job_id}/begin",
        "PATCH /api/queue/jobs/{job_id}/stop",
        "PATCH /api/queue/jobs/{job_id}/complete",
        "PATCH /api/queue/jobs/{job_id}/release",
        "GET /api/queue/jobs/{job_id}/archive",
        "PUT /api/queue/jobs/{job_id}/log",
        "PUT /api/queue/jobs/{job_id}/events",
        "POST /api/queue/maintenance/requeue-expired",
        "GET /health",
        "GET /ready",
        "GET /info",
    }


async def test_every_route_refuses_in_the_one_shape(site: Site, subtests: pytest.Subtests) -> None:
    ada = await site.account("ada")
    with serving(site.settings) as url:
        async with client(url) as http:
            for method, path in routes():
                if path in KEYLESS or method == "head":
                    continue
                with subtests.test(f"{method} {path}"):
                    target = path.format(job_id="nobody", agent_id="nobody", pool="nobody")
                    assert_problem(await http.request(method, target), 401, "unauthorized")
                    if is_for_agents(method, path):
                        answer = await http.request(method, target, headers=ada.headers)
                        assert_problem(answer, 403, "forbidden")
                    elif "{job_id}" in path:
                        body = {"priority": "low"} if method == "patch" else None
                        answer = await http.request(method, target, headers=ada.headers, json=body)
                        assert_problem(answer, 404, "job_not_found")
                    if path.startswith("/submit"):
                        answer = await http.request(method, target, headers=ada.headers)
                        assert_problem(answer, 422, "invalid_request")
                    refused = await http.request("TRACE", target)
                    assert_problem(refused, 405, "method_not_allowed")
                    assert refused.headers["allow"]
            assert_problem(await http.get("/nothing/here"), 404, "not_found")


async def test_a_wrong_parameter_is_named_but_not_repeated(site: Site) -> None:
    ada = await site.account("ada")
    with serving(site.settings) as url:
        async with client(url, ada) as http:
            document = assert_problem(await http.get("/jobs?limit=hunter2"), 422, "invalid_request")
    assert document["errors"][0]["where"] == "query limit"
    assert "hunter2" not in str(document)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_openapi_describes_every_route_and_each_of_its_errors(subtests: pytest.Subtests) -> None:
    for method, path, operation in operations():
        with subtests.test(f"{method} {path}"):
            assert operation["summary"]
            assert operation["description"]
            assert operation["tags"]
            if path in KEYLESS:
                assert "security" not in operation
                continue
            assert operation["security"] == [{"API key": []}]
            expected = {"401", "403", "500", "503"}
            if operation["tags"] == ["agents"]:
                expected |= {"409", "422"} if "{job_id}" in path else set()
                expected |= {"404", "422"} if "{agent_id}" in path else set()
            else:
                expected |= {"404", "422"} if "{job_id}" in path else set()
            expected |= {"409", "413", "422", "429", "507"} if path.startswith("/submit") else set()
            expected |= {"416", "206"} if (method, path[-4:]) == ("get", "/log") else set()
            expected |= {"416", "429"} if path.endswith("/stream") else set()
            expected |= {"202", "409"} if method == "delete" else set()
            assert operation["responses"].keys() >= expected
            for status, response in operation["responses"].items():
                if status >= "400":
                    [(media_type, content)] = response["content"].items()
                    assert media_type == "application/problem+json"
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                    for code, example in content["examples"].items():
                        assert example["value"]["code"] == code
                        assert errors_by_code()[code].http_status == int(status)
                        assert example["value"]["status"] == int(status)


def test_openapi_describes_the_upload_and_the_shapes() -> None:
    document = openapi()
    schemas = document["components"]["schemas"]
    assert schemas["Problem"]["properties"].keys() >= MEMBERS
    assert "HTTPValidationError" not in schemas
    for route in ("/submit", "/submit-stream", "/submit-async"):
        operation = document["paths"][route]["post"]
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert form["properties"].keys() == {
            "file",
            "pytest_args",
            "timeout",
            "fresh",
            "priority",
            "max_attempts",
            "queue_timeout",
            "pool",
        }
        assert "Idempotency-Key".lower() in [parameter["name"] for parameter in operation["parameters"]]
    for parameter in (
        parameter for _, _, operation in operations() for parameter in operation.get("parameters", [])
    ):
        assert parameter.get("description"), parameter["name"]


def answers() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the name, media type and content of every answer that is no problem document."""
    for method, path, operation in operations():
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type != "application/problem+json":
                    yield f"{method} {path} {status}", media_type, content


def assert_has_shape(example: Any, schema: dict[str, Any]) -> None:
    """Assert that an example is what the models say, its nulls included."""
    is_list = schema.get("type") == "array"
    reference = schema["items"] if is_list else schema
    model = MODELS[reference["$ref"].rpartition("/")[2]]
    for document in example if is_list else [example]:
        model.model_validate(document)
        assert document.keys() == model.model_fields.keys()


def test_every_answer_has_an_example_of_the_shape_it_declares(subtests: pytest.Subtests) -> None:
    examples = openapi()["components"]["examples"]
    shown = list(answers())
    assert len(shown) >= 14
    for name, media_type, content in shown:
        with subtests.test(name):
            if media_type != "application/json":
                assert content["example"]
                continue
            assert content["examples"]
            for example, reference in content["examples"].items():
                assert reference == {"$ref": f"#/components/examples/{example}"}
                assert_has_shape(examples[example]["value"], content["schema"])


def test_no_answer_to_head_has_a_body() -> None:
    responses = openapi()["paths"]["/jobs/{job_id}/log"]["head"]["responses"]
    assert "content" not in responses["200"]
    assert responses["200"]["headers"].keys() >= {"Content-Length", "ETag"}


def test_every_code_that_streams_send_belongs_to_an_error_class() -> None:
    """Problem documents are made of classes only; the codes of `error` events must come from them too."""
    folder = Path(ci_server.__file__).parent
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    codes = [call.args[0] for call in calls if ast.unparse(call.func) == "ErrorEvent"]
    assert len(codes) >= 3
    for code in codes:
        assert isinstance(code, ast.Attribute), ast.unparse(code)
        assert code.attr == "code"
    assert errors_by_code().keys() >= {"log_incomplete", "method_not_allowed"}


def test_openapi_names_no_operation_twice() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names)) == 49


# -- what nobody has a word for ------------------------------------------------------------------------


def broken_app() -> FastAPI:
    """Return an app with our error handling whose routes fail in ways no real one should."""
    app = FastAPI()
    app.add_middleware(RequestContext)
    install_handlers(app)

    async def fail() -> None:
        raise RuntimeError("the secret of the house")

    async def busy() -> None:
        raise Unavailable("come back", retry_after=7, status="not this one", place="queue")

    async def full() -> None:
        with disk_full_as_storage_full(Path("/dev/full")):
            await asyncio.to_thread(_fill_a_disk)

    app.add_api_route("/full", full)
    app.add_api_route("/fail", fail)
    app.add_api_route("/busy", busy)
    return app


def _fill_a_disk() -> None:
    with Path("/dev/full").open("wb", buffering=0) as device:  # the kernel's own full device
        device.write(b"x")


def in_process(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ci")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged as a server logs it, whatever test came before."""
    configure_logging("info", "json")
    return caplog


async def test_the_unexpected_is_a_problem_whose_details_are_in_the_log(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with in_process(broken_app()) as http:
        response = await http.get("/fail", headers={"X-Request-ID": "r-1"})
    document = assert_problem(response, 500, "internal_error")
    assert "r-1" in document["detail"]
    assert "secret" not in response.text
    assert "the secret of the house" in logged.text
    assert "unexpected_error" in logged.text


async def test_an_error_says_when_to_come_back_and_keeps_its_own_members_apart() -> None:
    async with in_process(broken_app()) as http:
        response = await http.get("/busy")
    document = assert_problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "7"
    assert document["place"] == "queue"


async def test_a_full_disk_is_named_in_the_log_and_not_to_the_caller(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with in_process(broken_app()) as http:
        response = await http.get("/full")
    document = assert_problem(response, 507, "storage_full")
    assert document["detail"].startswith("There is no space left on the server's data disk")
    assert "/dev/full" not in response.text
    assert "/dev/full" in logged.text


def test_a_client_error_has_no_retry_after() -> None:
    assert "retry-after" not in problem_response(InvalidRequest("no"), "id").headers
