"""`ci list`, `ci queue`, `ci status`, `ci logs`, `ci cancel`: one question to the server and its answer."""

import json as json_text
from shutil import get_terminal_size

from ci_client.commands.connecting import connected
from ci_client.config import Flags
from ci_client.console import Console
from ci_client.exit_codes import ClientExit
from ci_client.render import LogWriter, job_details, job_table, queue_table
from ci_client.waterfall import WIDTH, spans_of, waterfall
from ci_common.job_terms import JobStatus


def list_jobs(
    console: Console, flags: Flags, *, statuses: tuple[str, ...], limit: int | None, json: bool
) -> int:
    """The caller's jobs are on stdout, newest first: a table, or one JSON array."""
    with connected(console, flags) as client:
        jobs = client.list_jobs(status=statuses, limit=limit)
        if json:
            console.line(json_text.dumps([dict(job.raw) for job in jobs], indent=2))
        else:
            for line in job_table(jobs):
                console.line(line)
    return ClientExit.OK


def queue(console: Console, flags: Flags, *, json: bool) -> int:
    """The caller's queued jobs are on stdout, the next one first, with what each waits for."""
    with connected(console, flags) as client:
        queued = client.queue()
    lines = [json_text.dumps([dict(job) for job in queued], indent=2)] if json else queue_table(queued)
    for line in lines:
        console.line(line)
    return ClientExit.OK


def status(console: Console, flags: Flags, job_id: str, *, json: bool) -> int:
    """The job's fields are on stdout."""
    with connected(console, flags) as client:
        job = client.get_job(job_id)
    lines = [json_text.dumps(dict(job.raw), indent=2)] if json else job_details(job)
    for line in lines:
        console.line(line)
    return ClientExit.OK


def timing(console: Console, flags: Flags, job_id: str, *, json: bool) -> int:
    """Where the job's time went is on stdout: a waterfall, or its spans as one JSON array."""
    with connected(console, flags) as client:
        spans = spans_of(client.timeline(job_id))
    if json:
        console.line(json_text.dumps([span.to_json() for span in spans], indent=2))
        return ClientExit.OK
    columns = get_terminal_size().columns if console.terminal.stdout else WIDTH
    for line in waterfall(spans, columns, colour=console.terminal.stdout and console.terminal.out_colour):
        console.line(line)
    return ClientExit.OK


def logs(console: Console, flags: Flags, job_id: str, *, raw: bool) -> int:
    """The job's output so far is on stdout."""
    writer = LogWriter(console, raw=raw)
    with connected(console, flags) as client:
        try:
            for chunk in client.log(job_id):
                writer.write(chunk)
        finally:
            writer.finish()
    return ClientExit.OK


def cancel(console: Console, flags: Flags, job_id: str) -> int:
    """The job is over, or its end is on the way; raises JobFinished when it was over before."""
    with connected(console, flags) as client:
        job = client.cancel(job_id)
    over = job is not None and job.status == JobStatus.CANCELLED
    console.note(
        f"Job {job_id} is cancelled." if over else f"Job {job_id} is being cancelled: ci wait {job_id}"
    )
    return ClientExit.OK
