"""From the options that every command shares to a client of the server they name."""

from collections.abc import Generator
from contextlib import contextmanager

from ci_client.client import CIClient
from ci_client.config import Connection, Flags, resolve
from ci_client.console import Console
from ci_common.api_keys import is_well_formed
from ci_common.errors import Unauthorized


@contextmanager
def connected(console: Console, flags: Flags) -> Generator[CIClient]:
    """Yield a client of the server in force; warnings about the connection have been shown."""
    with connected_to(console, resolve(flags)) as client:
        yield client


@contextmanager
def connected_to(console: Console, connection: Connection) -> Generator[CIClient]:
    """Yield a client of a server; warnings about the connection have been shown."""
    for warning in connection.warnings:
        console.warn(warning)

    def tell(problem: str) -> None:
        console.note(f"The connection to {connection.server_url} is broken ({problem}); trying again.")

    with CIClient(connection.server_url, connection.api_key, on_outage=tell) as client:
        try:
            yield client
        except Unauthorized as error:
            if is_well_formed(connection.api_key):
                raise
            # The server says the same to every bad key on purpose; that one is mistyped is seen here.
            raise Unauthorized(
                f"{error.detail} The key is not even well formed: was it copied whole?"
            ) from error
