"""Settings of the other packages, read for this command: a wrong variable is one sentence, not a traceback."""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ci_common.errors import InvalidRequest
from ci_common.settings import StorageSettings

Settings = TypeVar("Settings", bound=StorageSettings)


def read_settings(model: type[Settings], db_path: Path) -> Settings:
    """Return the settings of the environment on that database; raises InvalidRequest for one that is wrong."""
    try:
        return model(db_path=db_path)
    except ValidationError as error:
        wrong = (f"CI_{'_'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors())
        raise InvalidRequest(f"wrong settings: {'; '.join(wrong)}") from error
