"""What the program of each queue does with a request: fill a queue, or claim and finish until it is empty. Pure
standard library, since the peers' programs run in an environment that has nothing of this project.

A worker is a task of one event loop (a thread, where the queue has no asynchronous form). It claims a batch, finishes
what it got, and so on. Several processes can do so side by side: they say `ready`, and begin at a line of input.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """What a program is to do: `fill`, or `work`."""

    action: str
    place: str  # a file, or the URL of a database
    jobs: int = 0  # to queue, or to stop after (0: when the queue is empty)
    workers: int = 1
    batch: int = 1
    users: int = 1  # whose jobs, where the queue knows of such
    latencies_only: bool = False  # claim, and finish nothing

    @property
    def share(self) -> int:
        """How many jobs each worker stops after."""
        return self.jobs // self.workers if self.jobs else sys.maxsize


@dataclass
class Found:
    """What a process measured; the clock is the machine's, the same for all processes."""

    began: float = 0.0
    ended: float = 0.0
    cpu: float = 0.0  # seconds, of the process
    jobs: int = 0
    claims: list[float] = field(default_factory=list[float])  # milliseconds of each call that got something
    finishes: list[float] = field(default_factory=list[float])


class Queue(Protocol):
    """A queue with asynchronous calls."""

    async def fill(self, jobs: int, users: int) -> None:
        """So many jobs are queued, in tables made for it."""
        ...

    async def open(self, workers: int) -> None:
        """The next claim costs what every one costs."""
        ...

    async def claim(self, batch: int) -> Sequence[Any]:
        """Return what was claimed, at most so many; nothing: the queue is empty."""
        ...

    async def finish(self, claimed: Sequence[Any]) -> None:
        """Each of them is finished with success, as durably as it was claimed."""
        ...

    async def close(self) -> None:
        """Nothing is left open."""
        ...


class ThreadedQueue(Protocol):
    """A queue without them."""

    def fill(self, jobs: int, users: int) -> None: ...

    def claim(self, batch: int) -> Sequence[Any]: ...

    def finish(self, claimed: Sequence[Any]) -> None: ...

    def close(self) -> None: ...


def milliseconds_since(began: float) -> float:
    return (time.monotonic() - began) * 1000


def _wait_for_the_others() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _request() -> Request:
    return Request(**json.loads(sys.argv[1]))


def main(make: Callable[[str], Queue]) -> None:
    """Do what the command line asks for."""
    request = _request()
    asyncio.run(_serve(make(request.place), request))


async def _serve(queue: Queue, request: Request) -> None:
    try:
        if request.action == "fill":
            await queue.fill(request.jobs, request.users)
            return
        await queue.open(request.workers)
        _wait_for_the_others()
        found = Found(began=time.monotonic(), cpu=-time.process_time())
        await asyncio.gather(*(_work(queue, request, found) for _ in range(request.workers)))
        found.ended = time.monotonic()
        found.cpu += time.process_time()
    finally:
        await queue.close()
    print(json.dumps(asdict(found)), flush=True)


async def _timed(samples: list[float], call: Awaitable[Any]) -> Any:
    began = time.monotonic()
    result = await call
    samples.append(milliseconds_since(began))
    return result


async def _work(queue: Queue, request: Request, found: Found) -> None:
    mine = 0
    while mine < request.share:
        claimed = await _timed(found.claims, queue.claim(request.batch))
        if not claimed:
            found.claims.pop()
            return
        if not request.latencies_only:
            await _timed(found.finishes, queue.finish(claimed))
        mine += len(claimed)
        found.jobs += len(claimed)


def main_of_threads(make: Callable[[str], Callable[[], ThreadedQueue]]) -> None:
    """The same with threads; what is made for the process makes the queue of each of them."""
    request = _request()
    queue_of_a_thread = make(request.place)
    if request.action == "fill":
        queue = queue_of_a_thread()
        queue.fill(request.jobs, request.users)
        queue.close()
        return
    queues = [queue_of_a_thread() for _ in range(request.workers)]
    every = [Found() for _ in queues]
    threads = [
        threading.Thread(target=_work_in_thread, args=(queue, request, found))
        for queue, found in zip(queues, every, strict=True)
    ]
    _wait_for_the_others()
    whole = Found(began=time.monotonic(), cpu=-time.process_time())
    for thread in threads:
        thread.start()
    for thread, found in zip(threads, every, strict=True):
        thread.join()
        whole.jobs += found.jobs
        whole.claims += found.claims
        whole.finishes += found.finishes
    whole.ended = time.monotonic()
    whole.cpu += time.process_time()
    for queue in queues:
        queue.close()
    print(json.dumps(asdict(whole)), flush=True)


def _work_in_thread(queue: ThreadedQueue, request: Request, found: Found) -> None:
    while found.jobs < request.share:
        began = time.monotonic()
        claimed = queue.claim(request.batch)
        if not claimed:
            return
        found.claims.append(milliseconds_since(began))
        began = time.monotonic()
        if not request.latencies_only:
            queue.finish(claimed)
            found.finishes.append(milliseconds_since(began))
        found.jobs += len(claimed)
