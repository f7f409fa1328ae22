"""The first run of `ci-admin up`: a user, a key and `~/.ci/config`; later runs find them and change nothing."""

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ci_admin.accounts import create_user, issue_key
from ci_common.api_keys import hash_api_key, is_same_hash, key_prefix
from ci_common.client_config import read_config
from ci_common.errors import CIError
from ci_common.models import DEFAULT_SCOPES, Role, User
from ci_common.repository import JobRepository

KEY_NAME = "ci-admin up"


@dataclass(frozen=True, slots=True)
class ClientSetup:
    """What the person's `ci` will do without being told more."""

    config: Path
    stored_server: str | None  # what the file says; None: the client's default
    works: bool  # the key in the file is good for this database
    user: User | None = None  # who was made, or found, for the key; None: the file's key is somebody else's
    written: bool = False


async def set_up_client(repository: JobRepository, config: Path, server: str, now: datetime) -> ClientSetup:
    """The file holds a key for this database, unless it held a foreign one before: that one is never replaced."""
    stored = read_config(config)
    if "api_key" in stored:
        owner = await _owner_of(repository, stored["api_key"], now)
        return ClientSetup(config, stored.get("server"), owner is not None, owner)
    owner = await _login_user(repository, now)
    issued = await issue_key(repository, owner, KEY_NAME, DEFAULT_SCOPES, None, now)
    settings = {"server": stored.get("server", server), "api_key": issued.secret}
    _append(config, {name: value for name, value in settings.items() if name not in stored})
    return ClientSetup(config, settings["server"], works=True, user=owner, written=True)


async def _owner_of(repository: JobRepository, secret: str, now: datetime) -> User | None:
    found = await repository.find_api_key(key_prefix(secret))
    if found is None or not is_same_hash(found[0].key_hash, hash_api_key(secret)):
        return None
    key, owner = found
    return owner if key.is_usable(now) and owner.is_active else None


async def _login_user(repository: JobRepository, now: datetime) -> User:
    name = getpass.getuser()
    email = f"{name}@localhost"
    return await repository.get_user_by_email(email) or await create_user(
        repository, name, email, Role.ADMIN, now
    )


def _append(config: Path, settings: Mapping[str, str]) -> None:
    """The lines stand at the end of the file, which only its owner can read."""
    try:
        config.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(config, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            before = file.read()
            separator = "\n" if before and not before.endswith("\n") else ""
            file.write(separator + "".join(f"{name}={value}\n" for name, value in settings.items()))
    except OSError as error:
        raise CIError(f"{config} cannot be written: {error.strerror}") from error
