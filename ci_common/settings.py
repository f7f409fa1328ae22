"""Settings that several processes of an installation share, and how any of them are read."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ci_common.errors import InvalidRequest
from ci_common.models import AGENT_LEASE, MAX_ATTEMPTS

_SQLITE: Final = "sqlite:///"
_POSTGRESQL: Final = ("postgresql://", "postgres://")
# Beside it lie the lock and the ballast, as beside the file of SQLite; there is no file of that name.
_INSTEAD_OF_A_FILE: Final = "controller"
_SIZES: Final = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]


def parse_size(value: Any) -> Any:
    """Return bytes for `2GiB`, `512m` or a plain number; everything else is left to the field's own check."""
    found = re.fullmatch(r"([\d.]+)\s*(?:([kmgt])(?:i?b)?|b)?", str(value).strip().lower())
    return int(float(found[1]) * _SIZES[found[2] or ""]) if found else value


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


class CISettings(BaseSettings):
    """How all settings are read; environment variables begin with `CI_`."""

    model_config = SettingsConfigDict(env_prefix="CI_", extra="ignore", frozen=True)


class ArchiveSettings(CISettings):
    """What an archive may hold, for whoever judges one."""

    archive_max_entries: int = Field(default=100_000, gt=0, description="Files in one archive.")
    archive_max_ratio: int = Field(default=200, gt=0, description="Unpacked bytes per packed byte, per file.")
    archive_max_bytes: int = Field(default=2 * 1024**3, gt=0, description="Unpacked bytes of one archive.")


class LogSettings(CISettings):
    """What every process that runs for long has: a log."""

    log_level: LogLevel = Field(default="info", description="The least important messages that are logged.")
    log_format: LogFormat = Field(
        default="auto", description="How log lines look; `auto`: `console` on a terminal, else `json`."
    )


class StorageSettings(ArchiveSettings):
    """Where the database and the data directory are."""

    db_path: Path = Field(default=Path("ci_jobs.db"), description="SQLite database file.")
    database_url: SecretStr | None = Field(
        default=None,
        description="Instead of `CI_DB_PATH`: `postgresql://user@host/database`, with `CI_DATA_DIR`; or "
        "`sqlite:///relative.db`, `sqlite:////absolute.db`.",
    )
    data_dir: Path | None = Field(
        default=None,
        description="Archives, contents of files and logs; by default `<database file>.data` beside the database.",
    )
    storage_url: str | None = Field(
        default=None,
        description="Where archives and contents of files are kept: `s3://bucket/prefix`, with copies in the data "
        "directory; by default there alone, which `file:///absolute/directory` names, too.",
    )
    storage_copies: int = Field(
        default=10 * 1024**3,
        ge=0,
        description="Bytes that copies of archives, and copies of contents, may each take in the data directory; only "
        "with `s3://`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_one_database(cls, given: dict[str, Any]) -> dict[str, Any]:
        """`db_path` is the file, or `database_url` the server; what is said of both must agree."""
        named = given.get("database_url")
        url = named.get_secret_value() if isinstance(named, SecretStr) else named
        if not url:
            return given
        rest = {name: value for name, value in given.items() if name != "database_url"}
        if url.startswith(_SQLITE):
            return {**rest, "db_path": _only(Path(url.removeprefix(_SQLITE)), given.get("db_path"))}
        if not url.startswith(_POSTGRESQL):  # whose text is not shown: it may hold a password
            raise ValueError("CI_DATABASE_URL begins with postgresql:// or sqlite:///")
        if not given.get("data_dir"):
            raise ValueError(
                "CI_DATABASE_URL names a server: say with CI_DATA_DIR where archives and logs are"
            )
        path = Path(given["data_dir"]) / _INSTEAD_OF_A_FILE
        return {**given, "db_path": _only(path, given.get("db_path"))}

    @model_validator(mode="before")
    @classmethod
    def _name_one_directory(
        cls, given: dict[str, Any]
    ) -> dict[str, Any]:  # before the other one: last comes first
        """`data_dir` is the directory of a `file://` URL; what is said of both must agree."""
        url = given.get("storage_url")
        if not url:
            return {name: value for name, value in given.items() if name != "storage_url"}
        parts = urlsplit(str(url))
        if (
            parts.username or parts.password or parts.query or parts.fragment
        ):  # not shown: it may hold a secret
            raise ValueError(
                "CI_STORAGE_URL holds no credentials: the environment has them (AWS_ACCESS_KEY_ID, …)"
            )
        if parts.scheme == "s3" and parts.netloc:
            return given
        if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
            raise ValueError("CI_STORAGE_URL is s3://bucket/prefix or file:///absolute/directory")
        named, other = Path(parts.path), given.get("data_dir")
        if other and Path(other) != named:
            raise ValueError("CI_STORAGE_URL and CI_DATA_DIR name two directories: keep one of them")
        return {**given, "data_dir": named}

    @property
    def bucket_url(self) -> str | None:
        """The URL of the bucket; None where everything is in the data directory."""
        return self.storage_url if self.storage_url and self.storage_url.startswith("s3://") else None

    @property
    def server_url(self) -> str | None:
        """The URL of PostgreSQL, password included; None where the database is a file."""
        return self.database_url.get_secret_value() if self.database_url else None

    @property
    def database_name(self) -> str:
        """Which database that is, for people and logs: a path, or a URL without what lets one in."""
        return shown_url(self.server_url) if self.server_url else str(self.db_path)

    @property
    def data_path(self) -> Path:
        """The data directory in force, so that two installations in one folder never meet."""
        return self.data_dir or self.db_path.with_name(self.db_path.name + ".data")

    @property
    def lock_path(self) -> Path:
        """The file whose lock only refuses a second controller quickly; the epoch is the truth."""
        return self.db_path.with_name(self.db_path.name + ".lock")


def shown_url(url: str) -> str:
    """Return the URL of a database without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _only(named: Path, other: str | Path | None) -> Path:
    if other is not None and Path(other) != named:
        raise ValueError("CI_DB_PATH (or --db-path) and CI_DATABASE_URL name two databases: keep one of them")
    return named


class ServiceSettings(LogSettings, StorageSettings):
    """What every process of the control plane has beside its storage: a log, and the rules of losing jobs."""

    max_attempts: int = Field(
        default=MAX_ATTEMPTS,
        gt=0,
        description="How often infrastructure may lose a job whose tests had begun before it is given up.",
    )
    agent_lease: float = Field(
        default=AGENT_LEASE.total_seconds(),
        gt=0,
        description="Seconds without a heartbeat after which what an agent holds is queued again.",
    )


Settings = TypeVar("Settings", bound=CISettings)


def read_settings(model: type[Settings], **given: Any) -> Settings:
    """Return the settings of the environment, overridden by those given; raises InvalidRequest for wrong ones."""
    try:
        return model(**given)
    except ValidationError as error:
        wrong = (_said(one["loc"], one["msg"]) for one in error.errors())
        raise InvalidRequest(f"wrong settings: {'; '.join(wrong)}") from error


def _said(where: tuple[int | str, ...], what: str) -> str:
    if not where:  # a rule about several settings, which names them itself
        return what.removeprefix("Value error, ")
    return f"CI_{'_'.join(map(str, where)).upper()}: {what}"
