"""What the first `ci-admin up` makes, what the next one keeps, and what it tells the person."""

import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from ci_admin import accounts
from ci_admin.first_run import ClientSetup, set_up_client
from ci_admin.next_steps import greeting
from ci_admin.up import environment_of, settings_of_all
from ci_common.api_keys import generate_api_key, key_prefix
from ci_common.client_config import read_config
from ci_common.errors import InvalidRequest
from ci_common.repository import JobRepository
from ci_common.settings import StorageSettings
from ci_persistence.sqlite_repository import SQLiteJobRepository

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
URL = "http://127.0.0.1:8000"


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[JobRepository]:
    opened = SQLiteJobRepository(tmp_path / "ci_jobs.db")
    await opened.initialize()
    yield opened
    await opened.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".ci" / "config"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_first_run_writes_what_the_client_reads(repository: JobRepository, config: Path) -> None:
    setup = await set_up_client(repository, config, URL, NOW)

    stored = read_config(config)
    found = await repository.find_api_key(key_prefix(stored["api_key"]))
    assert stored["server"] == URL
    assert found is not None
    assert found[1] == setup.user
    assert (setup.works, setup.written) == (True, True)


async def test_the_file_and_its_folder_are_the_persons_alone(repository: JobRepository, config: Path) -> None:
    await set_up_client(repository, config, URL, NOW)

    assert (_mode(config), _mode(config.parent)) == (0o600, 0o700)


async def test_the_second_run_changes_nothing(repository: JobRepository, config: Path) -> None:
    await set_up_client(repository, config, URL, NOW)
    before = config.read_bytes()

    setup = await set_up_client(repository, config, URL, NOW)

    assert (setup.works, setup.written) == (True, False)
    assert config.read_bytes() == before
    assert len(await repository.list_api_keys()) == 1


async def test_a_key_of_another_installation_is_left_alone(repository: JobRepository, config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_text(f"api_key={generate_api_key()}\nserver=https://ci.example.org\n")
    before = config.read_bytes()

    setup = await set_up_client(repository, config, URL, NOW)

    assert (setup.works, setup.written, setup.stored_server) == (False, False, "https://ci.example.org")
    assert config.read_bytes() == before
    assert await repository.list_users() == []


async def test_a_revoked_key_does_not_count_as_working(repository: JobRepository, config: Path) -> None:
    await set_up_client(repository, config, URL, NOW)
    (key,) = await repository.list_api_keys()
    await accounts.revoke_key(repository, key.id, NOW)

    assert not (await set_up_client(repository, config, URL, NOW)).works


async def test_other_settings_of_the_file_are_kept(repository: JobRepository, config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_text("# mine\nserver=http://localhost:9000")
    config.chmod(0o644)

    await set_up_client(repository, config, URL, NOW)

    assert config.read_text().startswith("# mine\nserver=http://localhost:9000\napi_key=ci_")
    assert _mode(config) == 0o600


async def test_a_lost_file_is_made_again_for_the_same_user(repository: JobRepository, config: Path) -> None:
    first = await set_up_client(repository, config, URL, NOW)
    config.unlink()

    assert (await set_up_client(repository, config, URL, NOW)).user == first.user


# -- what the person reads ---------------------------------------------------------------------------------------


def _greeting(
    *, stored_server: str | None = URL, works: bool = True, environ: dict[str, str] | None = None
) -> str:
    setup = ClientSetup(Path("/home/ada/.ci/config"), stored_server, works)
    return greeting(URL, StorageSettings(db_path=Path("/data/ci_jobs.db")), setup, environ or {})


def test_what_to_type_next_is_one_command() -> None:
    assert "submit test" in _greeting()
    assert "CI_SERVER_URL" not in _greeting()


@pytest.mark.parametrize("stored", ["http://localhost:8000", "http://localhost:8000/", None])
def test_localhost_is_this_machine(stored: str | None) -> None:
    assert "CI_SERVER_URL" not in _greeting(stored_server=stored)


def test_a_client_that_is_set_up_for_another_address_is_told_this_one() -> None:
    assert f"CI_SERVER_URL={URL}" in _greeting(stored_server="http://127.0.0.1:9999")
    assert f"CI_SERVER_URL={URL}" in _greeting(environ={"CI_SERVER_URL": "https://ci.example.org"})


def test_with_a_foreign_key_it_says_how_to_make_one() -> None:
    said = _greeting(works=False)

    assert "left as it is" in said
    assert "key create" in said
    assert "--db-path /data/ci_jobs.db" in said


def test_with_a_foreign_key_a_database_server_needs_no_option_and_its_password_is_not_shown() -> None:
    settings = StorageSettings(database_url=SecretStr("postgresql://ci:secret@db/ci"), data_dir=Path("/data"))
    said = greeting(URL, settings, ClientSetup(Path("/home/ada/.ci/config"), URL, works=False), {})
    assert "its database is postgresql://db/ci" in said
    assert "--db-path" not in said
    assert "secret" not in said


# -- which database it is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sqlite:///named.db", ""])
def test_both_daemons_use_the_file_that_is_in_force(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", "/home/ada/data")
    monkeypatch.setenv("CI_DATABASE_URL", url)
    environment = environment_of(settings_of_all(None), {"CI_DATABASE_URL": url})
    file = tmp_path / "named.db" if url else Path("/home/ada/data/ci/ci_jobs.db")
    assert (environment["CI_DB_PATH"], "CI_DATABASE_URL" in environment) == (str(file), False)


def test_both_daemons_use_the_database_server_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"CI_DATABASE_URL": "postgresql://ci@db/ci", "CI_DATA_DIR": "/data"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert environment_of(settings_of_all(None), named) == {**named, "CI_LOG_FORMAT": "console"}
    with pytest.raises(InvalidRequest, match="two databases"):
        settings_of_all(Path("ci_jobs.db"))
