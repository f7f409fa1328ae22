"""The agent as a whole, as far as it gets without a server."""

import asyncio
from pathlib import Path

import pytest

from ci_agent.composition import open_agent
from ci_agent.settings import AgentSettings


@pytest.mark.parametrize("word", ["drain", "stop"])
async def test_who_waits_for_the_server_ends_when_told_to(tmp_path: Path, word: str) -> None:
    settings = AgentSettings.model_validate(
        {"server_url": "http://127.0.0.1:9", "agent_key": "ci_no_key", "agent_data_dir": tmp_path}
    )
    async with open_agent(settings) as agent:
        running = asyncio.create_task(agent.run())
        await asyncio.sleep(0)
        getattr(agent, word)()
        async with asyncio.timeout(10):
            await running
