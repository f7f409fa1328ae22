"""The pure part of the benchmark: statistics, goals, bars, and the rule by which a ratio counts as a regression."""

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.alternate import alternating
from bench.big_tree import counting
from bench.check import main
from bench.goals import GOALS, Goal
from bench.queue_peers import Case, Sample, ratios, text_of
from bench.queues.worker import Found
from bench.ratios import Finding, Ratio, compare, ratios_in
from bench.report import Missing, Row, bars, percentile, quartiles, row_document, table
from bench.run import MEASUREMENTS, SLOW, Result, TookTooLong, at_most, chosen, document
from tests.support.eventually import eventually

WARM = Row("warm", "ms", (100.0, 110.0, 120.0), "docker", (200.0, 220.0, 240.0), "warm/docker-run")


def test_things_are_measured_by_turns_and_warmed_up_first() -> None:
    done: list[str] = []

    def clock(action: Callable[[], object]) -> float:
        action()
        return 1.0

    found = alternating(
        {"a": lambda: done.append("a"), "b": lambda: done.append("b")},
        2,
        clock=clock,
    )
    assert "".join(done) == "ab" + "ab" + "ba"
    assert found == {"a": (1.0, 1.0), "b": (1.0, 1.0)}


@pytest.mark.parametrize(
    ("samples", "percent", "expected"),
    [
        ((5.0,), 50, 5.0),
        ((1.0, 2.0), 50, 1.5),
        (tuple(range(1, 101)), 95, 96),
        (tuple(range(1, 101)), 99, 100),
    ],
)
def test_percentiles(samples: tuple[float, ...], percent: float, expected: float) -> None:
    assert percentile(samples, percent) == expected


def test_few_samples_have_their_ends_for_quartiles() -> None:
    assert quartiles((3.0, 1.0)) == (1.0, 3.0)
    assert quartiles((1.0, 2.0, 3.0, 4.0, 5.0)) == (2.0, 4.0)


def test_a_row_knows_its_ratio_its_spread_and_its_goals() -> None:
    assert WARM.ratio == 0.5
    assert WARM.ratio_spread == pytest.approx((105 / 230, 115 / 210))
    assert [(str(goal), value, met) for goal, value, met in WARM.verdicts()] == [("ratio <= 0.5", 0.5, True)]
    alone = Row("alone", "ms", (1.0,))
    assert (alone.ratio, alone.ratio_spread, alone.verdicts()) == (None, None, [])


def test_goals_are_of_ratios_or_of_percentiles() -> None:
    samples = tuple(float(value) for value in range(1, 251))
    verdicts = Row("first", "ms", samples, key="first-line").verdicts()
    assert [(goal.percentile, met) for goal, _, met in verdicts] == [(50, False), (95, False)]
    assert Goal(1.3, at_least=True).is_met_by(1.3)
    assert not Goal(1.3, at_least=True).is_met_by(1.2)


def test_people_see_both_sides_as_bars_and_whether_the_goal_is_met() -> None:
    ours, floor = (line for line in bars([WARM]).splitlines() if "█" in line)
    assert ours.count("█") * 2 == floor.count("█") == 40
    assert "goal ratio <= 0.5: 0.50, met" in bars([WARM])
    missed = Row("warm", "ms", (300.0,), "docker", (200.0,), "warm/docker-run")
    assert "MISSED" in bars([missed])
    assert "| **1.50** | ratio <= 0.5: 1.50 **missed** |" in table([missed])


def test_a_result_says_what_is_missing_and_why() -> None:
    result = Result(
        [WARM], [Missing("laminar", "not there", failed=False), Missing("cold", "broke", failed=True)]
    )
    found = document(result, whole=True, loads=(0.5, 0, 0))
    assert [one["name"] for one in found["missing"]] == ["laminar", "cold"]
    assert json.loads(json.dumps(found))["rows"][0]["ratio"] == 0.5


# -- choosing, and ending what hangs -------------------------------------------------------------------------


def test_what_is_measured_can_be_chosen_by_name() -> None:
    assert chosen([], quick=False) == list(MEASUREMENTS)
    assert not set(chosen([], quick=True)) & SLOW
    assert chosen(["tox", "warm"], quick=True) == ["warm", "tox"]


def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(TookTooLong), at_most(0.01):
        threading.Event().wait(30)
    with at_most(30):
        pass


# -- the rule ------------------------------------------------------------------------------------------------

COMMITTED = Ratio(0.5, 0.45, 0.55)


@pytest.mark.parametrize(
    ("now", "is_worse"),
    [
        (Ratio(0.5, 0.45, 0.55), False),
        (Ratio(0.3, 0.29, 0.31), False),  # better
        (Ratio(0.64, 0.62, 0.66), False),  # apart, but not by enough
        (Ratio(0.8, 0.5, 1.1), False),  # much, but within the spread
        (Ratio(0.8, 0.55, 1.1), False),  # they touch
        (Ratio(0.7, 0.65, 0.75), True),
    ],
)
def test_a_regression_is_more_than_the_tolerance_and_outside_of_both_spreads(
    now: Ratio, is_worse: bool
) -> None:
    assert now.is_worse_than(COMMITTED) is is_worse


