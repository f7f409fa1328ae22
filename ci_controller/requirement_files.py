"""What requirement files say, as far as it matters here: which files decide, and whether they need the tree.

Pure, and wary: what is not known for certain to come from an index or a repository counts as part of the tree.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Final

Read = Callable[[str], bytes | None]  # a file of the tree; None: there is none, or it is too large

MAX_FILES: Final = 100

_REMOTE: Final = re.compile(r"(?:(?:git|hg|svn|bzr)\+)?(?:https?|ssh)://\S")
_NAMED: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[\w\s,.-]*\])?\s*")
_OTHER_LINE_ENDS: Final = re.compile("[\v\f\x1c-\x1e\x85\u2028\u2029]")
_PACKED: Final = (".whl", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz")
_INCLUDES: Final = frozenset({"-r", "--requirement", "-c", "--constraint"})
_WHERE: Final = frozenset({"-i", "--index-url", "--extra-index-url", "-f", "--find-links"})
_FLAGS: Final = frozenset({"--pre", "--prefer-binary", "--require-hashes", "--no-index"})
_VALUED: Final = frozenset({"--no-binary", "--only-binary", "--trusted-host", "--use-feature"})


def is_remote(address: str) -> bool:
    """Tell whether something is fetched from another machine, and from nowhere else."""
    return _REMOTE.match(address) is not None and "${" not in address


def is_remote_requirement(text: str) -> bool:
    """Tell whether a requirement (PEP 508, or a bare URL) is met without any file of the tree."""
    text = text.strip()
    if is_remote(text):
        return True
    named = _NAMED.match(text)
    if named is None or named[1].lower().endswith(_PACKED) or "${" in text:
        return False
    rest = text[named.end() :]
    if rest.startswith("@"):
        return is_remote(rest[1:].lstrip())
    return not rest or rest[0] in "=<>!~(;" or rest.startswith("--")


def deciding_files(path: str, read: Read) -> dict[str, bytes] | None:
    """Return a requirement file with all it includes, by path; None where any of them needs more of the tree.

    Each file is read once, so includes may go in circles.
    """
    found: dict[str, bytes] = {}
    waiting = [posixpath.normpath(path)]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        content = read(one)
        includes = None if content is None or len(found) >= MAX_FILES else _includes(one, content)
        if content is None or includes is None:
            return None
        found[one] = content
        waiting.extend(includes)
    return found


def _includes(path: str, content: bytes) -> list[str] | None:
    """Return what a file includes, relative to the root; None where a line is about the tree, or not understood."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if _OTHER_LINE_ENDS.search(text):
        return None  # pip and uv do not agree where lines end then
    included: list[str] = []
    for line in _logical_lines(text):
        option, value = _option(line)
        if option in _INCLUDES:
            target = _inside(path, value)
            if target is None:
                return None
            included.append(target)
        elif not (_is_harmless(option, value) if option else is_remote_requirement(line)):
            return None
    return included


def _logical_lines(text: str) -> Iterator[str]:
    """Yield lines without comments, continued ones as one, empty ones not at all."""
    whole = ""
    for line in text.splitlines():
        whole += line.rstrip("\\") if line.endswith("\\") else line
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            continue
        if stripped := _without_comment(whole):
            yield stripped
        whole = ""
    if stripped := _without_comment(whole):
        yield stripped


def _without_comment(line: str) -> str:
    line = line.strip()
    return "" if line.startswith("#") else re.split(r"\s#", line, maxsplit=1)[0].rstrip()


def _option(line: str) -> tuple[str, str]:
    """Return option and value of a line, whichever way they are written; no option for a requirement."""
    if not line.startswith("-"):
        return "", line
    if line.startswith("--"):
        option, _, value = line.partition("=") if "=" in line.split()[0] else line.partition(" ")
        return option, value.strip()
    return line[:2], line[2:].strip().removeprefix("=").strip()


def _is_harmless(option: str, value: str) -> bool:
    if option in _WHERE:
        return is_remote(value) and len(value.split()) == 1
    return (option in _FLAGS and not value) or (option in _VALUED and len(value.split()) == 1)


def _inside(path: str, target: str) -> str | None:
    """Return an included file's place in the tree; None where it is outside, or where that is not sure."""
    if not target or re.search(r"[\s\"'\\$]|^/|://", target):
        return None
    place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return None if place == ".." or place.startswith("../") else place
