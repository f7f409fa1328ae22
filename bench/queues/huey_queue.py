# ruff: noqa: ARG002  (every queue is asked in the same way)
# pyright: basic, reportMissingImports=false
"""huey on SQLite, with the worker's own calls: dequeue a task, run it, store its result. It has no batches.

A worker that dies loses the task it dequeued: that is a DELETE. So its "finish" is the result that is stored.
"""

from collections.abc import Callable, Sequence
from typing import Any

from huey import SqliteHuey

from bench.queues.worker import ThreadedQueue, main_of_threads


class HueyQueue:
    """One `SqliteHuey` per process, which its threads share: so does huey's consumer."""

    def __init__(self, huey: SqliteHuey, task: Any) -> None:
        self._huey = huey
        self._task = task

    def fill(self, jobs: int, users: int) -> None:
        for number in range(jobs):
            self._huey.enqueue(self._task.s(number))

    def claim(self, batch: int) -> Sequence[Any]:
        task = self._huey.dequeue()
        return [] if task is None else [task]

    def finish(self, claimed: Sequence[Any]) -> None:
        for task in claimed:
            self._huey.execute(task)  # it returns something, so a result is written

    def close(self) -> None:
        self._huey.storage.close()


def _job(number: int) -> int:
    return number + 1


def _make(place: str) -> Callable[[], ThreadedQueue]:
    # fsync=True is synchronous=FULL, and what SQLite does by default; huey sets nothing unless asked.
    huey = SqliteHuey("bench", filename=place, fsync=True, timeout=30)
    task = huey.task(name="job")(_job)
    return lambda: HueyQueue(huey, task)


if __name__ == "__main__":
    main_of_threads(_make)
