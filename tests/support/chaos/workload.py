"""Jobs whose outcome is known before they run, from projects that bring what they need and download nothing."""

import hashlib
import inspect
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

MAX_ATTEMPTS: Final = 3
MEMORY: Final = 384 * 1024**2
TIMEOUT_SECONDS: Final = 12  # of the jobs that are meant to pass it; installing takes one or two


def payload(number: int, kibibytes: int) -> bytes:
    """Return bytes that look random, are no UTF-8, and are the same wherever they are made."""
    return b"".join(hashlib.sha256(b"%d:%d" % (number, part)).digest() for part in range(kibibytes * 32))


_WRITING: Final = f"""import hashlib, os, time

{inspect.getsource(payload)}

def write(number, kibibytes):
    rest = memoryview(payload(number, kibibytes))
    while rest:
        rest = rest[os.write(1, rest[:30_000]):]

"""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of job: what its test does after it has written, and how it may end."""

    name: str
    weight: int
    body: str
    outcomes: frozenset[str]  # reasons, or `passed`
    kibibytes: int = 1  # of deterministic output, before `body`
    whole: bool = True  # its output is always complete when it ends as it should
    timeout: float | None = None
    cancelled: bool = False  # its submitter cancels it at a random moment
    requirements: str = "pytest"

    def files(self, number: int) -> dict[str, bytes]:
        """Return the project of the job with that number."""
        indented = "\n".join(f"    {line}" for line in self.body.splitlines())
        code = f"{_WRITING}def test_it():\n    write({number}, {self.kibibytes})\n{indented}\n"
        requirements = f"--no-index\n--find-links wheels\n{self.requirements}\n"
        return {"test_it.py": code.encode(), "requirements.txt": requirements.encode(), **wheels()}

    def archive(self, number: int) -> bytes:
        """Return that project as an upload."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for path, content in self.files(number).items():
                archive.writestr(path, content)
        return packed.getvalue()

    @property
    def pytest_args(self) -> tuple[str, ...]:
        return ("-s", "-p", "no:cacheprovider")


PASSED: Final = "passed"
KINDS: Final = (
    Kind("passing", 6, "pass", frozenset({PASSED})),
    Kind("slow", 4, "time.sleep(4)\nwrite(0, 1)", frozenset({PASSED})),
    Kind("failing", 4, "assert 1 == 2", frozenset({"tests_failed"})),
    Kind("crashing", 2, "os._exit(3)", frozenset({"crashed"})),
    Kind("dying", 2, "os.kill(os.getpid(), 11)", frozenset({"crashed"})),
    Kind("heavy", 3, "pass", frozenset({PASSED}), kibibytes=1500),
    Kind("late", 1, "time.sleep(600)", frozenset({"timeout"}), whole=False, timeout=TIMEOUT_SECONDS),
    Kind("endless", 2, "time.sleep(600)", frozenset({"cancelled"}), whole=False, cancelled=True),
    Kind("raced", 2, "time.sleep(1)", frozenset({"cancelled", PASSED}), cancelled=True),
    Kind(
        "greedy",
        1,
        "held = []\nwhile True: held.append(bytearray(16 << 20))",
        frozenset({"oom"}),
        whole=False,
    ),
    Kind(
        "uninstallable",
        1,
        "pass",
        frozenset({"install_failed"}),
        whole=False,
        requirements="no-such-package-of-ours",
    ),
)
BY_NAME: Final[Mapping[str, Kind]] = {kind.name: kind for kind in KINDS}


@cache
def wheels() -> Mapping[str, bytes]:
    """Return pytest and what it needs as files of a project: so the index's bad moments are not ours."""
    with tempfile.TemporaryDirectory(prefix="ci-chaos-wheels-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*command, "--only-binary", ":all:", "--dest", folder, "pytest"], check=True, capture_output=True
        )
        return {f"wheels/{path.name}": path.read_bytes() for path in sorted(Path(folder).glob("*.whl"))}
