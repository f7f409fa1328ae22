"""Carrying out what the rules of retention choose: marks first, then files, then rows.

Each step may be the last one of a process: the next prune finds what is marked and still lies there. Two that
prune at the same time do no more harm than one.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ci_common.crash_points import crash_point
from ci_common.models import ControllerLease, FinishedJob
from ci_common.repository import JobRepository
from ci_common.stores import ArchiveStore, BlobStore, LogStore, StoredItem
from ci_controller.retention import (
    ABANDONED_AFTER,
    Prunable,
    Retention,
    Stored,
    abandoned,
    choose,
    choose_cancels,
    choose_packs,
)

_ROWS_AT_ONCE: Final = 200  # a transaction of milliseconds: nobody waits for a prune


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a prune would take, from one look at database and stores."""

    chosen: tuple[Prunable, ...]  # by the rules, newest first
    leftovers: tuple[
        Prunable, ...
    ]  # files that no job needs: marked ones that still lie there, abandoned ones
    stored: Stored  # what it was made from

    @property
    def everything(self) -> tuple[Prunable, ...]:
        return (*self.chosen, *self.leftovers)


class Pruner:
    """Prunes one installation, for its controller (under its lease) or for an operator (without one)."""

    def __init__(
        self,
        repository: JobRepository,
        logs: LogStore,
        archives: ArchiveStore,
        retention: Retention,
        lease: ControllerLease | None = None,
    ) -> None:
        self._repository = repository
        self._logs = logs
        self._archives = archives
        self._retention = retention
        self._lease = lease

    async def plan(self, now: datetime, *, under_pressure: bool = False) -> PrunePlan:
        """Return what would go, and why; nothing is changed."""
        # The files first: what a job ended meanwhile left is no leftover, and its row comes with the second look.
        archives = await asyncio.to_thread(lambda: list(self._archives.items()))
        logs = await asyncio.to_thread(lambda: list(self._logs.items()))
        jobs = await self._repository.finished_jobs()
        stored = Stored(jobs, _sizes(archives), _sizes(logs))
        retention = self._retention.under_pressure() if under_pressure else self._retention
        leftovers = [*await self._left_archives(archives, jobs), *await self._left_logs(logs, jobs)]
        cancels = choose_cancels(await self._repository.audited_cancels(), retention.cancels, now)
        return PrunePlan((*choose(stored, retention, now), *cancels), tuple(leftovers), stored)

    async def plan_packs(self, now: datetime) -> list[Prunable]:
        """Return what would go of the contents of files; nothing is changed.

        Apart from the plan: what jobs need is known only after their archives were marked.
        """
        return [*await self._chosen_packs(now, under_pressure=False), *await self._left_packs()]

    async def prune(self, now: datetime, *, under_pressure: bool = False) -> list[Prunable]:
        """What the rules choose is gone; returns it. Nothing goes, and nothing is returned, when the lease is stale."""
        await asyncio.to_thread(self._archives.remove_unfinished, ABANDONED_AFTER.total_seconds())
        plan = await self.plan(now, under_pressure=under_pressure)
        archives, logs, jobs = (_names(plan.chosen, kind) for kind in ("archive", "log", "job"))
        if not await self._repository.mark_pruned(self._lease, archives=archives, logs=logs, now=now):
            return []
        crash_point("after_prune_marked")
        await self._delete_files(plan, archives, logs)
        crash_point("after_prune_files")
        for start in range(0, len(jobs), _ROWS_AT_ONCE):
            await self._repository.remove_jobs(self._lease, jobs[start : start + _ROWS_AT_ONCE])
        await self._remove_cancels([int(name) for name in _names(plan.chosen, "cancel")])
        return [*plan.everything, *await self._prune_packs(now, under_pressure=under_pressure)]

    async def _prune_packs(self, now: datetime, *, under_pressure: bool) -> list[Prunable]:
        """Packs that are not to be kept, and files that no row names, are gone and returned."""
        store = self._archives.blobs
        await asyncio.to_thread(store.remove_unfinished, ABANDONED_AFTER.total_seconds())
        chosen = await self._chosen_packs(now, under_pressure=under_pressure)
        # The rows first: what has none is never read, and the next prune finds its file.
        removed = set(await self._repository.remove_packs(self._lease, [one.name for one in chosen]))
        if removed:
            crash_point("after_packs_removed")
        left = [one for one in await self._left_packs() if one.name not in removed]
        gone = [*(one for one in chosen if one.name in removed), *left]
        await asyncio.to_thread(_delete_packs, store, [one.name for one in gone])
        return gone

    async def _chosen_packs(self, now: datetime, *, under_pressure: bool) -> list[Prunable]:
        keep = (self._retention.under_pressure() if under_pressure else self._retention).blobs
        return choose_packs(await self._repository.packs(), keep, now)

    async def _left_packs(self) -> list[Prunable]:
        """Return files of which no row came, or whose row went with a process that died."""
        items = await asyncio.to_thread(lambda: list(self._archives.blobs.items()))
        old = [item for item in items if item.age > ABANDONED_AFTER.total_seconds()]
        known = await self._repository.known_packs([item.name for item in old])
        return [
            Prunable("blobs", item.name, item.size, "no row names it")
            for item in old
            if item.name not in known
        ]

    async def _remove_cancels(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            await self._repository.remove_cancels(self._lease, ids[start : start + _ROWS_AT_ONCE])

    async def _delete_files(self, plan: PrunePlan, archives: Sequence[str], logs: Sequence[str]) -> None:
        refs = {job.id: job.archive_ref for job in plan.stored.jobs}
        # Asked after the marks: an archive goes when no job at all needs it any more.
        in_use = await self._repository.archive_refs_in_use()
        chosen = {refs[job_id] for job_id in archives} | {
            one.name for one in plan.leftovers if one.kind == "upload"
        }
        there = (chosen - in_use) & plan.stored.archives.keys()
        directories = plan.stored.logs.keys() & {*logs, *_names(plan.leftovers, "log")}
        await asyncio.to_thread(_delete_all, self._archives, sorted(there), self._logs, sorted(directories))

    async def _left_archives(
        self, items: Sequence[StoredItem], jobs: Sequence[FinishedJob]
    ) -> list[Prunable]:
        """Return archives whose job was marked by a prune that died, and uploads that no job came of."""
        in_use = await self._repository.archive_refs_in_use()
        marked = {job.archive_ref for job in jobs if job.archive_pruned} - in_use
        late = abandoned({item.name: timedelta(seconds=item.age) for item in items}, in_use)
        return [
            Prunable(
                "upload",
                item.name,
                item.size,
                "its job's archive is pruned" if item.name in marked else "no job came of it",
            )
            for item in items
            if item.name in marked | late
        ]

    async def _left_logs(self, items: Sequence[StoredItem], jobs: Sequence[FinishedJob]) -> list[Prunable]:
        """Return logs that a prune which died had marked, and old ones of jobs that the database does not know."""
        marked = {job.id for job in jobs if job.log_pruned}
        existing = await self._repository.existing_jobs([item.name for item in items])
        limit = self._retention.logs.age.total_seconds()
        unknown = {item.name for item in items if item.name not in existing and item.age > limit}
        return [
            Prunable(
                "log",
                item.name,
                item.size,
                "its job's log is pruned" if item.name in marked else "no such job",
            )
            for item in items
            if item.name in marked | unknown
        ]


def _delete_packs(store: BlobStore, names: Iterable[str]) -> None:
    for name in names:
        store.delete(name)


def _delete_all(archives: ArchiveStore, refs: Iterable[str], logs: LogStore, jobs: Iterable[str]) -> None:
    for ref in refs:
        archives.delete(ref)
    for job_id in jobs:
        logs.delete(job_id)


def _sizes(items: Iterable[StoredItem]) -> dict[str, int]:
    return {item.name: item.size for item in items}


def _names(prunables: Iterable[Prunable], kind: str) -> list[str]:
    return [one.name for one in prunables if one.kind == kind]
