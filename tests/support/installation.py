"""A whole CI system of a test's own: real controller, real servers, real `ci` and `ci-admin`, one temp folder."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import psycopg
from click.testing import CliRunner

from ci_admin.cli import cli
from ci_controller.labels import INSTANCE
from ci_persistence.dialect import for_postgresql
from tests.support import plain_http
from tests.support.docker_cli import RUNNER_IMAGE, containers_of, docker
from tests.support.eventually import eventually
from tests.support.plain_http import NO_TLS
from tests.support.private_engine import PrivateEngine

FIXTURES = Path(__file__).parent.parent / "fixtures"
COMMANDS = Path(sys.executable).parent
# Tests ask as fast as they can; those of the limits set their own.
_UNLIMITED = {
    f"CI_MAX_{what}": "0"
    for what in ("REQUESTS_PER_KEY", "SUBMISSIONS_PER_KEY", "REQUESTS_PER_ADDRESS", "FAILED_KEYS_PER_ADDRESS")
}


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode(errors="replace")


@dataclass
class Daemon:
    """A process of ours whose output goes to a file."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)

    def terminate(self) -> int:
        """Ask it to end and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def is_alive(self) -> bool:
        """Return True; a daemon that has ended raises AssertionError with what it said last."""
        assert self.running, f"it ended: {self.tail()}"
        return True


class Served(Protocol):
    """Where the API is to be had: a server, or what stands before several."""

    @property
    def url(self) -> str: ...


@dataclass
class Installation:
    """Paths, processes and keys of one CI system."""

    root: Path
    prefix: str
    daemons: list[Daemon] = field(default_factory=list["Daemon"])
    keys: dict[str, str] = field(default_factory=dict[str, str])
    engine: PrivateEngine | None = None  # None: the host's
    image: str = RUNNER_IMAGE  # that its jobs run in
    keeps_environments: bool = (
        False  # most tests run one job of each: keeping what it installed only costs time
    )

    database_url: str | None = None  # of PostgreSQL; None: the database is a file

    @property
    def database(self) -> Path:
        return self.root / "ci_jobs.db"

    def environment(self, **extra: str) -> dict[str, str]:
        """Return an environment in which nothing of the developer's own set-up shows through."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CI_")}
        return {
            **inherited,
            "HOME": str(self.root),
            **self._where(),
            "CI_CONTAINER_PREFIX": self.prefix,
            "CI_RUNNER_IMAGE": self.image,
            "CI_CONFIG_FILE": str(self.root / "no-config"),
            "CI_WARM_CONTAINERS": "0",  # most tests count containers; those of this subject ask for some
            **({} if self.keeps_environments else {"CI_ENVIRONMENT_BYTES": "0"}),
            **_UNLIMITED,
            **extra,
        }

    def _where(self) -> dict[str, str]:
        if self.database_url is None:
            return {"CI_DB_PATH": str(self.database)}
        return {"CI_DATABASE_URL": self.database_url, "CI_DATA_DIR": str(self.root)}

    # -- processes -------------------------------------------------------------------------------------

    def start_controller(self, **env: str) -> Daemon:
        """A controller runs; use `wait_ready` for when it serves."""
        command = [str(COMMANDS / "ci-controller")]
        if self.engine:
            command, env = [*self.engine.inside, *command], {"DOCKER_HOST": self.engine.url, **env}
        return self._spawn("controller", command, env)

    def start_agent(self, server: Daemon, name: str = "rack", **env: str) -> Daemon:
        """An agent of that name runs, with a key and a spool of its own."""
        known = {
            "CI_SERVER_URL": server.url,
            "CI_AGENT_KEY": self.agent_key(name),
            "CI_AGENT_NAME": name,
            "CI_AGENT_DATA_DIR": str(self.root / f"agent-{name}"),
        }
        return self._spawn("agent", [str(COMMANDS / "ci-agent")], {**known, **env})

    def start_server(self, *, workers: int = 1, **env: str) -> Daemon:
        """A server answers on a free port, whatever the state of the database."""
        return self._serve(socket.create_server(("127.0.0.1", 0), backlog=128), workers, env)

    def restart_server(self, server: Daemon) -> Daemon:
        """Another server answers at the address of one that is gone; returns it."""
        port = int(server.url.rpartition(":")[2])
        return self._serve(socket.create_server(("127.0.0.1", port), backlog=128), 1, {})

    def _serve(self, listener: socket.socket, workers: int, env: dict[str, str]) -> Daemon:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.set_inheritable(True)
        command = [str(COMMANDS / "ci-server"), "--fd", str(listener.fileno())]
        if workers > 1:
            command += ["--workers", str(workers)]
        daemon = self._spawn("server", command, env, pass_fds=(listener.fileno(),))
        listener.close()
        daemon.url = url
        eventually(lambda: daemon.is_alive() and self.answers(daemon), what="the server's first answer")
        return daemon

    def start_program(self, name: str, command: list[str], env: dict[str, str]) -> Daemon:
        """That command runs over this installation, whatever it is and wherever."""
        return self._spawn(name, command, env)

    def wait_ready(self, server: Served, seconds: float = 30) -> None:
        """The server says that a controller serves its database."""
        ready = f"{server.url}/ready"
        eventually(lambda: plain_http.get(ready).status_code == 200, seconds=seconds, what="/ready")

    def start(self) -> Daemon:
        """A controller and a server run; returns the server."""
        self.start_controller()
        server = self.start_server()
        self.wait_ready(server)
        return server

    def stop(self) -> list[str]:
        """Every process is gone and every container of this installation; returns those that were left over."""
        self._wait_for_removals()
        for daemon in self.daemons:
            if daemon.running:
                daemon.process.send_signal(signal.SIGCONT)
                daemon.process.terminate()
        for daemon in self.daemons:
            try:
                daemon.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        left = self.containers()
        for container in left:
            self.remove(container)
        self._remove_images()
        return left

    def _remove_images(self) -> None:
        """No environment that jobs of this installation built is left on the engine."""
        if instance_id := self.instance_id():
            wanted = f"label={INSTANCE}={instance_id}"
            if images := self.docker("images", "-q", "--no-trunc", "--filter", wanted).split():
                self.docker("rmi", "-f", *images)

    def _wait_for_removals(self) -> None:
        """A verdict comes before its container goes: a controller that still runs is given the time for that."""
        if any(
            daemon.running and daemon.log.name.startswith(("controller", "agent")) for daemon in self.daemons
        ):
            with suppress(AssertionError):  # what is left is what the caller judges
                eventually(lambda: not self.containers(), what="the removal of every container", seconds=20)

    def _spawn(
        self, name: str, command: list[str], env: dict[str, str], pass_fds: tuple[int, ...] = ()
    ) -> Daemon:
        log = self.root / f"{name}-{len(self.daemons)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment(**env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
            )
        daemon = Daemon(process, log)
        self.daemons.append(daemon)
        return daemon

    def answers(self, server: Served) -> bool:
        """Tell whether the server says that it lives."""
        try:
            return plain_http.get(f"{server.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    # -- commands --------------------------------------------------------------------------------------

    def admin(self, *args: str) -> Done:
        """Run `ci-admin ARGS` to its end."""
        return self._run([str(COMMANDS / "ci-admin"), *args], self.environment(), self.root)

    def admin_json(self, *args: str) -> Any:
        """Return what `ci-admin ARGS --json` says, run in this process: that is quicker by half a second."""
        return json.loads(self._admin_in_process(*args, "--json"))

    def key(self, user: str = "ada") -> str:
        """Return an API key of that user, both made on first use."""
        if user not in self.keys:
            email = f"{user}@example.org"
            self._admin_in_process("user", "create", "--name", user, "--email", email)
            self.keys[user] = find_key(self.admin_json("key", "create", "--email", email, "--name", "test"))
        return self.keys[user]

    def agent_key(self, name: str) -> str:
        """Return the key of that agent, made on first use."""
        if f"agent {name}" not in self.keys:
            self.key()  # its user exists
            asked = ("--email", "ada@example.org", "--name", name, "--scope", "agent")
            self.keys[f"agent {name}"] = find_key(self.admin_json("key", "create", *asked))
        return self.keys[f"agent {name}"]

    def _admin_in_process(self, *args: str) -> str:
        """Return what `ci-admin ARGS` prints, run in this process: every test needs a key, none its half second."""
        done = CliRunner().invoke(cli, args, env=self.environment())
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.stdout

    def client_environment(self, server: Served, user: str = "ada") -> dict[str, str]:
        """Return the environment in which that user's `ci` talks to that server."""
        return self.environment(CI_SERVER_URL=server.url, CI_API_KEY=self.key(user))

    def ci(self, server: Served, *args: str, project: Path | None = None, user: str = "ada") -> Done:
        """Run `ci ARGS` in a project to its end."""
        return self._run(
            [str(COMMANDS / "ci"), *args], self.client_environment(server, user), project or self.root
        )

    def spawn_ci(
        self, server: Served, *args: str, project: Path | None = None, user: str = "ada"
    ) -> subprocess.Popen[bytes]:
        """Start `ci ARGS` with its output in pipes."""
        return subprocess.Popen(
            [str(COMMANDS / "ci"), *args],
            cwd=project or self.root,
            env=self.client_environment(server, user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def submit(self, server: Served, project: Path, *args: str, user: str = "ada") -> str:
        """Submit a project and return the job's id at once."""
        done = self.ci(server, "submit", "test", "--async", *args, project=project, user=user)
        assert done.code == 0, done.err
        prefix, _, job_id = done.text.strip().partition(": ")
        assert prefix == "Job submitted", done.text
        return job_id

    def http(self, server: Served, user: str = "ada") -> httpx.Client:
        """Return an HTTP client with that user's key."""
        headers = {"Authorization": f"Bearer {self.key(user)}"}
        return httpx.Client(base_url=server.url, headers=headers, timeout=60, verify=NO_TLS, trust_env=False)

    def job(self, server: Served, job_id: str, user: str = "ada") -> dict[str, Any]:
        """Return the job as the API shows it."""
        with self.http(server, user) as http:
            return http.get(f"/jobs/{job_id}").raise_for_status().json()

    def log(self, server: Served, job_id: str, user: str = "ada", *, attempt: int | None = None) -> bytes:
        """Return the job's log, of its last attempt unless told otherwise, as the API gives it."""
        which = "" if attempt is None else f"?attempt={attempt}"
        with self.http(server, user) as http:
            return http.get(f"/jobs/{job_id}/log{which}").raise_for_status().content

    def wait(self, server: Served, job_id: str, seconds: float = 90, *, user: str = "ada") -> dict[str, Any]:
        """Return the job once it is terminal."""

        def finished() -> dict[str, Any] | None:
            job = self.job(server, job_id, user)
            return job if job["success"] is not None else None

        return eventually(finished, seconds=seconds, what=f"the end of job {job_id}")

    @staticmethod
    def _run(command: list[str], env: dict[str, str], cwd: Path) -> Done:
        done = subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=400
        )
        return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    # -- state -----------------------------------------------------------------------------------------

    def query(self, sql: str, *args: str) -> list[tuple[Any, ...]]:
        """Return rows of the database, read past our own code."""
        if self.database_url is not None:
            with psycopg.connect(self.database_url) as db:
                return db.execute(for_postgresql(sql), args).fetchall()
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(sql, args).fetchall()
        finally:
            connection.close()

    def instance_id(self) -> str | None:
        """Return the installation's id, None before there is a schema."""
        if self.database_url is None and not self.database.exists():
            return None
        rows = self.query(
            "SELECT name FROM sqlite_master WHERE name = 'installation'"
            if self.database_url is None
            else "SELECT tablename FROM pg_tables WHERE tablename = 'installation'"
        )
        return self.query("SELECT instance_id FROM installation")[0][0] if rows else None

    def containers(self) -> list[str]:
        """Return the ids of this installation's containers, those of its agents included."""
        return [one for instance in self._instances() for one in containers_of(instance, self.docker)]

    def _instances(self) -> list[str]:
        instance_id = self.instance_id()
        if instance_id is None:
            return []
        return [instance_id, *(row[0] for row in self.query("SELECT id FROM agents"))]

    def remove(self, container: str) -> None:
        """The container is gone, whoever removes it at the same time."""
        eventually(
            lambda: self._try_to_remove(container), seconds=60, what=f"the removal of container {container}"
        )

    def _try_to_remove(self, container: str) -> bool:
        try:
            self.docker("rm", "-f", container)
        except AssertionError as error:
            return "No such container" in str(error)
        return True

    def docker(self, *args: str, check: bool = True) -> str:
        """Return what `docker ARGS` prints, asked of this installation's engine."""
        ask = self.engine.docker if self.engine else docker
        return ask(*args, check=check)

    def tell(self, container: str, path: str = "/tmp/enough") -> None:
        """The file is in the container: what its tests wait for."""
        tell(self.docker, container, path)


def tell(docker: Callable[..., str], container: str, path: str = "/tmp/enough") -> None:
    """The file is in that container of the engine.

    Asked again, because between installing and testing the harness kills everything else in its container,
    a `docker exec` of ours with it (exit code 137, no message).
    """
    told = ("exec", container, "sh", "-c", f"touch {path} && echo told")
    eventually(lambda: docker(*told, check=False) == "told", seconds=60, what=f"{path} in {container}")


def find_key(issued: dict[str, Any]) -> str:
    """Return the secret in the JSON of `ci-admin key create`."""
    return next(value for value in issued.values() if isinstance(value, str) and value.count("_") == 3)


def make_project(root: Path, files: dict[str, str | bytes]) -> Path:
    """A folder holds these files; returns it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root
