"""The list of system calls: what is on it, and above all what is not. A change here changes how jobs are confined."""

import hashlib
import json
from typing import Any

import pytest

from ci_controller.seccomp import profile

DOCUMENT: dict[str, Any] = json.loads(profile())
RULES: list[dict[str, Any]] = DOCUMENT["syscalls"]

NEVER = [
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
    "keyctl", "add_key", "request_key", "userfaultfd", "bpf", "perf_event_open", "io_uring_setup",
    "io_uring_enter", "io_uring_register", "unshare", "setns", "mount", "umount", "umount2",
    "mount_setattr", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
    "pivot_root", "chroot", "init_module", "finit_module", "delete_module", "kexec_load",
    "kexec_file_load", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd",
    "open_by_handle_at", "name_to_handle_at", "settimeofday", "clock_settime", "clock_adjtime",
    "stime", "syslog", "sethostname", "setdomainname", "iopl", "ioperm", "modify_ldt", "socketcall",
    "ipc", "vm86", "fanotify_init", "lookup_dcookie", "memfd_secret", "migrate_pages", "move_pages",
    "mbind", "set_mempolicy", "vhangup", "nfsservctl", "uselib", "_sysctl",
]  # fmt: skip
ONLY_WITH_THESE_ARGUMENTS = {
    "socket", "clone", "prlimit64", "setpriority", "ioprio_set", "personality",
    "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
}  # fmt: skip
INT = 0xFFFFFFFF


def _rules_for(name: str) -> list[dict[str, Any]]:
    return [rule for rule in RULES if name in rule["names"]]


def test_the_profile_is_frozen() -> None:
    """Whoever changes it looks at docs/adr/0010-seccomp-profile.md and at the probes first."""
    assert hashlib.sha256(profile().encode()).hexdigest() == (
        "c32b78050e15df805a5fe5ce8b8c1c0c0c2f175d6908de0247b0d9367ef02508"
    )


def test_what_is_not_listed_is_refused() -> None:
    assert (DOCUMENT["defaultAction"], DOCUMENT["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    allowed = [rule for rule in RULES if rule["action"] == "SCMP_ACT_ALLOW"]
    assert [rule for rule in RULES if rule not in allowed] == _rules_for("clone3")


def test_only_the_machines_own_calls_are_known() -> None:
    """No 32-bit and no x32 calls: the kernel kills who tries one."""
    assert {arch["architecture"]: arch["subArchitectures"] for arch in DOCUMENT["archMap"]} == {
        "SCMP_ARCH_X86_64": [],
        "SCMP_ARCH_AARCH64": [],
    }


@pytest.mark.parametrize("name", NEVER)
def test_a_dangerous_call_is_on_no_list(name: str) -> None:
    assert _rules_for(name) == []


def test_no_call_is_listed_twice_without_conditions() -> None:
    free = [name for rule in RULES if "args" not in rule for name in rule["names"]]
    assert len(free) == len(set(free))
    assert not ONLY_WITH_THESE_ARGUMENTS & set(free)
    assert {name for rule in RULES if "args" in rule for name in rule["names"]} == ONLY_WITH_THESE_ARGUMENTS


def test_sockets_are_unix_inet_and_routes_only() -> None:
    families = [rule["args"][0]["valueTwo"] for rule in _rules_for("socket")]
    assert families == [1, 2, 10, 16]
    assert _rules_for("socket")[-1]["args"][1] == {
        "index": 2, "value": INT, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(ONLY_WITH_THESE_ARGUMENTS - {"clone"}))
def test_numbers_are_compared_as_the_kernel_reads_them(name: str) -> None:
    """The kernel takes 32 bits of an int; a filter that compares 64 can be fooled by the upper half."""
    conditions = [
        condition
        for rule in _rules_for(name)
        for condition in rule["args"]
        if condition["op"] == "SCMP_CMP_MASKED_EQ"
    ]
    assert conditions
    assert all(condition["value"] == INT for condition in conditions)


def test_limits_of_others_can_be_read_but_not_set() -> None:
    own, reading = (rule["args"] for rule in _rules_for("prlimit64"))
    assert [(condition["index"], condition["valueTwo"]) for condition in own] == [(0, 0)]
    assert reading == [{"index": 2, "value": 0, "op": "SCMP_CMP_EQ"}]  # no new limits
