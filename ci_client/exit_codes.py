"""Exit codes of `ci`: one table, made of the table of verdicts and the classes of errors, and the one mapping to it."""

from collections import defaultdict
from enum import IntEnum

from ci_common.errors import BackupInvalid, CIError, ControllerRunning, EngineUnavailable
from ci_common.events import CompleteEvent
from ci_common.verdict import ENDINGS, PYTEST_REASONS, exit_code_for


class ClientExit(IntEnum):
    """Ends that are neither a verdict nor an error."""

    OK = 0
    USAGE = 64
    INTERNAL = 70
    INTERRUPTED = 130  # 128 + SIGINT: we left, the job goes on
    CANCELLED = 143  # 128 + SIGTERM: the job was cancelled
    BROKEN_PIPE = 141  # 128 + SIGPIPE: nobody reads our output any more, the job goes on


_OPERATORS_ERRORS = (BackupInvalid, ControllerRunning, EngineUnavailable)  # their commands are not this one
_CLIENT_MEANINGS = {
    ClientExit.USAGE: "wrong usage of this command",
    ClientExit.INTERRUPTED: "Ctrl-C here, the job goes on",
    ClientExit.BROKEN_PIPE: "the reader of the output went away, the job goes on",
}


def exit_code_of_error(error: CIError) -> int:
    """Return the code a command ends with that failed with this error."""
    return error.exit_code


def exit_code_of_verdict(event: CompleteEvent) -> int:
    """Return the code a command ends with that saw this verdict; never 0 for a job that did not succeed."""
    if event.success:
        return ClientExit.OK
    if event.reason is None:  # only a server older than reasons
        return event.exit_code or 1
    return exit_code_for(event.reason, event.exit_code) or 1


def exit_code_table() -> tuple[tuple[int, str], ...]:
    """Return every exit code with what it means, in ascending order."""
    meanings: defaultdict[int, list[str]] = defaultdict(list)
    for code, meaning in _CLIENT_MEANINGS.items():
        meanings[code].append(meaning)
    pytest_codes = {reason: code for code, reason in PYTEST_REASONS.items()}
    for ending in ENDINGS:
        own = ending.exit_code
        # An interruption from inside shares pytest's 2 with a failed collection.
        code = own if own is not None else pytest_codes.get(ending.reason, 2)
        meanings[code].append(ending.what)
    for error in CIError.__subclasses__():
        if error not in _OPERATORS_ERRORS:
            meanings[error.exit_code].append(error.title[0].lower() + error.title[1:])
    return tuple((code, "; ".join(meanings[code])) for code in sorted(meanings))
