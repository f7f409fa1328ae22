"""What shows that a probe can succeed at all: the same program where our protection is missing, or why there is none.

Nothing that could harm the host is ever run there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ci_controller.container_users import GROUP, USERS

_USER: Final = f"--user={USERS[0]}:{GROUP}"


class Without(Enum):
    """A container that lacks something of a job's, as arguments of `docker run`."""

    SECCOMP = (
        "the job's user, but the engine filters no system call, process 1 can be opened, no limits, a host's directory",
        _USER,
        "--security-opt=seccomp=unconfined",
        "--memory=2g",
        "--pids-limit=2000",
        "--shm-size=256m",
        "--env=CI_API_KEY=x",
        "--volume=/var/tmp:/host:ro",
    )
    UNPRIVILEGED = (
        "root with the capabilities that a privileged container has, and nothing masked",
        "--user=0:0",
        "--cap-add=SYS_ADMIN",
        "--cap-add=NET_ADMIN",
        "--cap-add=SYS_PTRACE",
        "--cap-add=DAC_READ_SEARCH",
        "--cap-add=SYSLOG",
        "--device=/dev/fuse",
        "--security-opt=seccomp=unconfined",
        "--security-opt=systempaths=unconfined",
        "--volume=/sys:/sys",  # writable, as where a container is privileged; files are opened, never written
        "--memory=512m",
        "--pids-limit=256",
    )
    DEFAULTS = ("the job's user with the engine's defaults", _USER)
    NAMESPACES = (
        "root in the host's namespaces, with the engine's socket",
        "--user=0:0",
        "--pid=host",
        "--network=host",
        "--volume=/var/run/docker.sock:/var/run/docker.sock",
    )
    FIREWALL = (
        "the engine's default network, without rules of ours, and with a name for the host",
        _USER,
        "--network=bridge",
        "--add-host=host.docker.internal:host-gateway",
    )

    @property
    def options(self) -> tuple[str, ...]:
        return self.value[1:]


@dataclass(frozen=True, slots=True)
class NoControl:
    """Why there is nothing to show."""

    because: str


HARMFUL = NoControl("not run: where it succeeds, it would harm the host")
KERNEL = NoControl("the kernel does not allow it anyway: only it may claim to be the sender, or itself")
INIT = NoControl(
    "the kernel does not allow it anyway: process 1 gets no signal from its own namespace that it has no handler for, "
    "and the harness asks who sent the others (tests/integration/test_harness_docker.py)"
)
NO_SUCH_FAMILY = NoControl(
    "this kernel was built without the address family; where it has it, our list refuses it"
)
NO_RESOURCE = NoControl("the host's own root lacks CAP_SYS_RESOURCE on the machines where this is built")

