"""Settings from the environment: what is wrong is named by its variable, in one sentence."""

from pathlib import Path

import pytest

from ci_common.errors import InvalidRequest
from ci_common.settings import ServiceSettings, StorageSettings, read_settings


def test_what_is_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_DB_PATH", "env.db")
    monkeypatch.setenv("CI_LOG_FORMAT", "console")
    assert read_settings(ServiceSettings).db_path == Path("env.db")
    given = read_settings(ServiceSettings, db_path=Path("given.db"))
    assert (given.db_path, given.log_format) == (Path("given.db"), "console")


def test_all_that_is_wrong_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_ARCHIVE_MAX_RATIO", "many")
    with pytest.raises(
        InvalidRequest, match=r"^wrong settings: CI_ARCHIVE_MAX_RATIO: .*; CI_ARCHIVE_MAX_BYTES: "
    ):
        read_settings(StorageSettings, archive_max_bytes=-1)
