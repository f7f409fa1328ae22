"""Whatever the description of the API allows, and much it does not: no 5xx, no foreign data, one shape of errors.

The requests are generated from the OpenAPI document, the same ones in every run; `CI_SOAK=1` makes many more.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from ci_server.app import create_app
from tests.support.server import Account, open_site
from tests.support.server_process import answers, server_process
from tests.support.soak import SOAKING

_EXAMPLES = 300 if SOAKING else 3
_SCHEMA: Any = schemathesis.openapi.from_dict(create_app().openapi())
_OPERATIONS: dict[str, Any] = {
    operation.label: operation for operation in (one.ok() for one in _SCHEMA.get_all_operations())
}
_OF_A_JOB = sorted(  # agents have their own
    label for label, one in _OPERATIONS.items() if "{job_id}" in label and "agents" not in (one.tags or ())
)
_WITHOUT_PARAMETERS = ("GET /health", "GET /ready")  # nothing can be wrong with a request for them
_ANYTHING = [
    (label, mode)
    for label in sorted(_OPERATIONS)
    for mode in GenerationMode
    if label not in _WITHOUT_PARAMETERS or mode is GenerationMode.POSITIVE
]
_LONG = 20  # seconds; no answer takes that long here
_fuzzed = settings(
    max_examples=_EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large),
)


@schemathesis.serializer("application/vnd.ci.blobs", "application/vnd.ci.submission")
def _as_it_is(_context: Any, value: Any) -> bytes:  # pyright: ignore[reportUnusedFunction] - registered
    """Anything at all can stand in these bodies."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


@dataclass(frozen=True)
class Target:
    """A server with a finished job of each of two users."""

    url: str
    ada: Account
    bob: Account
    job_of_ada: str
    job_of_bob: str

    def send(self, case: Any, account: Account) -> "Answer":
        """The key is always the account's: were it generated too, every answer would be 401 and show nothing."""
        request = case.as_transport_kwargs(base_url=self.url)
        request["headers"].update(account.headers)
        with requests.request(**request, timeout=_LONG, stream=True) as response:
            # An archive that happens to be good makes a job that nobody runs here: its stream has no end.
            endless = response.headers.get("content-type", "").startswith("text/event-stream")
            pieces = response.iter_content(chunk_size=None)
            content = next(pieces, b"") if endless else b"".join(pieces)
            return Answer(response.status_code, response.headers, content)


@dataclass(frozen=True)
class Answer:
    """What came back; of a stream, how it begins."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    def json(self) -> dict[str, Any]:
        return json.loads(self.content)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with asyncio.Runner() as runner:
        site_context = open_site(tmp_path_factory.mktemp("fuzz"))
        site = runner.run(site_context.__aenter__())
        ada, bob = runner.run(site.account("ada")), runner.run(site.account("bob"))
        of_ada = runner.run(site.finished_job(ada, b"the secret of ada\n"))
        of_bob = runner.run(site.finished_job(bob, b"1 passed\n"))
        with server_process(site, CI_UPLOAD_READ_TIMEOUT="5") as process:
            runner.run(answers(process))
            yield Target(process.url, ada, bob, of_ada.id, of_bob.id)
        runner.run(site_context.__aexit__(None, None, None))


def assert_documented(response: Answer, label: str) -> None:
    """The answer is no failure of the server's, and if it is an error it has the documented shape."""
    status = response.status_code
    assert status < 500, f"{label}: {status} {response.text}"
    assert status != 401, f"{label}: the key did not arrive"
    if status < 400:
        return
    assert response.headers["content-type"] == "application/problem+json", f"{label}: {response.text}"
    if label.startswith("HEAD"):
        return
    problem = response.json()
    assert {"type", "title", "status", "detail", "code", "request_id"} <= set(problem)
    assert problem["status"] == status
    assert problem["type"] == f"urn:ci:error:{problem['code']}"


@pytest.mark.parametrize(("label", "mode"), _ANYTHING, ids=str)
def test_no_request_makes_the_server_fail(target: Target, label: str, mode: GenerationMode) -> None:
    @given(case=_OPERATIONS[label].as_strategy(generation_mode=mode))
    @_fuzzed
    def ask(case: Any) -> None:
        assert_documented(target.send(case, target.bob), label)

    ask()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", _OF_A_JOB)
def test_no_request_of_bob_reaches_the_job_of_ada(target: Target, label: str, mode: GenerationMode) -> None:
    strategy = _OPERATIONS[label].as_strategy(
        generation_mode=mode, path_parameters={"job_id": target.job_of_ada}
    )

    @given(case=strategy)
    @_fuzzed
    def ask(case: Any) -> None:
        response = target.send(case, target.bob)
        assert_documented(response, label)
        assert response.status_code >= 400, f"{label}: {response.text}"
        assert b"secret of ada" not in response.content

    ask()


@pytest.mark.parametrize("label", _OF_A_JOB)
def test_his_own_job_he_may_ask_anything_about(target: Target, label: str) -> None:
    """The control of the test above: the same requests about a job of one's own are answered."""
    strategy = _OPERATIONS[label].as_strategy(path_parameters={"job_id": target.job_of_bob})
    answered: set[int] = set()

    @given(case=strategy)
    @_fuzzed
    def ask(case: Any) -> None:
        response = target.send(case, target.bob)
        assert_documented(response, label)
        answered.add(response.status_code)

    ask()
    assert answered & {200, 202, 206, 409}, f"{label}: {answered}"


def test_every_operation_of_the_api_is_asked() -> None:
    assert len(_OPERATIONS) > 10
    assert len(_OF_A_JOB) > 4
