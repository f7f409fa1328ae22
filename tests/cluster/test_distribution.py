"""What the demo prints, of jobs that are known."""

from tests.support.cluster.distribution import Ended, table

WANTED = """
jobs waited: median most ran: median verdicts
agent-1 2 2.0 s 3.0 s 2.5 s 2 passed
agent-2 1 9.5 s 9.5 s 4.0 s 1 tests_failed, 1 in more than one attempt

ada 2 5.2 s 9.5 s 3.0 s 1 passed, 1 tests_failed, 1 in more than one attempt
grace 1 3.0 s 3.0 s 3.0 s 1 passed

all 3 3.0 s 9.5 s 3.0 s 2 passed, 1 tests_failed, 1 in more than one attempt
"""


def test_the_table_has_a_row_for_each_agent_each_user_and_all() -> None:
    jobs = [
        Ended("ada", "agent-1", "passed", 1, waited=1.0, took=2.0),
        Ended("ada", "agent-2", "tests_failed", 2, waited=9.5, took=4.0),
        Ended("grace", "agent-1", "passed", 1, waited=3.0, took=3.0),
    ]
    assert [line.split() for line in table(jobs)] == [line.split() for line in WANTED.strip().splitlines()]
