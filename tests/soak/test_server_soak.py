"""The server under as many bad clients as the fault catalogue names; `CI_SOAK=1` runs it."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.support.bad_clients import hold_slow_heads, hold_stalled_readers
from tests.support.server import Site, open_site
from tests.support.soak import soak_only

pytestmark = soak_only


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    async with open_site(tmp_path) as opened:
        yield opened


async def test_500_slow_heads_do_not_stop_service(site: Site) -> None:
    await hold_slow_heads(site, 500)


async def test_500_stalled_readers_cost_little_and_are_reset(site: Site) -> None:
    await hold_stalled_readers(site, await site.account(), 500, mebibytes=150)
