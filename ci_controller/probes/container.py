"""Every probe in a container made like a job's: what `ci-admin doctor --probe` shows."""

from dataclasses import replace
from typing import Final

from ci_common.clock import utcnow
from ci_controller.container_manager import ContainerManager
from ci_controller.engine_judgements import Check
from ci_controller.probe_container import probe_spec, remove_stale_probes, run_program
from ci_controller.probes import report
from ci_controller.probes.all import PROBES
from ci_controller.probes.attempt import Result, sentence
from ci_controller.probes.targets import network_targets

_MEMORY: Final = 256 * 1024**2  # all of which one probe fills
_PROCESSES: Final = 100  # all of which another one starts
_FIX: Final = (
    "Run no code you do not trust here before engine, kernel and firewall are looked at: docs/operations.md."
)


async def try_probes(manager: ContainerManager, image_id: str) -> list[Check]:
    """Return how every probe went: failed is one that succeeded, or that did not answer.

    Raises TimeoutError, EngineUnavailable, ContainerError, ContainerGone.
    """
    await remove_stale_probes(manager, utcnow())
    spec = replace(
        probe_spec(manager.container_name_prefix, image_id, report.COMMAND),
        memory_bytes=_MEMORY,
        pids=_PROCESSES,
    )
    async with network_targets(manager, image_id) as targets:
        ran = await run_program(manager, spec, report.program(targets))
    return judge_probes(ran.output.decode(errors="replace"))


def judge_probes(output: str) -> list[Check]:
    """Return a check for every probe there is, from what a container wrote."""
    results = {result.probe: result for result in report.results(output)}
    silent = "the container ended before it answered"
    return [_judge(results.get(name) or Result(name, True, silent)) for name in PROBES]


def _judge(result: Result) -> Check:
    tries = sentence(result.probe).rstrip(".")
    if not result.tried:
        return Check(result.probe, "not tried", f"{tries}: not tried here ({result.evidence})")
    if not result.succeeded:
        return Check(result.probe, "ok", f"{tries}: not possible ({result.evidence})")
    return Check(result.probe, "failed", f"{tries}: this succeeded ({result.evidence}).", _FIX)
