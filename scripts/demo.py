"""`make demo`: everything real, from an empty folder to a verdict, and nothing left behind but what saves time.

It starts a controller and a server over a scratch directory, makes a user and a key with `ci-admin`, runs
`ci submit test` in a sample project, stops what it started and exits with the job's code.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = Path(sys.executable).parent
READY_SECONDS = 30.0
STOP_SECONDS = 10.0
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to ourselves
LOG_TAIL = 25  # lines
FIRST_CODE_OF_OURS = 64  # below are pytest's own: the tests had their say


class DemoFailed(Exception):
    """Something other than the tests of the sample project went wrong."""


class Stage:
    """The scratch directory, its environment and the processes that were started over it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.prefix = f"ci-demo-{os.getpid()}-"
        self.port = _free_port()
        self.server = f"http://127.0.0.1:{self.port}"
        self.environment = _clean_environment() | {
            "CI_DB_PATH": str(scratch / "ci_jobs.db"),
            "CI_CONTAINER_PREFIX": self.prefix,
            "CI_SERVER_URL": self.server,
        }
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        """The daemon runs in a session of its own, so that Ctrl-C reaches only what should hear it."""
        with (self.scratch / f"{name}.log").open("wb") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                cwd=self.scratch,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """The server says that it and the controller can take a job; raises DemoFailed."""
        deadline = time.monotonic() + READY_SECONDS
        answer = "no answer yet"
        while time.monotonic() < deadline:
            self._raise_if_a_daemon_ended()
            ready, answer = _ask_ready(self.server)
            if ready:
                return
            time.sleep(0.05)
        raise DemoFailed(f"the system was not ready within {READY_SECONDS:.0f} s: {answer}")

    def _raise_if_a_daemon_ended(self) -> None:
        for name, process in self.daemons.items():
            if process.poll() is not None:
                raise DemoFailed(f"the {name} ended with exit code {process.returncode}")

    def run_json(self, command: Sequence[str]) -> dict[str, str]:
        """Run a command with `--json` and return what it says; raises DemoFailed with its complaint."""
        result = subprocess.run([*command, "--json"], env=self.environment, capture_output=True, text=True)
        if result.returncode != 0:
            raise DemoFailed(f"{Path(command[0]).name} failed: {result.stderr.strip()}")
        return json.loads(result.stdout)

    def show_logs(self) -> None:
        """The last lines of every daemon's log are on stderr."""
        for log in sorted(self.scratch.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
            print(f"\n--- the last lines of {log.stem} ---", *lines, sep="\n", file=sys.stderr)

    def stop(self) -> None:
        """No process and no container of this demo is left, however often Ctrl-C is pressed meanwhile."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for process in self.daemons.values():
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.daemons.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._remove_containers()

    def _remove_containers(self) -> None:
        # A controller that stops leaves running jobs to its successor; here there will be none.
        listing = ["docker", "ps", "--all", "--quiet", "--filter", f"name=^/{self.prefix}"]
        found = subprocess.run(listing, capture_output=True, text=True).stdout.split()
        if found:
            subprocess.run(["docker", "rm", "--force", *found], capture_output=True)


def _clean_environment() -> dict[str, str]:
    """Return our environment without settings of some other installation; what names the engine stays."""
    kept = {"CI_RUNNER_IMAGE", "CI_CA_BUNDLE"}
    return {name: value for name, value in os.environ.items() if not name.startswith("CI_") or name in kept}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _ask_ready(server: str) -> tuple[bool, str]:
    try:
        with DIRECTLY.open(f"{server}/ready", timeout=2) as response:
            return response.status == 200, ""
    except urllib.error.HTTPError as error:
        with error:
            return False, error.read().decode(errors="replace")
    except OSError as error:
        return False, str(error)


@contextlib.contextmanager
def _stage() -> Generator[Stage]:
    scratch = Path(tempfile.mkdtemp(prefix="ci-demo-"))
    stage = Stage(scratch)
    try:
        yield stage
    except DemoFailed:
        stage.show_logs()
        raise
    finally:
        stage.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def _heading(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def _command(name: str) -> str:
    return str(COMMANDS / name)


def _start_daemons(stage: Stage) -> None:
    _heading(f"1. Start a controller and a server ({stage.server}) over {stage.scratch}")
    stage.start("controller", [_command("ci-controller")])
    stage.start("server", [_command("ci-server"), "--port", str(stage.port)])
    stage.wait_until_ready()
    print("both are ready")


def _make_account(stage: Stage) -> None:
    _heading("2. Make a user and an API key")
    admin = _command("ci-admin")
    email = "demo@example.com"
    print(f'$ ci-admin user create --name "Demo" --email {email}')
    user = stage.run_json([admin, "user", "create", "--name", "Demo", "--email", email])
    print(f"user {user['id']}")
    print(f'$ ci-admin key create --email {email} --name "demo"')
    key = stage.run_json([admin, "key", "create", "--email", email, "--name", "demo"])
    stage.environment["CI_API_KEY"] = key["api_key"]
    print(f"key {key['prefix']}… (known to the commands below as CI_API_KEY)")


def _submit(stage: Stage, project: Path) -> int:
    _heading(f"3. Test {project.name} in a fresh container")
    print(f"$ cd {_shown(project)} && ci submit test", flush=True)
    return subprocess.run([_command("ci"), "submit", "test"], cwd=project, env=stage.environment).returncode


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _say_what_next(code: int, seconds: float) -> None:
    verdict = "the tests passed" if code == 0 else f"the tests did not pass (exit code {code})"
    _heading(f"Done in {seconds:.1f} s: {verdict}; what was started is stopped again")
    print(
        "For daily use:\n"
        f"  {ROOT}/.venv/bin/ci-admin up         starts controller and server; leave it running\n"
        f"  {ROOT}/.venv/bin/ci submit test      in another terminal, in a project of yours"
    )


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo and return the exit code of the job, 70 when it did not come to one, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", type=Path, nargs="?", default=ROOT / "examples" / "hello")
    project: Path = parser.parse_args().project.resolve()
    signal.signal(signal.SIGTERM, _as_interrupt)
    started = time.monotonic()
    try:
        with _stage() as stage:
            _start_daemons(stage)
            _make_account(stage)
            code = _submit(stage, project)
            if code >= FIRST_CODE_OF_OURS:
                stage.show_logs()
    except DemoFailed as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 70
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything it started is stopped", file=sys.stderr)
        return 130
    _say_what_next(code, time.monotonic() - started)
    return code


if __name__ == "__main__":
    sys.exit(main())
