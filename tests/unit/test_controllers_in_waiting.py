"""Several `ci-controller` over one PostgreSQL, as processes and without any engine: one leads, the others wait."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.support.eventually import eventually
from tests.support.postgres import drop_postgres, new_postgres
from tests.support.postgres_fixtures import url

__all__ = ["url"]

LONG = 90.0  # seconds; a stopped leader is waited for for 15


@dataclass(frozen=True)
class Controller:
    """A process and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def name(self) -> str:
        return f":{self.process.pid}"

    def said(self, what: str) -> int:
        return len(re.findall(what, self.log.read_text()))

    def ended(self) -> int:
        return self.process.wait(timeout=LONG)


Start = Callable[..., Controller]


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts controllers that run no jobs themselves."""
    controllers: list[Controller] = []

    def started(url: str, *flags: str) -> Controller:
        log = tmp_path / f"controller-{len(controllers)}.log"
        env = {key: value for key, value in os.environ.items() if not key.startswith("CI_")}
        env |= {"CI_DATABASE_URL": url, "CI_DATA_DIR": str(tmp_path), "CI_LOG_FORMAT": "console"}
        command = [str(Path(sys.executable).parent / "ci-controller"), "--no-local-runner", *flags]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        controllers.append(Controller(process, log))
        return controllers[-1]

    yield started
    for one in controllers:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGCONT)
            one.process.kill()
        one.process.wait()


def row(url: str) -> tuple[int, str, str | None]:
    """Return (epoch, holder, released_at); epoch 0 before there is a controller."""
    with psycopg.connect(url) as db:
        if (found := db.execute("SELECT to_regclass('controller') IS NULL").fetchone()) and found[0]:
            return 0, "", None
        found = db.execute("SELECT epoch, holder, released_at FROM controller").fetchone()
    return (int(found[0]), str(found[1]), found[2]) if found else (0, "", None)


def leads(url: str, one: Controller, epoch: int) -> None:
    """It has come to lead, under that epoch."""

    def leads() -> bool:
        number, holder, released = row(url)
        assert number <= epoch, "somebody else took over in between"
        return number == epoch and holder.endswith(one.name) and released is None

    eventually(leads, seconds=LONG, what=f"the lead of {one.name}\n{one.log.read_text()}")


def waits(one: Controller, leader: Controller) -> None:
    """It has said that it waits, and for whom, once."""
    said = f"waiting: another controller leads.*leader=.*{leader.name}"
    eventually(lambda: one.said(said) == 1, seconds=LONG, what="the word that it waits")


def test_of_several_that_are_started_at_once_one_leads_until_it_dies_or_hands_over(start: Start) -> None:
    url = new_postgres(migrated=False)
    try:
        three = {start(url) for _ in range(3)}
        first = leader_of(url, three, 1)
        first.process.kill()
        first.ended()
        two = three - {first}
        heir = leader_of(url, two, 2)
        [last] = two - {heir}

        heir.process.terminate()
        leads(url, last, 3)
        assert heir.ended() == 0
        assert last.said("why='it was stopped'") == 1, "and no silence was waited for"

        late = start(url)
        waits(late, last)
        late.process.terminate()
        assert late.ended() == 0, "one that waits ends at once, and says no more about it"
        assert "Traceback" not in late.log.read_text()
        leads(url, last, 3)
        last.process.terminate()
        assert last.ended() == 0
        assert row(url)[2] is not None, "the next one need not wait either"
    finally:
        drop_postgres(url)


def leader_of(url: str, some: set[Controller], epoch: int) -> Controller:
    """Return the one of these that leads under that epoch; the others wait for it."""
    eventually(lambda: row(url)[0] == epoch, seconds=LONG, what="a leader")
    [leader] = [one for one in some if row(url)[1].endswith(one.name)]
    for one in some - {leader}:
        waits(one, leader)
    leads(url, leader, epoch)
    return leader


def test_a_leader_that_was_stopped_wakes_up_and_leaves(url: str, start: Start) -> None:
    first = start(url)
    leads(url, first, 1)
    second = start(url)
    waits(second, first)
    first.process.send_signal(signal.SIGSTOP)
    leads(url, second, 2)
    assert second.said("it is silent for 1[5-9]") == 1
    with psycopg.connect(url) as db:
        assert db.execute("SELECT runs_jobs FROM controller").fetchone() == (0,)
    first.process.send_signal(signal.SIGCONT)
    assert first.ended() == 75
    assert "Another controller took over" in first.log.read_text()
    leads(url, second, 2)
