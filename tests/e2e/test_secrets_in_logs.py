"""A whole run with everything logged, and every way in which a key can go where it does not belong."""

import json
from pathlib import Path

import httpx

from ci_common.api_keys import generate_api_key
from tests.support.installation import FIXTURES, Installation, find_key
from tests.support.plain_http import NO_TLS
from tests.support.raw_http import connect, head, rest_of
from tests.support.secrets import assert_no_secrets


def test_no_log_of_a_full_run_holds_a_key(installation: Installation, tmp_path: Path) -> None:
    system = installation
    system.start_controller(CI_LOG_LEVEL="debug")
    server = system.start_server(CI_LOG_LEVEL="debug")
    system.wait_ready(server)
    done = system.ci(server, "submit", "test", project=FIXTURES / "passing")
    assert done.code == 0, done.err

    key, wrong, revoked = system.key(), generate_api_key(), _revoked_key(system)
    with httpx.Client(base_url=server.url, timeout=20, verify=NO_TLS) as http:
        for secret in (key, wrong, revoked):
            for headers in (
                {"Authorization": f"Bearer {secret}"},
                {"Authorization": f"Basic {secret}"},
                {"Authorization": secret},
                {"X-Api-Key": secret, "Cookie": f"key={secret}"},
                {"X-Request-ID": secret, "User-Agent": secret, "Referer": f"http://x/?key={secret}"},
                {"Authorization": f"Bearer {key}", "Idempotency-Key": secret, "Last-Event-ID": secret},
            ):
                for path in ("/jobs", f"/jobs/{secret}", f"/{secret}?key={secret}", f"/jobs?cursor={secret}"):
                    http.get(path, headers=headers)
            form = {
                "file": (secret, secret.encode()),
                "pytest_args": (None, secret),
                "timeout": (None, secret),
            }
            http.post("/submit-async", headers={"Authorization": f"Bearer {key}"}, files=form)
            with connect(server.url) as connection:
                connection.sendall(head("GET", f"/ {secret}", Authorization=f"Bearer {secret}"))
                rest_of(connection)
    server.terminate()
    log = server.log.read_text()
    assert f'"path": "/jobs/{wrong[:11]}_…"' in log.replace("\\u2026", "…"), (
        "the line is there, without the secret"
    )
    assert_no_secrets(system, [wrong, revoked])


def _revoked_key(system: Installation) -> str:
    system.key()
    issued = system.admin("key", "create", "--email", "ada@example.org", "--name", "old", "--json")
    secret = find_key(json.loads(issued.out))
    revoked = system.admin("key", "revoke", secret[:11])
    assert revoked.code == 0, revoked.err
    return secret
