"""Settings from the environment: what is wrong is named by its variable, in one sentence."""

from pathlib import Path

import pytest

from ci_common.errors import InvalidRequest
from ci_common.log_limits import most_log_bytes
from ci_common.settings import ServiceSettings, StorageSettings, read_settings
from ci_controller.settings import ControllerSettings
from ci_server.settings import ServerSettings


def test_what_is_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_DB_PATH", "env.db")
    monkeypatch.setenv("CI_LOG_FORMAT", "console")
    assert read_settings(ServiceSettings).db_path == Path("env.db")
    given = read_settings(ServiceSettings, db_path=Path("given.db"))
    assert (given.db_path, given.log_format) == (Path("given.db"), "console")


SECRET = "s3cr3t-p4ss"
URL = f"postgresql://ci:{SECRET}@db.example.org:5433/ci?sslmode=require"


def test_a_database_is_a_file_or_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = read_settings(StorageSettings, database_url="sqlite:////var/lib/ci/ci.db")
    assert (file.db_path, file.server_url, file.database_name) == (
        Path("/var/lib/ci/ci.db"),
        None,
        "/var/lib/ci/ci.db",
    )
    assert read_settings(StorageSettings, database_url="sqlite:///ci.db").db_path == Path("ci.db")
    monkeypatch.setenv("CI_DATABASE_URL", URL)
    monkeypatch.setenv("CI_DATA_DIR", str(tmp_path))
    server = read_settings(StorageSettings)
    assert (server.server_url, server.data_path) == (URL, tmp_path)
    assert server.lock_path.parent == tmp_path
    assert server.database_name == "postgresql://db.example.org:5433/ci"
    assert SECRET not in repr(server)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"database_url": URL}, "CI_DATA_DIR"),
        ({"database_url": URL, "data_dir": "/data", "db_path": "ci.db"}, "two databases"),
        ({"database_url": "sqlite:///a.db", "db_path": "b.db"}, "two databases"),
        ({"database_url": f"mysql://ci:{SECRET}@host/ci"}, "begins with postgresql://"),
    ],
)
def test_a_database_that_is_named_wrongly_is_refused_without_its_password(
    given: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        read_settings(StorageSettings, **given)
    assert SECRET not in refused.value.detail
    assert read_settings(StorageSettings, db_path="a.db", database_url="sqlite:///a.db").db_path == Path(
        "a.db"
    )


def test_an_agents_log_may_be_as_long_as_that_of_a_job_here(monkeypatch: pytest.MonkeyPatch) -> None:
    default = read_settings(ControllerSettings).log_limit
    assert read_settings(ServerSettings).agent_log_bytes == most_log_bytes(default)
    monkeypatch.setenv("CI_LOG_LIMIT", "5MiB")
    assert read_settings(ControllerSettings).log_limit == 5 * 1024**2
    assert read_settings(ServerSettings).agent_log_bytes == most_log_bytes(5 * 1024**2)
    monkeypatch.setenv("CI_MAX_AGENT_LOG_BYTES", "7MiB")
    assert read_settings(ServerSettings).agent_log_bytes == 7 * 1024**2


def test_all_that_is_wrong_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_ARCHIVE_MAX_RATIO", "many")
    with pytest.raises(
        InvalidRequest, match=r"^wrong settings: CI_ARCHIVE_MAX_RATIO: .*; CI_ARCHIVE_MAX_BYTES: "
    ):
        read_settings(StorageSettings, archive_max_bytes=-1)