@pytest.mark.parametrize(
    ("now", "is_worse"),
    [(Ratio(1.4, 1.3, 1.5), False), (Ratio(0.9, 0.85, 0.95), True), (Ratio(0.9, 0.8, 1.25), False)],
)
def test_where_more_is_better_less_is_worse(now: Ratio, is_worse: bool) -> None:
    committed = Ratio(1.3, 1.2, 1.4, more_is_better=True)
    assert Ratio(now.median, now.low, now.high, more_is_better=True).is_worse_than(committed) is is_worse


def test_what_only_one_side_knows_is_no_regression() -> None:
    findings = compare({"new": COMMITTED}, {"old": COMMITTED})
    assert [finding.key for finding in findings] == ["new", "old"]
    assert not any(finding.is_regression for finding in findings)
    assert "not measured" in str(Finding("old", None, COMMITTED))


def test_ratios_are_those_of_rows_that_have_a_key_and_a_floor() -> None:
    rows = [
        row_document(row) for row in (WARM, Row("x", "ms", (1.0,), key="idle/cpu"), Row("y", "ms", (1.0,)))
    ]
    assert set(ratios_in(rows)) == {"warm/docker-run"}


# -- the command ---------------------------------------------------------------------------------------------


def written(path: Path, *rows: Row, whole: bool = True, missing: tuple[Missing, ...] = ()) -> list[str]:
    """Return the arguments that name a run's result, and where ratios are committed."""
    result = document(Result(list(rows), list(missing)), whole=whole, loads=(0, 0, 0))
    (path / "latest.json").write_text(json.dumps(result))
    return ["--result", str(path / "latest.json"), "--ratios", str(path / "ratios.json")]


def test_the_check_fails_on_a_regression_and_on_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*written(tmp_path, WARM)]) == 2  # there is nothing to compare with yet
    assert main([*written(tmp_path, WARM), "--commit"]) == 0
    assert main(written(tmp_path, WARM)) == 0
    slower = Row("warm", "ms", (190.0, 200.0, 210.0), "docker", (200.0, 220.0, 240.0), "warm/docker-run")
    assert main(written(tmp_path, slower)) == 1
    assert "REGRESSION" in capsys.readouterr().out
    assert main(written(tmp_path, missing=(Missing("peers", "not there", failed=False),))) == 0
    assert main(written(tmp_path, missing=(Missing("warm", "broke", failed=True),))) == 1


@pytest.mark.parametrize("changes", [{"whole": False}, {"missing": (Missing("warm", "broke", failed=True),)}])
def test_a_run_that_was_not_whole_is_not_committed(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert main([*written(tmp_path, WARM, **changes), "--commit"]) == 1
    assert not (tmp_path / "ratios.json").exists()


def test_there_has_to_be_a_run(tmp_path: Path) -> None:
    assert main(["--result", str(tmp_path / "none.json")]) == 2


# -- counting what is sent -----------------------------------------------------------------------------------


def test_what_clients_send_is_counted_and_arrives() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        counting(f"http://127.0.0.1:{listener.getsockname()[1]}") as (url, counter),
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client,
        listener.accept()[0] as server,
    ):
        client.sendall(b"x" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert len(b"".join(iter(lambda: server.recv(100), b""))) == 1000
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"
        eventually(lambda: counter.sent == 1000, what="the count")


def test_every_goal_is_of_a_row_that_a_measurement_makes() -> None:
    sources = "".join(path.read_text() for path in Path(__file__).parents[2].joinpath("bench").glob("*.py"))
    assert [key for key in GOALS if sources.count(f'"{key}"') < 2] == []


def test_what_processes_of_a_queue_measured_is_put_together() -> None:
    found = [
        Found(began=1.0, ended=3.0, cpu=0.5, jobs=6, claims=[1.0]),
        Found(began=2.0, ended=5.0, cpu=0.5, jobs=2, claims=[2.0]),
    ]
    assert Sample.of(found, server_cpu=3.0) == Sample(2.0, 500.0, (1.0, 2.0), ())


def test_queues_are_compared_round_by_round() -> None:
    case = Case(4, 10)
    ours = [Sample(rate, 5.0, (1.0,), (2.0,)) for rate in (100.0, 10.0, 30.0)]
    theirs = [Sample(rate, 5.0, (1.0,), (2.0,)) for rate in (50.0, 20.0, 10.0)]
    assert ratios(ours, theirs) == [2.0, 0.5, 3.0]
    table = text_of({case: {"ours, PostgreSQL": ours, "pgqueuer": theirs}}, {})
    assert "| 4 workers, batches of 10 | pgqueuer | 20 | 2.00 | 5.0 | 1.00, 1.0 | 2.00, 2.0 |" in table
