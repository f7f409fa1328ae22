"""What the doctor says of what a probe reported."""

from typing import Any

import pytest

from ci_controller.doctor import judge_limits, judge_network, probe_spec

SPEC = probe_spec("demo-", "sha256:abc")
GOOD: dict[str, Any] = {
    "uid": 1000,
    "capabilities": 0,
    "no_new_privileges": 1,
    "seccomp": 2,
    "memory": SPEC.memory_bytes,
    "pids": SPEC.pids,
}


def test_limits_that_hold_are_ok() -> None:
    assert judge_limits(GOOD, SPEC).status == "ok"


@pytest.mark.parametrize(
    "bad", [{"uid": 0}, {"capabilities": 8}, {"memory": None}, {"pids": None}, {"seccomp": 0}]
)
def test_a_limit_that_does_not_hold_is_named(bad: dict[str, Any]) -> None:
    check = judge_limits(GOOD | bad, SPEC)
    assert check.status == "failed"
    assert all(name in check.detail for name in bad)
    assert check.fix


@pytest.mark.parametrize(
    ("step", "word"), [("resolve", "name server"), ("connect", "firewall"), ("tls", "CI_CA_BUNDLE")]
)
def test_a_network_that_fails_has_the_fix_for_the_step(step: str, word: str) -> None:
    check = judge_network({"host": "index.test", "step": step, "error": "refused"})
    assert (check.status, "index.test" in check.detail) == ("failed", True)
    assert check.fix is not None
    assert word in check.fix


def test_a_network_that_answers_is_ok() -> None:
    assert judge_network({"host": "index.test", "step": "ok", "error": None}).status == "ok"
