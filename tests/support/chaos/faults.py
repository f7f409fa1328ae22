"""The faults, one line of a table each, and the agent that draws them."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from ci_common.clock import utcnow
from ci_controller.job_network import bridge_for
from ci_controller.network_rules import Destination, chain_through, chain_to_host
from tests.support.chaos.judging import damage
from tests.support.chaos.plant import ENVIRONMENT, Crew, Plant
from tests.support.chaos.workload import KINDS
from tests.support.docker_cli import docker
from tests.support.installation import Daemon, find_key
from tests.support.raw_http import connect, form_of, head, upload_head

PAUSE_SECONDS: Final = 2.0  # between two faults, on average
BRIDGE: Final = bridge_for((), (Destination.parse(ENVIRONMENT["CI_JOB_NETWORK_ALLOW"]),))


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong; `act` returns when it is over and says what it did."""

    name: str
    weight: int
    act: Callable[["Agent"], str]
    ends_processes: bool = False


@dataclass
class Agent:
    """Draws faults and lets them happen, one at a time."""

    plant: Plant
    crew: Crew
    chance: Random
    done: dict[str, int]

    def work(self, *, ending_processes: bool) -> None:
        """Faults happen until the crew is called off; each is in the book before and after."""
        deck: list[Fault] = []
        while not self.crew.off.wait(min(self.chance.expovariate(1 / PAUSE_SECONDS), 8)):
            if not deck:
                deck = self._shuffled(ending_processes=ending_processes)
            fault = deck.pop()
            self.plant.book.write(f"fault {fault.name} …")
            said = fault.act(self)
            self.plant.book.write(f"fault {fault.name}: {said}")
            self.done[fault.name] = self.done.get(fault.name, 0) + 1
            self.plant.still_runs()

    def _shuffled(self, *, ending_processes: bool) -> list[Fault]:
        """Return every fault as often as its weight says: dealt like cards, so that none is left out for long."""
        deck = [
            one for one in FAULTS for _ in range(one.weight) if ending_processes or not one.ends_processes
        ]
        self.chance.shuffle(deck)
        return deck

    def hold(self, least: float, most: float) -> str:
        """Let what is wrong be wrong for a while; ends early when the crew is called off."""
        seconds = self.chance.uniform(least, most)
        self.crew.off.wait(seconds)
        return f"{seconds:.1f} s"


# -- processes ---------------------------------------------------------------------------------------------


def _kill_controller(agent: Agent) -> str:
    agent.plant.controller.kill()
    said = agent.hold(0, 2)
    agent.plant.restart_controller()
    return f"gone for {said}"


def _terminate_controller(agent: Agent) -> str:
    code = agent.plant.controller.terminate()
    _ended_as_asked(code, agent.plant.controller)
    agent.plant.restart_controller()
    return f"ended with {code}"


def _pause_controller(agent: Agent) -> str:
    return _pause(agent, agent.plant.controller.process.pid)


def _kill_server(agent: Agent) -> str:
    index = agent.chance.randrange(len(agent.plant.servers))
    agent.plant.servers[index].kill()
    agent.plant.server_kills += 1
    said = agent.hold(0, 2)
    agent.plant.restart_server(index)
    return f"server {index + 1} gone for {said}"


def _terminate_server(agent: Agent) -> str:
    index = agent.chance.randrange(len(agent.plant.servers))
    server = agent.plant.servers[index]
    code = server.terminate()
    _ended_as_asked(code, server)
    agent.plant.restart_server(index)
    return f"server {index + 1} ended with {code}"


def _ended_as_asked(code: int, daemon: Daemon) -> None:
    """One that was only just started, and is still importing, dies of the signal itself: it has done nothing yet."""
    assert code == 0 or (code == -signal.SIGTERM and not daemon.tail()), f"SIGTERM: {code} {daemon.tail()}"


def _pause_server(agent: Agent) -> str:
    server = agent.chance.choice(agent.plant.servers)
    return _pause(agent, server.process.pid)


def _pause(agent: Agent, pid: int) -> str:
    os.kill(pid, signal.SIGSTOP)
    try:
        return f"stood still for {agent.hold(0.2, 5)}"
    finally:
        os.kill(pid, signal.SIGCONT)


# -- the engine --------------------------------------------------------------------------------------------


def _end_container(agent: Agent, *command: str) -> str:
    running = agent.plant.containers()
    if not running:
        return "none ran"
    container, job_id, attempt = agent.chance.choice(running)
    job = agent.plant.ledger.jobs.get(job_id)
    if job is None:  # its submitter was not answered yet
        return "its job is not acknowledged"
    job.kills += 1
    docker(*command, container, check=False)  # it may be gone by now
    return f"attempt {attempt} of job {job.number} {job.kind.name}"


def _kill_container(agent: Agent) -> str:
    return _end_container(agent, "kill")


def _remove_container(agent: Agent) -> str:
    return _end_container(agent, "rm", "-f")


def _engine_down(agent: Agent) -> str:
    agent.plant.engine.down()
    try:
        return agent.hold(0.5, 6)
    finally:
        agent.plant.engine.up()


def _engine_hangs(agent: Agent) -> str:
    agent.plant.engine.hang()
    try:
        return agent.hold(0.5, 4)
    finally:
        agent.plant.engine.flow()


