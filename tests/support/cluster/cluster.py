"""A cluster, described and built: PostgreSQL, replicas behind one address, controllers, agents with their engines.

Every process runs on a host of its own (`network.py`) and knows the others by their addresses. What the servers and the
controllers share is a directory, as they would a mounted one; the agents see nothing of it.
"""

import secrets
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.cluster.network import Host, Network, network, share
from tests.support.eventually import eventually
from tests.support.in_memory import in_memory
from tests.support.installation import COMMANDS, Daemon, Installation
from tests.support.postgres import Cluster as Postgres
from tests.support.private_engine import PrivateEngine, engine_in

PORT: Final = 8000
_FRONT, _DATABASE, _REPLICA, _CONTROLLER, _AGENT = (
    2,
    10,
    20,
    30,
    40,
)  # addresses, or the first of them less one
_PATIENCE: Final = 120  # seconds: many processes begin at the same time, perhaps on two cores that are busy
_OF_THE_CONTROL_PLANE: Final = ("CI_DATABASE_URL", "CI_DATA_DIR", "CI_DB_PATH")  # nothing for agents


@dataclass(frozen=True)
class Layout:
    """How many of what there are, and what they are told. A stand-by is one more controller."""

    replicas: int = 2
    controllers: int = 1
    agents: int = 3
    slots: int = 2  # of each agent
    lease: float = 30.0  # seconds
    max_attempts: int = 3


@dataclass(frozen=True)
class Front:
    """The one address in front of the replicas."""

    url: str


@dataclass
class Machine:
    """A host, the one program of ours on it, and how that is started there."""

    name: str
    host: Host
    command: Sequence[str]
    settings: dict[str, str]
    system: Installation
    daemon: Daemon | None = None  # the one that was started last

    @property
    def running(self) -> Daemon:
        assert self.daemon is not None, f"{self.name} was never started"
        return self.daemon

    @property
    def url(self) -> str:
        """Return where the program answers, if it is a replica."""
        return f"http://{self.host.address}:{PORT}"

    def start(self) -> Daemon:
        """The program runs, whatever it says yet."""
        command = [*self.host.inside, *self.command]
        self.daemon = self.system.start_program(self.name, command, self.settings)
        return self.daemon

    def pause(self) -> None:
        """The program stands still, and its connections stay."""
        self.running.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.running.process.send_signal(signal.SIGCONT)


@dataclass
class AgentMachine(Machine):
    """A host with an engine, and the agent on it."""

    engine: PrivateEngine = field(kw_only=True)


@dataclass
class Cluster:
    """Everything of one cluster that a test or a demo takes hold of; `system` has keys, commands and questions."""

    layout: Layout
    network: Network
    system: Installation
    database: Postgres
    front: Front
    replicas: list[Machine]
    controllers: list[Machine]
    agents: list[AgentMachine] = field(default_factory=list["AgentMachine"])

    @property
    def machines(self) -> list[Machine]:
        return [*self.replicas, *self.controllers, *self.agents]

    def agent(self, name: str) -> AgentMachine:
        return next(one for one in self.agents if one.name == name)

    def containers(self) -> list[str]:
        """Return the ids of all containers on all engines, running or not."""
        return [
            one for agent in self.agents for one in agent.engine.docker("ps", "-aq", "--no-trunc").split()
        ]

    def wait_ready(self) -> None:
        """Each replica answers and knows of a controller that serves; every agent is heard of."""
        for replica in self.replicas:
            eventually(
                lambda one=replica: one.running.is_alive() and self.system.answers(one),
                seconds=_PATIENCE,
                what=f"the first answer of {replica.name}",
            )
            self.system.wait_ready(replica, _PATIENCE)
        eventually(lambda: not self.silent(), what="a heartbeat of every agent", seconds=_PATIENCE)

    def silent(self) -> list[str]:
        """Return the agents that the control plane does not call healthy."""
        told = self.system.admin_json("agent", "list")
        healthy = {one["name"] for one in told if one["health"] == "healthy" and one["state"] == "active"}
        return [one.name for one in self.agents if one.name not in healthy]

    def mend(self) -> None:
        """Everybody runs, is joined to the network and is heard of, whatever was done to them."""
        for machine in self.machines:
            machine.host.join()
            if machine.running.running:
                machine.resume()
            else:
                machine.start()
        self.wait_ready()

    def stop(self) -> None:
        """Every process was told to end, did so in good order, and left no container behind."""
        eventually(lambda: not self.containers(), what="the removal of every container", seconds=_PATIENCE)
        for machine in reversed(self.machines):  # agents take their leave while there is somebody to hear it
            code = machine.running.terminate()
            assert code == 0, f"{machine.name} ended with {code}: {machine.running.tail()}"


def _nothing(_text: str) -> None:
    """Say nothing."""


