"""Settings that every process on the same installation shares: where its state lives."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class StorageSettings(BaseSettings):
    """Where the database and the data directory are; environment variables begin with `CI_`."""

    model_config = SettingsConfigDict(env_prefix="CI_", extra="ignore", frozen=True)

    db_path: Path = Field(default=Path("ci_jobs.db"), description="SQLite database file.")
    data_dir: Path | None = Field(
        default=None, description="Archives and logs; by default `<database file>.data` beside the database."
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
