"""What an installer or pytest complained of, out of what it printed. Pure."""

from __future__ import annotations

import re

# Each names the requirement that cannot be had, in the words of uv, pip and poetry.
_UNAVAILABLE = (
    r"(?:not found in the package registry|no versions? of \S+|only \S+ (?:is|are) available)"
    r" and (?:you require|\S+ depends on) (\S+?)(?:,? and\b|,? we\b)",
    r"No matching distribution found for (\S.*?)(?: \(from .*\))?$",
    r"depends on (\S+ \([^)]*\)) which doesn't match any versions",
)
_CONFLICT = r"Cannot install (.+?) because these package versions have conflicting dependencies"
_ERROR = re.compile(r"^ *(?:error|cause): (.+(?:\n {9}\S.*)*)", re.MULTILINE | re.IGNORECASE)


def plain_text(output: bytes) -> str:
    """Return output without its colours."""
    return re.sub(rb"\x1b\[[0-9;]*m", b"", output).decode(errors="replace")


def of_installer(text: str) -> str:
    """Return the requirement that failed, if one did, and the installer's own words."""
    requirement = failing_requirement(text)
    return (f"{requirement} - " if requirement else "") + _words(text)


def failing_requirement(text: str) -> str:
    """Return "numpyy==9.9: no matching distribution" and the like, nothing where no requirement is to blame."""
    flat = re.sub(r"\n {9,}", " ", text)
    for pattern in _UNAVAILABLE:
        found = re.search(pattern, flat, re.MULTILINE)
        if found:
            return f"{found[1]}: no matching distribution"
    found = re.search(_CONFLICT, flat)
    return f"{found[1]}: conflicting versions" if found else ""


def _words(text: str) -> str:
    """Return the first and the last error, what could not be fetched, and how a build ended; else the last line."""
    errors = [" ".join(error.split()) for error in _ERROR.findall(text)]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not errors:
        return lines[-1] if lines else ""
    fetched = [error for error in errors if error.startswith("Failed to fetch")]
    return ": ".join(dict.fromkeys([errors[0], *fetched, *_end_of_build(text), errors[-1]]))


def _end_of_build(text: str) -> list[str]:
    """Return the last line of what a package's own build printed: uv and pip quote it."""
    quoted = re.search(r"\[stderr\]\n(.+)|lines of output\]\n(.+?)\[end of output\]", text, re.DOTALL)
    lines = (quoted[1] or quoted[2]).split("\n") if quoted else []
    return [line.strip() for line in lines if line.strip()][-1:]


def of_pytest(text: str) -> str:
    """Return why pytest did not get as far as a session: its error, or the conftest that it could not load."""
    conftest = re.search(r"ImportError while loading conftest '([^']+)'", text)
    raised = re.findall(r"^E +(\S.*)", text, re.MULTILINE)
    if conftest:
        return f"{conftest[1]} could not be loaded" + (f": {raised[-1]}" if raised else "")
    errors = re.findall(r"(?:^|: )error: (?!usage: )(.+)", text, re.MULTILINE | re.IGNORECASE)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return str((errors or lines or [""])[-1])
