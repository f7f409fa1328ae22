"""Fixtures that the tests of the server share: a database with its stores, a user, and a server that answers."""

from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from tests.support.server import Account, Site, client, open_site, serving


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    async with open_site(tmp_path) as opened:
        yield opened


@pytest.fixture
async def ada(site: Site) -> Account:
    return await site.account("ada")


@pytest.fixture
async def http(site: Site, ada: Account) -> AsyncGenerator[httpx.AsyncClient, None]:
    with serving(site.settings) as url:
        async with client(url, ada) as opened:
            yield opened
