"""Calls that are written together: who shares, what an error or an unknown outcome means, who leaves."""

import asyncio
from collections.abc import Sequence

import pytest

from ci_common.errors import Conflict, OutcomeUnknown
from ci_persistence.gathered import Gathered


class Writer:
    """Writes letters, when it is let; remembers what was written at once."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.began = asyncio.Event()
        self.may_write = asyncio.Event()
        self.may_write_alone = asyncio.Event()
        self.may_write_alone.set()
        self.fails: Exception | None = None  # what is written together
        self.refused = ""  # alone
        self.apart = ""  # whom the shared way leaves to the other one

    async def alone(self, letter: str) -> str:
        await self.may_write_alone.wait()
        await self._write(letter)
        if letter in self.refused:
            raise Conflict(letter)
        return letter.upper()

    async def together(self, letters: Sequence[str]) -> list[str | None]:
        if self.fails is not None:
            raise self.fails
        free = "".join(one for one in letters if one not in self.apart)
        if free:
            await self._write(free)
        return [one.upper() if one in free else None for one in letters]

    async def _write(self, letters: str) -> None:
        self.began.set()
        await self.may_write.wait()
        self.written.append(letters)


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def gathered(writer: Writer) -> Gathered[str, str]:
    return Gathered(writer.alone, writer.together)


async def behind(gathered: Gathered[str, str], writer: Writer, letters: str) -> list[asyncio.Task[str]]:
    """Return these calls, which wait while one of `a` is being written."""
    tasks = [asyncio.create_task(gathered.answer("a"))]
    await writer.began.wait()
    tasks += [asyncio.create_task(gathered.answer(letter)) for letter in letters]
    await asyncio.sleep(0)
    return tasks


async def outcomes(writer: Writer, tasks: Sequence[asyncio.Task[str]]) -> list[str | BaseException]:
    writer.may_write.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_comes_meanwhile_goes_together(gathered: Gathered[str, str], writer: Writer) -> None:
    tasks = await behind(gathered, writer, "bcd")
    assert await outcomes(writer, tasks) == list("ABCD")
    assert writer.written == ["a", "bcd"]
    assert await gathered.answer("e") == "E"
    assert writer.written == ["a", "bcd", "e"], "nobody is left who would be waited for"


async def test_who_comes_at_the_same_time_goes_together(gathered: Gathered[str, str], writer: Writer) -> None:
    writer.may_write.set()
    assert await asyncio.gather(*(gathered.answer(letter) for letter in "abc")) == list("ABC")
    assert writer.written == ["abc"]


async def test_an_error_befalls_only_whose_it_is(gathered: Gathered[str, str], writer: Writer) -> None:
    tasks = await behind(gathered, writer, "bcd")
    writer.fails, writer.refused = Conflict("one of them"), "c"
    found = await outcomes(writer, tasks)
    assert [one for one in found if isinstance(one, str)] == ["A", "B", "D"]
    assert isinstance(found[2], Conflict)
    assert found[2].detail == "c"
    assert writer.written == ["a", "b", "c", "d"]


async def test_what_cannot_be_shared_just_now_is_written_apart(
    gathered: Gathered[str, str], writer: Writer
) -> None:
    tasks = await behind(gathered, writer, "bcd")
    writer.apart = "c"
    assert await outcomes(writer, tasks) == list("ABCD")
    assert writer.written == ["a", "bd", "c"]


async def test_what_must_wait_to_be_written_apart_holds_nobody_up(
    gathered: Gathered[str, str], writer: Writer
) -> None:
    writer.may_write.set()
    writer.may_write_alone.clear()
    writer.apart = "ac"
    waiting = [asyncio.create_task(gathered.answer(letter)) for letter in "a"]
    assert await gathered.answer("b") == "B"
    waiting += [asyncio.create_task(gathered.answer(letter)) for letter in "c"]
    assert await gathered.answer("d") == "D"
    assert not any(task.done() for task in waiting)
    writer.may_write_alone.set()
    assert await asyncio.gather(*waiting) == ["A", "C"]
    assert writer.written == ["b", "d", "a", "c"]


async def test_an_error_of_one_call_is_its_own_and_nothing_is_tried_again(
    gathered: Gathered[str, str], writer: Writer
) -> None:
    writer.may_write.set()
    writer.fails = Conflict("no")
    with pytest.raises(Conflict):
        await gathered.answer("a")
    assert writer.written == []


async def test_who_is_cancelled_while_it_is_written_apart_learns_of_it_when_it_stands(
    gathered: Gathered[str, str], writer: Writer
) -> None:
    writer.apart = "a"
    task = asyncio.create_task(gathered.answer("a"))
    await writer.began.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    [found] = await outcomes(writer, [task])
    assert isinstance(found, asyncio.CancelledError)
    assert writer.written == ["a"]


@pytest.mark.parametrize("apart", ["", "a", "abcdefgh"])
def test_a_loop_that_ends_leaves_nobody_waiting(apart: str) -> None:
    async def work() -> None:
        writer = Writer()
        writer.apart = apart
        gathered = Gathered(writer.alone, writer.together)
        tasks = [asyncio.create_task(gathered.answer(letter)) for letter in "abcdefgh"]
        await writer.began.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait(tasks, timeout=10)
        assert all(task.cancelled() for task in tasks)

    asyncio.run(work())


async def test_an_unknown_outcome_is_everybodys_and_nobody_tries_again(
    gathered: Gathered[str, str], writer: Writer
) -> None:
    tasks = await behind(gathered, writer, "bc")
    writer.fails = OutcomeUnknown("the connection was lost")
    found = await outcomes(writer, tasks)
    assert found[0] == "A"
    assert [type(one) for one in found[1:]] == [OutcomeUnknown, OutcomeUnknown]
    assert writer.written == ["a"]


async def test_who_is_cancelled_before_the_turn_was_never_there(
    gathered: Gathered[str, str], writer: Writer
) -> None:
    tasks = await behind(gathered, writer, "bcd")
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    found = await outcomes(writer, tasks)
    assert isinstance(found[2], asyncio.CancelledError)
    assert writer.written == ["a", "bd"]


async def test_who_is_cancelled_while_it_is_written_learns_of_it_when_it_stands(
    gathered: Gathered[str, str], writer: Writer
) -> None:
    tasks = await behind(gathered, writer, "bc")
    tasks[0].cancel()
    await asyncio.sleep(0)
    assert not tasks[0].done()
    found = await outcomes(writer, tasks)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == ["B", "C"]
    assert writer.written == ["a", "bc"]


async def test_who_is_cancelled_first_of_all_holds_nobody_up(
    gathered: Gathered[str, str], writer: Writer
) -> None:
    writer.may_write.set()
    tasks = [asyncio.create_task(gathered.answer(letter)) for letter in "abc"]
    await asyncio.sleep(0)
    tasks[0].cancel()
    found = await outcomes(writer, tasks)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == ["B", "C"]
    assert writer.written == ["abc"], "it was the turn of all three"
