"""Settings that several processes of an installation share, and how any of them are read."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ci_common.errors import InvalidRequest

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]


class StorageSettings(BaseSettings):
    """Where the database and the data directory are; environment variables begin with `CI_`."""

    model_config = SettingsConfigDict(env_prefix="CI_", extra="ignore", frozen=True)

    db_path: Path = Field(default=Path("ci_jobs.db"), description="SQLite database file.")
    data_dir: Path | None = Field(
        default=None,
        description="Archives, contents of files and logs; by default `<database file>.data` beside the database.",
    )

    archive_max_entries: int = Field(default=100_000, gt=0, description="Files in one archive.")
    archive_max_ratio: int = Field(default=200, gt=0, description="Unpacked bytes per packed byte, per file.")
    archive_max_bytes: int = Field(default=2 * 1024**3, gt=0, description="Unpacked bytes of one archive.")

    @property
    def data_path(self) -> Path:
        """The data directory in force, so that two installations in one folder never meet."""
        return self.data_dir or self.db_path.with_name(self.db_path.name + ".data")

    @property
    def lock_path(self) -> Path:
        """The file whose lock only refuses a second controller quickly; the epoch is the truth."""
        return self.db_path.with_name(self.db_path.name + ".lock")


class ServiceSettings(StorageSettings):
    """What every process that runs for long has beside its storage: a log."""

    log_level: LogLevel = Field(default="info", description="The least important messages that are logged.")
    log_format: LogFormat = Field(
        default="auto", description="How log lines look; `auto`: `console` on a terminal, else `json`."
    )


Settings = TypeVar("Settings", bound=StorageSettings)


def read_settings(model: type[Settings], **given: Any) -> Settings:
    """Return the settings of the environment, overridden by those given; raises InvalidRequest for wrong ones."""
    try:
        return model(**given)
    except ValidationError as error:
        wrong = (f"CI_{'_'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors())
        raise InvalidRequest(f"wrong settings: {'; '.join(wrong)}") from error
