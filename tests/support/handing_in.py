"""A project handed in by plain HTTP, for tests that do not judge `ci`: that costs a quarter of a second of a core."""

from pathlib import Path

from tests.support.archives import zip_of
from tests.support.installation import Installation, Served


def zip_of_project(project: Path) -> bytes:
    """Return an archive of every file below; no exec bits, no links."""
    files = sorted(path for path in project.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return zip_of({path.relative_to(project).as_posix(): path.read_bytes() for path in files})


def hand_in(
    system: Installation, server: Served, project: Path, *arguments: str, user: str = "ada", **fields: str
) -> str:
    """The server has a job of this project, with these arguments for pytest; returns its id."""
    form = {"pytest_args": list(arguments), **fields}
    with system.http(server, user) as http:
        answer = http.post("/submit-async", data=form, files={"file": zip_of_project(project)})
    job_id: str = answer.raise_for_status().json()["job_id"]
    return job_id


def cancel(system: Installation, server: Served, job_id: str, user: str = "ada") -> None:
    """The job is to end."""
    with system.http(server, user) as http:
        http.delete(f"/jobs/{job_id}").raise_for_status()
