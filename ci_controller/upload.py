"""What an attempt's container is fed: the opened archive, the install plan made from it, and what of that is kept."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import Self

from ci_common.models import Attempt
from ci_common.stores import Archive, ArchiveEntry
from ci_controller.environment import Environment, environment_for
from ci_controller.feed import Build, RunSpec, build_feed, run_feed, tree_feed
from ci_controller.install_plan import plan_for
from ci_controller.job_source import JobSource
from ci_controller.policy import Policy


class Upload:
    """An archive that was opened and judged; everything here is for worker threads."""

    def __init__(self, archive: Archive, spec: RunSpec, owner: str, stack: ExitStack) -> None:
        self._archive = archive
        self._spec = spec
        self._owner = owner
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
            return cls(archive, spec, attempt.job.user_id, stack.pop_all())

    def environment(self, runner_image_id: str) -> Environment:
        """Return what of the installation can be kept; raises InvalidArchive."""
        plan = self._spec.install
        return environment_for(self._archive, plan, runner_image_id=runner_image_id, owner=self._owner)

    def whole(self) -> Iterator[bytes]:
        """Yield a run that installs everything."""
        return run_feed(self._spec, self._archive)

    def with_kept(self, environment: Environment, built_at: datetime) -> Iterator[bytes]:
        """Yield a run for a container that has that environment."""
        spec = replace(self._divided(environment, kept=True), kept_from=f"{built_at:%Y-%m-%d %H:%M} UTC")
        return run_feed(spec, self._archive)

    def build(self, environment: Environment) -> Iterator[bytes]:
        """Yield the beginning of a run that builds that environment; raises InvalidArchive. `tree` is the rest."""
        wanted = set(environment.dependency_files)
        files = [
            (entry.path, self._content(entry)) for entry in self._archive.entries if entry.path in wanted
        ]
        yield from build_feed(self._divided(environment, kept=False), Build(tuple(files)))

    def tree(self) -> Iterator[bytes]:
        """Yield what follows on `build`."""
        return tree_feed(self._archive)

    def close(self) -> None:
        """The archive is closed."""
        self._stack.close()

    def _divided(self, environment: Environment, *, kept: bool) -> RunSpec:
        install = replace(self._spec.install, steps=() if kept else environment.steps)
        return replace(self._spec, install=install, project_steps=environment.project_steps)

    def _content(self, entry: ArchiveEntry) -> bytes:
        with self._archive.open(entry) as reader:
            return reader.read()