@contextmanager
def cluster(
    root: Path, image: str, layout: Layout | None = None, say: Callable[[str], None] = _nothing
) -> Generator[Cluster]:
    """A cluster that runs and is ready, with its shared directory and its logs below `root`.

    Nothing of it is left afterwards but these files; `say` is told what is going on.
    """
    layout = layout or Layout()
    with ExitStack() as stack:
        net = stack.enter_context(network())
        made = _control_plane(stack, net, root, image, layout)
        try:
            _start(stack, made, image, say)
            yield made
        finally:
            _kill(made)


def _start(stack: ExitStack, made: Cluster, image: str, say: Callable[[str], None]) -> None:
    """Everything runs, and is ready."""
    saved = stack.enter_context(_saving(image))
    say(f"network {made.network.subnet}.0/24, PostgreSQL at {made.network.subnet}.{_DATABASE}")
    for machine in (*made.controllers, *made.replicas):
        machine.start()
        say(f"{machine.name} at {machine.host.address}")
    for number in range(1, made.layout.agents + 1):
        agent = _agent(stack, made, number, saved)
        agent.start()
        say(f"{agent.name} at {agent.host.address}, with an engine of its own and the image")
    made.wait_ready()
    say(f"ready; the replicas are at {made.front.url}")


def _control_plane(stack: ExitStack, net: Network, root: Path, image: str, layout: Layout) -> Cluster:
    """PostgreSQL runs, with an empty schema; everything else is described."""
    host = net.host("db", _DATABASE)
    database = Postgres(host.address, host.inside)
    stack.callback(database.remove)
    url = _database_url(database, host, root)
    system = Installation(root, "ci-cluster-", image=image, database_url=url)
    known = {"CI_AGENT_LEASE": str(layout.lease), "CI_MAX_ATTEMPTS": str(layout.max_attempts)}
    replicas = [_replica(net, system, number, known) for number in range(1, layout.replicas + 1)]
    front = net.host("front", _FRONT)
    share(front, PORT, [one.host for one in replicas])
    controllers = [_controller(net, system, number, known) for number in range(1, layout.controllers + 1)]
    return Cluster(
        layout, net, system, database, Front(f"http://{front.address}:{PORT}"), replicas, controllers
    )


def _database_url(database: Postgres, host: Host, root: Path) -> str:
    """A database with an owner and a password is there; returns how to reach it, which is not the password."""
    password = secrets.token_hex(16)
    database.execute(f"CREATE ROLE ci LOGIN PASSWORD '{password}'")
    database.execute("CREATE DATABASE ci OWNER ci")
    passwords = root / "pgpass"
    passwords.touch(mode=0o600)
    passwords.write_text(f"{host.address}:5432:ci:ci:{password}\n")
    return f"postgresql://ci@{host.address}/ci?passfile={passwords}"


def _replica(net: Network, system: Installation, number: int, settings: dict[str, str]) -> Machine:
    host = net.host(f"server-{number}", _REPLICA + number)
    command = [str(COMMANDS / "ci-server"), "--host", host.address, "--port", str(PORT)]
    return Machine(f"server-{number}", host, command, settings, system)


def _controller(net: Network, system: Installation, number: int, settings: dict[str, str]) -> Machine:
    host = net.host(f"controller-{number}", _CONTROLLER + number)
    command = [str(COMMANDS / "ci-controller"), "--no-local-runner"]
    return Machine(f"controller-{number}", host, command, settings, system)


def _agent(stack: ExitStack, made: Cluster, number: int, saved: Callable[[], Path]) -> AgentMachine:
    """An engine runs on a host of its own and has the image; the agent is described."""
    name = f"agent-{number}"
    host = made.network.host(name, _AGENT + number)
    engine = stack.enter_context(engine_in(host.namespace))
    with saved().open("rb") as image:
        engine.load_from(image)
    settings = {
        "DOCKER_HOST": engine.url,
        "CI_SERVER_URL": made.front.url,
        "CI_AGENT_KEY": made.system.agent_key(name),
        "CI_AGENT_NAME": name,
        "CI_AGENT_DATA_DIR": str(made.system.root / name),
        "CI_MAX_RUNNING_JOBS": str(made.layout.slots),
    }
    without = [part for known in _OF_THE_CONTROL_PLANE for part in ("-u", known)]
    command = ["env", *without, str(COMMANDS / "ci-agent")]
    agent = AgentMachine(name, host, command, settings, made.system, engine=engine)
    made.agents.append(agent)
    return agent


@contextmanager
def _saving(image: str) -> Generator[Callable[[], Path]]:
    """Yield what waits for a file with the image, from which each engine loads it; it is being written meanwhile."""
    with tempfile.NamedTemporaryFile(prefix="ci-cluster-", suffix=".tar", dir=in_memory()) as file:
        saving = subprocess.Popen(["docker", "save", image], stdout=file)

        def saved() -> Path:
            assert saving.wait(timeout=120) == 0, f"docker save {image}"
            return Path(file.name)

        try:
            yield saved
        finally:
            saving.kill()
            saving.wait()


def _kill(made: Cluster) -> None:
    """None of the programs runs, also where they stood still."""
    for daemon in made.system.daemons:
        if daemon.running:
            daemon.kill()
