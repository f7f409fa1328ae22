"""`~/.ci/config`, the file of a person's client: where it is and what it says. `ci-admin up` reads it too."""

import os
from collections.abc import Mapping
from pathlib import Path

from ci_common.errors import InvalidRequest


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the file a person's settings are in: `~/.ci/config`, unless CI_CONFIG_FILE names another."""
    named = environ.get("CI_CONFIG_FILE")
    return Path(named).expanduser() if named else Path.home() / ".ci" / "config"


def read_config(path: Path) -> dict[str, str]:
    """Return the `key=value` lines of a file; nothing where there is no file. Other lines are not ours."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
    pairs = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, separator, value in pairs if separator}
