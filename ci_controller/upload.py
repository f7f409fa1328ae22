"""What an attempt's container is fed: the opened archive and the install plan made from it."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

from ci_common.models import Attempt
from ci_common.stores import Archive
from ci_controller.feed import RunSpec, run_feed
from ci_controller.install_plan import plan_for
from ci_controller.job_source import JobSource
from ci_controller.policy import Policy


class Upload:
    """An archive that was opened and judged; everything here is for worker threads."""

    def __init__(self, archive: Archive, spec: RunSpec, stack: ExitStack) -> None:
        self._archive = archive
        self._spec = spec
        self._stack = stack

    @classmethod
    def open(cls, jobs: JobSource, attempt: Attempt, policy: Policy) -> Self:
        """Return the attempt's upload; raises InvalidArchive or BadProject, with a sentence for its owner."""
        with ExitStack() as stack:
            archive = stack.enter_context(jobs.open_archive(attempt))
            spec = RunSpec(
                install=plan_for(archive),
                pytest_args=attempt.job.options.pytest_args,
                timeout_seconds=policy.timeout_of(attempt.job).total_seconds(),
                idle_timeout_seconds=policy.job_idle_timeout.total_seconds(),
                log_limit=policy.log_limit,
                isolate=policy.network == "none",
                interrupt_grace_seconds=policy.interrupt_grace.total_seconds(),
                terminate_grace_seconds=policy.terminate_grace.total_seconds(),
            )
            return cls(archive, spec, stack.pop_all())

    def chunks(self) -> Iterator[bytes]:
        """Yield what a container that waits for a run is fed."""
        return run_feed(self._spec, self._archive)

    def close(self) -> None:
        """The archive is closed."""
        self._stack.close()
