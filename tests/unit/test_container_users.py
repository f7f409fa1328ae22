"""Which user a container gets: one that no other has, whoever chooses at the same time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ci_common.errors import EngineUnavailable
from ci_controller import labels
from ci_controller.container_users import NONE_FREE, USERS, ContainerUsers, free_user, users_of

SYSTEMD_UNUSED = range(60706, 61184)  # https://systemd.io/UIDS-GIDS/, the table at its end (version 258)


def test_the_users_are_nobodys_by_systemds_table_and_a_remapped_engine_has_them() -> None:
    assert set(USERS) <= set(SYSTEMD_UNUSED)
    assert max(USERS) < 65536


def test_a_user_is_chosen_among_those_that_are_free() -> None:
    taken = set(USERS) - {USERS[3], USERS[5]}
    assert free_user(taken, min) == USERS[3]
    assert free_user(taken, max) == USERS[5]
    assert {free_user(taken) for _ in range(100)} <= {USERS[3], USERS[5]}


def test_without_a_choice_of_ones_own_it_is_chance() -> None:
    assert len({free_user(()) for _ in range(100)}) > 1


def test_when_all_are_taken_it_says_what_to_do() -> None:
    with pytest.raises(EngineUnavailable) as raised:
        free_user(USERS)
    assert raised.value.detail == NONE_FREE
    assert "docker ps" in NONE_FREE


def test_users_are_read_from_labels_and_what_is_none_of_ours_is_left_out() -> None:
    found = [
        {labels.UID: "60706"},
        {labels.UID: "60710", labels.KIND: "x"},
        {},
        {labels.UID: "root"},
        {labels.UID: ""},
    ]
    assert users_of(found) == {60706, 60710}


def test_a_user_is_free_again_when_its_container_was_not_made_or_is_gone() -> None:
    users = ContainerUsers(lambda: set(USERS) - {USERS[0]})
    with users.reserved() as first, pytest.raises(EngineUnavailable), users.reserved():
        pass
    with users.reserved() as again:
        assert again == first == USERS[0]


def test_a_failure_to_ask_the_engine_reserves_nothing() -> None:
    def away() -> set[int]:
        raise EngineUnavailable("away")

    users = ContainerUsers(away)
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="away"), users.reserved():
            pass


def test_as_many_threads_as_there_are_users_get_one_each() -> None:
    """Each asks, reserves, makes its container, and only then gives the reservation back."""
    made: set[int] = set()
    making = threading.Lock()

    def taken() -> set[int]:
        with making:
            return set(made)

    users = ContainerUsers(taken)

    def make(_: int) -> int:
        with users.reserved() as user:
            with making:
                made.add(user)
            return user

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(make, USERS)) == list(USERS)