def _answer_lost(agent: Agent) -> str:
    path = agent.chance.choice([b"/containers/create", b"/start", b"/kill"])
    agent.plant.engine.lose_answer_to(b"POST", path)
    return path.decode()


def _flush_firewall(agent: Agent) -> str:
    for command in ("iptables", "ip6tables"):
        for chain in (chain_to_host(BRIDGE), chain_through(BRIDGE)):
            subprocess.run([command, "-w", "-F", chain], capture_output=True, check=False)
    return BRIDGE


# -- people ------------------------------------------------------------------------------------------------


def _renew_key(agent: Agent) -> str:
    plant, user = agent.plant, agent.chance.choice(agent.plant.users)
    email = f"{user}@example.org"
    issued = plant.admin("key", "create", "--email", email, "--name", "chaos", "--json")
    plant.system.keys[user] = find_key(json.loads(issued.out))
    old = plant.system.query(
        "SELECT k.id, k.prefix FROM api_keys k JOIN users u ON u.id = k.user_id WHERE u.email = ? AND k.is_active = 1",
        email,
    )
    for key_id, prefix in old:
        if not plant.system.keys[user].startswith(f"{prefix}_"):
            plant.admin("key", "revoke", key_id)
    return f"{user}, {len(old) - 1} revoked"


def _lock_out(agent: Agent) -> str:
    """A user is deactivated with jobs in the queue and running, which are cancelled, and let in again."""
    plant, user = agent.plant, agent.chance.choice(agent.plant.users)
    since = utcnow().isoformat()
    try:
        plant.absences.append((user, since, "9"))  # until we know better
        plant.admin("user", "deactivate", f"{user}@example.org")
        said = agent.hold(0.2, 3)
    finally:
        plant.admin("user", "activate", f"{user}@example.org")
        plant.absences[-1] = (user, since, utcnow().isoformat())
    return f"{user} for {said}"


def _stalled_readers(agent: Agent) -> str:
    jobs = [one for one in agent.plant.ledger.open() if one.kind.kibibytes > 100] or agent.plant.ledger.open()
    with ExitStack() as held:
        for job in jobs[:5]:
            url = agent.chance.choice(agent.plant.urls)
            key = agent.plant.system.keys[job.user]
            reader = held.enter_context(connect(url, receive_buffer=4096))
            path = f"/jobs/{job.job_id}/stream?from_beginning=true"
            reader.sendall(head("GET", path, Authorization=f"Bearer {key}"))
        return f"{len(jobs[:5])} for {agent.hold(1, 8)}"


def _cut_upload(agent: Agent) -> str:
    """Half an upload arrives, slowly, and its connection is reset."""
    user = agent.chance.choice(agent.plant.users)
    form = form_of(KINDS[0].archive(0))
    # A server that refuses the key does so before it has read everything.
    cut = agent.chance.randrange(len(form))
    with connect(agent.chance.choice(agent.plant.urls)) as connection, suppress(ConnectionError):
        connection.sendall(upload_head("/submit-async", agent.plant.system.keys[user], len(form)))
        for begin in range(0, cut, 1 << 18):
            connection.sendall(form[begin : min(cut, begin + (1 << 18))])
            agent.hold(0, 0.3)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return f"cut at {cut} of {len(form)} bytes"


# -- the operator ------------------------------------------------------------------------------------------


def _prune(agent: Agent) -> str:
    said = agent.plant.admin("prune").text.strip().splitlines()
    return said[-1] if said else ""


def _back_up(agent: Agent) -> str:
    folder = agent.plant.system.root / "backup"
    agent.plant.admin("backup", str(folder))
    try:
        [database] = [one for one in folder.rglob("*") if one.is_file() and _is_database(one)]
        for flaw in damage(str(database)):
            agent.plant.book.problem(flaw)
        return database.name
    finally:
        shutil.rmtree(folder)


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


def _lock_database(agent: Agent) -> str:
    locker = sqlite3.connect(agent.plant.system.database, isolation_level=None, timeout=30)
    try:
        locker.execute("BEGIN EXCLUSIVE")
        return agent.hold(0.5, 8)
    finally:
        locker.close()


FAULTS: Final = (
    Fault("kill -9 controller", 6, _kill_controller, ends_processes=True),
    Fault("kill -9 server", 5, _kill_server, ends_processes=True),
    Fault("terminate controller", 3, _terminate_controller, ends_processes=True),
    Fault("terminate server", 2, _terminate_server, ends_processes=True),
    Fault("pause controller", 2, _pause_controller),
    Fault("pause server", 2, _pause_server),
    Fault("kill container", 3, _kill_container),
    Fault("remove container", 3, _remove_container),
    Fault("engine down", 2, _engine_down),
    Fault("engine hangs", 2, _engine_hangs),
    Fault("answer lost", 3, _answer_lost),
    Fault("flush firewall", 2, _flush_firewall),
    Fault("renew key", 2, _renew_key),
    Fault("lock user out", 1, _lock_out),
    Fault("stalled readers", 2, _stalled_readers),
    Fault("cut upload", 3, _cut_upload),
    Fault("prune", 2, _prune),
    Fault("back up", 1, _back_up),
    Fault("lock database", 2, _lock_database),
)
