"""Every way to end has one exit code, and it is in the table that --help shows."""

import click
import pytest

from ci_client.cli import ci, run
from ci_client.exit_codes import ClientExit, exit_code_of_error, exit_code_of_verdict, exit_code_table
from ci_common.errors import CIError, ServerUnreachable, TooManyRequests, Unauthorized, errors_by_code
from ci_common.events import CompleteEvent
from ci_common.job_terms import JobStatus, Reason
from ci_common.verdict import ENDINGS, PYTEST_REASONS, Ending


@pytest.mark.parametrize("row", ENDINGS, ids=lambda row: row.what)
def test_a_verdict_ends_with_the_code_of_its_row(row: Ending) -> None:
    own = {reason: code for code, reason in PYTEST_REASONS.items()}.get(row.reason, 2)
    event = CompleteEvent(row.reason is None, row.status, own, row.reason)
    assert exit_code_of_verdict(event) == (own if row.exit_code is None else row.exit_code)


def test_no_failure_ends_with_zero() -> None:
    assert exit_code_of_verdict(CompleteEvent(False, JobStatus.COMPLETED, 0, Reason.TESTS_FAILED)) == 1
    assert (
        exit_code_of_verdict(CompleteEvent(False, JobStatus.COMPLETED)) == 1
    )  # the oldest form of the event


def test_an_error_that_nobody_expected_is_said_and_is_not_the_code_of_failed_tests(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.setitem(ci.commands, "broken", broken)
    assert run(["broken"]) == ClientExit.INTERNAL
    assert "nobody expected this" in capsys.readouterr().err


def test_the_table_holds_every_code_there_is() -> None:
    codes = {code for code, _ in exit_code_table()}
    assert codes >= {error.exit_code for error in errors_by_code().values()}
    assert codes >= {row.exit_code for row in ENDINGS if row.exit_code is not None}
    assert codes >= set(PYTEST_REASONS)
    assert codes >= {code.value for code in ClientExit}


def test_a_few_codes_that_scripts_rely_on() -> None:
    errors: list[tuple[CIError, int]] = [
        (ServerUnreachable(""), 69),
        (TooManyRequests(""), 75),
        (Unauthorized(""), 77),
    ]
    assert [exit_code_of_error(error) for error, _ in errors] == [code for _, code in errors]
