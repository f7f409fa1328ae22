"""`ci-admin network …`: what the controller set up on this host beside containers."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from ci_admin.session import answer, record_act, with_database
from ci_common.models import AuditAction


@click.group()
def network() -> None:
    """The jobs' network: its bridge and the rules around it."""


@network.command()
@click.option("--name", help="Only this network; by default every jobs' network of this host.")
@with_database
def remove(name: str | None, db_path: Path | None, as_json: bool) -> None:
    """Remove networks that no job is on, and their rules; for when the system leaves this host.

    Stop the controllers first: one that runs sets its rules again within two seconds. What was removed stands
    in the audit trail of the database.
    """
    removed = asyncio.run(_remove(name))
    for network_name in removed:
        record_act(db_path, AuditAction.NETWORK_REMOVE, network_name)
    text = f"Removed, with its rules: {', '.join(removed)}" if removed else "Nothing to remove."
    answer({"removed": removed}, text, as_json=as_json)


async def _remove(name: str | None) -> Sequence[str]:
    # Here, not above: `--help` need not wait for the libraries of the engine.
    from ci_common.settings import read_settings
    from ci_controller.container_manager import ContainerManager
    from ci_controller.settings import ControllerSettings

    manager = ContainerManager(network=read_settings(ControllerSettings).network_options)
    try:
        return await manager.remove_networks(name)
    finally:
        await manager.close()