CONTROLS: Mapping[str, Without | NoControl] = {
    "load_bpf": Without.UNPRIVILEGED,
    "open_perf_event": Without.UNPRIVILEGED,
    "look_at_keyring": Without.SECCOMP,
    "add_key": Without.SECCOMP,
    "request_key": Without.SECCOMP,
    "open_userfaultfd": Without.SECCOMP,
    "set_up_io_uring": Without.SECCOMP,
    "trace_own_child": Without.SECCOMP,
    "take_descriptor_of_parent": Without.SECCOMP,
    "compare_with_parent": Without.SECCOMP,
    "read_kernel_log": Without.UNPRIVILEGED,
    "switch_off_address_randomization": Without.SECCOMP,
    "load_module": HARMFUL,
    "load_other_kernel": HARMFUL,
    "reboot": HARMFUL,
    "use_swap_file": HARMFUL,
    "set_clock": HARMFUL,
    "sync_quotas": Without.SECCOMP,
    "open_file_by_handle": Without.UNPRIVILEGED,
    "become_root": Without.UNPRIVILEGED,
    "gain_by_setuid_program": Without.SECCOMP,
    "call_as_32_bit_program": Without.SECCOMP,
    "call_as_x32_program": NoControl(
        "this kernel was built without the x32 interface; our filter kills who tries"
    ),
    "mount_tmpfs": Without.UNPRIVILEGED,
    "mount_the_new_way": Without.UNPRIVILEGED,
    "clone_mount": Without.UNPRIVILEGED,
    "unmount": Without.UNPRIVILEGED,
    "pivot_root": Without.UNPRIVILEGED,
    "chroot": Without.UNPRIVILEGED,
    "unshare_user_namespace": Without.SECCOMP,
    "unshare_mounts": Without.UNPRIVILEGED,
    "clone_into_user_namespace": Without.SECCOMP,
    "clone3_into_user_namespace": Without.SECCOMP,
    "enter_namespace": Without.UNPRIVILEGED,
    "set_host_name": Without.UNPRIVILEGED,
    "open_raw_socket": Without.UNPRIVILEGED,
    "open_packet_socket": Without.UNPRIVILEGED,
    "open_vsock": Without.SECCOMP,
    "open_crypto_socket": NO_SUCH_FAMILY,
    "open_netfilter_socket": Without.SECCOMP,
    "open_bluetooth_socket": NO_SUCH_FAMILY,
    "change_network_interface": Without.UNPRIVILEGED,
    "trigger_sysrq": HARMFUL,
    "write_kernel_settings": Without.UNPRIVILEGED,
    "write_sys": Without.UNPRIVILEGED,
    "write_cgroup": Without.UNPRIVILEGED,
    "read_kernel_memory": NoControl("this kernel has no /proc/kcore; where it has one, the engine masks it"),
    "read_masked_files": Without.UNPRIVILEGED,
    "open_devices": Without.UNPRIVILEGED,
    "make_device": Without.UNPRIVILEGED,
    "reach_engine_socket": Without.NAMESPACES,
    "write_system_files": Without.UNPRIVILEGED,
    "read_shadow_through_link": Without.UNPRIVILEGED,
    "leave_through_root_of_process_1": Without.SECCOMP,
    "find_foreign_mounts": Without.SECCOMP,
    "see_foreign_processes": Without.NAMESPACES,
    "find_secrets_in_environment": Without.SECCOMP,
    "limit_cpu_of_process_1": Without.SECCOMP,
    "limit_cpu_by_wide_number": Without.SECCOMP,
    "write_limits_file": Without.UNPRIVILEGED,
    "renice_process_1": Without.SECCOMP,
    "renice_all_of_user": Without.SECCOMP,
    "idle_process_1": Without.SECCOMP,
    "pin_process_1": Without.SECCOMP,
    "deprioritize_input_of_process_1": Without.SECCOMP,
    "trace_process_1": Without.SECCOMP,
    "read_process_1_remotely": Without.SECCOMP,
    "open_memory_of_process_1": Without.SECCOMP,
    "read_environment_of_process_1": Without.SECCOMP,
    "open_descriptors_of_process_1": Without.SECCOMP,
    "offer_process_1_to_the_kernel": Without.SECCOMP,
    "queue_signal_with_forged_origin": KERNEL,
    "send_signal_by_descriptor_with_forged_origin": KERNEL,
    "kill_process_1_with_every_signal": INIT,
    "queue_every_signal_to_process_1": INIT,
    "have_the_kernel_signal_process_1": INIT,
    "reach_metadata_service": Without.FIREWALL,
    "reach_gateway": Without.FIREWALL,
    "reach_host": Without.FIREWALL,
    "reach_peer": Without.FIREWALL,
    "reach_host_by_name": Without.FIREWALL,
    "reach_abstract_sockets": Without.NAMESPACES,
    "see_interfaces_of_host": Without.NAMESPACES,
    "raise_limits": NO_RESOURCE,
    "dump_core": Without.SECCOMP,
    "open_many_files": Without.SECCOMP,
    "make_huge_file": Without.SECCOMP,
    "fill_shared_memory": Without.SECCOMP,
    "lower_own_oom_score": NO_RESOURCE,
    "fork_bomb": Without.SECCOMP,
    "fill_memory": Without.DEFAULTS,
    "fill_disk": Without.DEFAULTS,
}
