"""What the doctor says of what a probe reported."""

from typing import Any

import pytest

from ci_controller.container_runtime import NetworkState
from ci_controller.container_users import GROUP, USERS
from ci_controller.doctor import judge_disk, judge_fence, judge_limits, judge_network, judge_user, probe_spec
from ci_controller.engine_judgements import UNPROVED

SPEC = probe_spec("demo-", "sha256:abc")
GOOD: dict[str, Any] = {
    "uid": USERS[0],
    "gid": GROUP,
    "capabilities": 0,
    "no_new_privileges": 1,
    "seccomp": 2,
    "memory": SPEC.memory_bytes,
    "pids": SPEC.pids,
}


def test_limits_that_hold_are_ok() -> None:
    assert judge_limits(GOOD, SPEC).status == "ok"


@pytest.mark.parametrize(
    "bad",
    [
        {"uid": 0},
        {"uid": 1000},
        {"gid": 0},
        {"capabilities": 8},
        {"memory": None},
        {"pids": None},
        {"seccomp": 0},
    ],
)
def test_a_limit_that_does_not_hold_is_named(bad: dict[str, Any]) -> None:
    check = judge_limits(GOOD | bad, SPEC)
    assert check.status == "failed"
    assert all(name in check.detail for name in bad)
    assert check.fix


@pytest.mark.parametrize(
    ("report", "status", "word"),
    [
        ({"name": "ci60706", "closed": []}, "ok", "of its own"),
        ({"name": None, "closed": []}, "warning", "name"),
        ({"name": None, "closed": ["home", "packages"]}, "warning", "home and packages"),
    ],
)
def test_an_image_is_judged_by_what_it_lets_the_jobs_users_do(
    report: dict[str, Any], status: str, word: str
) -> None:
    check = judge_user(report)
    assert (check.status, word in check.detail) == (status, True)
    assert status == "ok" or check.fix


@pytest.mark.parametrize(
    ("step", "word"), [("resolve", "name server"), ("connect", "firewall"), ("tls", "CI_CA_BUNDLE")]
)
def test_a_network_that_fails_has_the_fix_for_the_step(step: str, word: str) -> None:
    check = judge_network({"host": "index.test", "step": step, "error": "refused"})
    assert (check.status, "index.test" in check.detail) == ("failed", True)
    assert check.fix is not None
    assert word in check.fix


@pytest.mark.parametrize(
    ("state", "status", "word"),
    [
        (NetworkState(families=("IPv4", "IPv6")), "ok", "IPv4 and IPv6"),
        (NetworkState(broken=("IPv4: INPUT does not lead to our rules first",)), "failed", "INPUT"),
        (NetworkState(trouble="no iptables"), "failed", "no iptables"),
        (NetworkState(trouble="jobs run UNGUARDED", accepted=True), "warning", "UNGUARDED"),
    ],
)
def test_the_fence_is_judged(state: NetworkState, status: str, word: str) -> None:
    check = judge_fence(state)
    assert (check.status, word in check.detail) == (status, True)
    assert status == "ok" or check.fix


def test_a_network_that_answers_is_ok() -> None:
    assert judge_network({"host": "index.test", "step": "ok", "error": None}).status == "ok"


def test_it_says_whether_the_engine_bounds_a_jobs_disk_or_we_poll() -> None:
    with_quotas, without = judge_disk(has_quotas=True).detail, judge_disk(has_quotas=False).detail
    assert "has quotas" in with_quotas
    assert "polled" in without
    assert (UNPROVED in with_quotas, UNPROVED in without) == (True, False)
